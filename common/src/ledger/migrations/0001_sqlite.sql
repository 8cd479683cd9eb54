-- What was imported. A row is written in the transaction that writes the object's rows.
CREATE TABLE weirgate_object (
    -- Never reused: rows in the tables refer to it.
    id                 INTEGER PRIMARY KEY AUTOINCREMENT,
    feed               TEXT NOT NULL,
    bucket             TEXT NOT NULL,
    key                TEXT NOT NULL,
    etag               TEXT NOT NULL,
    version_id         TEXT,
    sequencer          TEXT,
    table_name         TEXT NOT NULL,
    state              TEXT NOT NULL CHECK (state IN ('committed', 'replaced', 'retracted')),
    rows               INTEGER NOT NULL,
    rejected_rows      INTEGER NOT NULL,
    bytes              INTEGER NOT NULL,
    schema_fingerprint INTEGER,
    event_at           TEXT,
    received_at        TEXT NOT NULL,
    committed_at       TEXT NOT NULL,
    worker             TEXT NOT NULL
);
-- The last line of defence: one identity is committed at most once, whatever the code above does.
CREATE UNIQUE INDEX weirgate_object_committed ON weirgate_object (feed, bucket, key, etag) WHERE state = 'committed';
CREATE INDEX weirgate_object_key ON weirgate_object (feed, bucket, key);
CREATE INDEX weirgate_object_committed_at ON weirgate_object (committed_at);

CREATE TABLE weirgate_schema (
    fingerprint INTEGER PRIMARY KEY,
    json        TEXT NOT NULL,
    first_seen  TEXT NOT NULL
);

CREATE TABLE weirgate_rejected_row (
    object  INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    reason  TEXT NOT NULL,
    record  TEXT NOT NULL,
    PRIMARY KEY (object, ordinal)
);

-- What went wrong with which message or object, one row per message and object.
CREATE TABLE weirgate_failure (
    message_id  TEXT NOT NULL,
    object      TEXT NOT NULL,
    fleet       TEXT NOT NULL,
    feed        TEXT NOT NULL,
    class       TEXT NOT NULL,
    reason      TEXT NOT NULL,
    detail      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    attempts    INTEGER NOT NULL,
    first_seen  TEXT NOT NULL,
    last_seen   TEXT NOT NULL,
    resolution  TEXT NOT NULL,
    PRIMARY KEY (message_id, object)
);
CREATE INDEX weirgate_failure_last_seen ON weirgate_failure (last_seen);

-- The latest report of each importer process.
CREATE TABLE weirgate_worker (
    worker            TEXT PRIMARY KEY,
    fleet             TEXT NOT NULL,
    state             TEXT NOT NULL,
    slots             INTEGER NOT NULL,
    busy              INTEGER NOT NULL,
    done              INTEGER NOT NULL,
    service_ms        INTEGER NOT NULL,
    oldest_message_at TEXT,
    started_at        TEXT NOT NULL,
    reported_at       TEXT NOT NULL
);

-- Every scaling decision with its inputs, as the policy reported it.
CREATE TABLE weirgate_plan (
    id      INTEGER PRIMARY KEY,
    fleet   TEXT NOT NULL,
    at      TEXT NOT NULL,
    desired INTEGER NOT NULL,
    report  TEXT NOT NULL
);
CREATE INDEX weirgate_plan_fleet_at ON weirgate_plan (fleet, at);

CREATE TABLE weirgate_lease (
    name       TEXT PRIMARY KEY,
    holder     TEXT NOT NULL,
    expires_at TEXT NOT NULL
);
