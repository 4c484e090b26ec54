-- Ids of collections are never used again: index files are named by them.
CREATE TABLE collections (
    id                   INTEGER PRIMARY KEY AUTOINCREMENT,
    name                 TEXT    NOT NULL UNIQUE,
    settings             TEXT    NOT NULL,                -- canonical JSON of CollectionSettings
    embedder_fingerprint TEXT,                            -- NULL until the first vector is stored
    embedder_name        TEXT,
    dimension            INTEGER,
    generation           INTEGER NOT NULL DEFAULT 0,      -- grows with every change of the collection's vectors
    created_at           TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

CREATE TABLE documents (
    key                 INTEGER PRIMARY KEY,
    collection_id       INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    id                  TEXT    NOT NULL,
    uri                 TEXT    NOT NULL,
    title               TEXT    NOT NULL,
    content_hash        BLOB    NOT NULL,
    text                TEXT    NOT NULL,                 -- what passage offsets refer to
    num_characters      INTEGER NOT NULL,
    encoder_fingerprint TEXT    NOT NULL,
    ingested_at         TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    UNIQUE (collection_id, id)
) STRICT;

CREATE TABLE passages (
    id                  INTEGER PRIMARY KEY,              -- from the content
    collection_id       INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    document_key        INTEGER NOT NULL REFERENCES documents (key) ON DELETE CASCADE,
    ordinal             INTEGER NOT NULL,                 -- place in its document
    label               TEXT    NOT NULL,
    text                TEXT    NOT NULL,
    start_offset        INTEGER NOT NULL,
    end_offset          INTEGER NOT NULL,
    page                INTEGER,
    heading_path        TEXT    NOT NULL,                 -- JSON list
    token_ids           BLOB    NOT NULL,                 -- int32, little endian
    encoder_fingerprint TEXT    NOT NULL,
    UNIQUE (collection_id, label)
) STRICT;

CREATE INDEX passages_by_document ON passages (document_key, ordinal);

CREATE TABLE vectors (
    id            INTEGER PRIMARY KEY,                    -- from the passage id and the window
    collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    passage_id    INTEGER NOT NULL REFERENCES passages (id) ON DELETE CASCADE,
    window        INTEGER NOT NULL,
    data          BLOB    NOT NULL                        -- float32, little endian
) STRICT;

CREATE INDEX vectors_by_passage ON vectors (passage_id);
CREATE INDEX vectors_by_collection ON vectors (collection_id, id);
