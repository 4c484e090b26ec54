"""Other engines, measured beside ours."""
