"""The page at `/`: ask, see what the cache did, add documents, watch the server."""
