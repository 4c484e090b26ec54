-- Passages with the same tokens, of which few share the last 32.
CREATE INDEX passages_by_last_tokens ON passages (collection_id, substr(token_ids, -128));
