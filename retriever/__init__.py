"""Documents, passages and vectors."""
