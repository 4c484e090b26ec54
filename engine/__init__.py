"""Serving: token ids and segments in, tokens and a cache report out."""
