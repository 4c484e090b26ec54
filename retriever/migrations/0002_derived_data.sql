-- Data that others derive from passages and keep elsewhere under a key of theirs. A key lives as long as one of its
-- rows: those of passages, and that of the collection itself (passage_id NULL).
CREATE TABLE derived_keys (
    collection_id INTEGER NOT NULL REFERENCES collections (id) ON DELETE CASCADE,
    passage_id    INTEGER          REFERENCES passages (id) ON DELETE CASCADE,
    key           BLOB    NOT NULL
) STRICT;

CREATE UNIQUE INDEX derived_keys_by_key ON derived_keys (key, collection_id, coalesce(passage_id, -1));
CREATE INDEX derived_keys_by_passage ON derived_keys (passage_id);
CREATE INDEX derived_keys_by_collection ON derived_keys (collection_id);

-- Keys whose last row has gone, until whoever keeps the data has removed it.
CREATE TABLE dead_keys (
    key   BLOB    PRIMARY KEY,
    erase INTEGER NOT NULL DEFAULT 0                      -- 1: no copy may be left, not even in free space
) STRICT, WITHOUT ROWID;

CREATE TRIGGER key_dies AFTER DELETE ON derived_keys
WHEN NOT EXISTS (SELECT 1 FROM derived_keys WHERE key = OLD.key)
BEGIN
    INSERT OR IGNORE INTO dead_keys (key) VALUES (OLD.key);
END;

-- One that must be erased stays in the queue: it lives again only once its old copies are gone.
CREATE TRIGGER key_lives AFTER INSERT ON derived_keys
BEGIN
    DELETE FROM dead_keys WHERE key = NEW.key AND erase = 0;
END;

-- A passage whose tokens change is another one to whatever was derived from them.
CREATE TRIGGER passage_changes AFTER UPDATE OF token_ids ON passages
WHEN OLD.token_ids <> NEW.token_ids
BEGIN
    DELETE FROM derived_keys WHERE passage_id = NEW.id;
END;

CREATE TABLE retrievals (
    passage_id INTEGER PRIMARY KEY REFERENCES passages (id) ON DELETE CASCADE,
    count      INTEGER NOT NULL                           -- how often it was among the passages of a question
) STRICT;
