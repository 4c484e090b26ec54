-- API keys. A row stays when its key is revoked: what the key has used is still told by name, and a library that has
-- ever had a key never opens again by itself.
CREATE TABLE api_keys (
    id                   TEXT    PRIMARY KEY,
    name                 TEXT    NOT NULL,
    secret_hash          BLOB    NOT NULL,
    questions_per_minute INTEGER,                         -- NULL: the server's own limit
    tokens_per_day       INTEGER,                         -- the same
    created_at           TEXT    NOT NULL,
    expires_at           TEXT,
    revoked_at           TEXT,
    last_used_at         TEXT
) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX living_api_keys_by_name ON api_keys (name) WHERE revoked_at IS NULL;

-- What a key may do: the widest scope for each collection; '*' is every collection, those to come included.
CREATE TABLE api_key_grants (
    key_id     TEXT NOT NULL REFERENCES api_keys (id) ON DELETE CASCADE,
    collection TEXT NOT NULL,
    scope      TEXT NOT NULL CHECK (scope IN ('read', 'write', 'admin')),
    PRIMARY KEY (key_id, collection)
) STRICT, WITHOUT ROWID;

CREATE INDEX api_key_grants_by_collection ON api_key_grants (collection);
