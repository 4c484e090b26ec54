-- What users say of a document; conditions of a search look at it.
ALTER TABLE documents ADD COLUMN metadata TEXT NOT NULL DEFAULT '{}';     -- JSON object

-- How questions over a collection are answered: whoever answers them knows what it means.
ALTER TABLE collections ADD COLUMN answering TEXT NOT NULL DEFAULT '{}';  -- JSON object

-- Work that goes on after its request was answered. Its input is a file beside the database, named by the id.
CREATE TABLE jobs (
    number      INTEGER PRIMARY KEY AUTOINCREMENT,        -- the order in which they came
    id          TEXT    NOT NULL UNIQUE,
    kind        TEXT    NOT NULL,
    collection  TEXT    NOT NULL,                         -- its name: it may be made by the job
    owner       TEXT    NOT NULL,                         -- principal
    state       TEXT    NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,               -- how often it was begun
    progress    TEXT    NOT NULL DEFAULT '{}',            -- JSON object
    result      TEXT,                                     -- JSON object, once it has succeeded
    error       TEXT,                                     -- for people, once it has not
    created_at  TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    started_at  TEXT,
    finished_at TEXT
) STRICT;

CREATE INDEX jobs_by_state ON jobs (state, number);

-- Answers to requests that their client may send twice; without status and body while the first is worked on.
CREATE TABLE idempotent_requests (
    owner       TEXT    NOT NULL,                         -- principal
    key         TEXT    NOT NULL,                         -- the client's
    fingerprint BLOB    NOT NULL,                         -- hash of what was asked for
    status      INTEGER,
    body        TEXT,
    created_at  TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    PRIMARY KEY (owner, key)
) STRICT, WITHOUT ROWID;
