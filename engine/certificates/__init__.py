"""The certificates that come with Preread, one file a model and compute mode; each has the command that made it."""
