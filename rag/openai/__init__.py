"""The OpenAI-compatible part of the HTTP API."""
