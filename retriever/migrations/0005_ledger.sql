-- Tokens that were used, by hour. Collections and keys by what they were called: a bill stays when they go.
CREATE TABLE ledger (
    hour          INTEGER NOT NULL,                       -- since 1970, UTC
    key_id        TEXT    NOT NULL,                       -- of an API key; empty where there was none
    collection    TEXT    NOT NULL,                       -- its name; empty where none was asked
    pipeline      TEXT    NOT NULL,
    model         TEXT    NOT NULL,
    answers       INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    cached_tokens INTEGER NOT NULL,                       -- of the prompt tokens
    output_tokens INTEGER NOT NULL,
    PRIMARY KEY (hour, key_id, collection, pipeline, model)
) STRICT, WITHOUT ROWID;

CREATE INDEX ledger_by_key ON ledger (key_id, hour);

-- Which passages the latest answers read, in prompt order: what tells how a larger cache would do. No text.
CREATE TABLE retrieval_log (
    number        INTEGER PRIMARY KEY AUTOINCREMENT,
    collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    at            INTEGER NOT NULL,                       -- seconds since 1970, UTC
    passages      BLOB    NOT NULL                        -- of each its id (int64) and tokens (int64), little endian
) STRICT;

CREATE INDEX retrieval_log_by_collection ON retrieval_log (collection_id);
