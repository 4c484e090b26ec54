"""Pictures of a result file, and a page with them."""
