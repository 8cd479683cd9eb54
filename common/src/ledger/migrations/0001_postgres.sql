-- One number per imported object: the `_object` column of the tables Weirgate makes.
CREATE SEQUENCE weirgate.object_id;

-- What was imported. A row is written in the transaction that writes the object's rows.
CREATE TABLE weirgate.object (
    id                 bigint PRIMARY KEY,
    feed               text NOT NULL,
    bucket             text NOT NULL,
    key                text NOT NULL,
    etag               text NOT NULL,
    version_id         text,
    sequencer          text,
    table_name         text NOT NULL,
    state              text NOT NULL CHECK (state IN ('committed', 'replaced', 'retracted')),
    rows               bigint NOT NULL,
    rejected_rows      bigint NOT NULL,
    bytes              bigint NOT NULL,
    schema_fingerprint bigint,
    event_at           timestamptz,
    received_at        timestamptz NOT NULL,
    committed_at       timestamptz NOT NULL,
    worker             text NOT NULL
);
-- The last line of defence: one identity is committed at most once, whatever the code above does.
CREATE UNIQUE INDEX object_committed ON weirgate.object (feed, bucket, key, etag) WHERE state = 'committed';
CREATE INDEX object_key ON weirgate.object (feed, bucket, key);
CREATE INDEX object_committed_at ON weirgate.object (committed_at);

CREATE TABLE weirgate.schema (
    fingerprint bigint PRIMARY KEY,
    json        text NOT NULL,
    first_seen  timestamptz NOT NULL
);

CREATE TABLE weirgate.rejected_row (
    object  bigint NOT NULL,
    ordinal bigint NOT NULL,
    reason  text NOT NULL,
    record  text NOT NULL,
    PRIMARY KEY (object, ordinal)
);

-- What went wrong with which message or object, one row per message and object.
CREATE TABLE weirgate.failure (
    message_id  text NOT NULL,
    object      text NOT NULL,
    fleet       text NOT NULL,
    feed        text NOT NULL,
    class       text NOT NULL,
    reason      text NOT NULL,
    detail      text NOT NULL,
    fingerprint text NOT NULL,
    attempts    bigint NOT NULL,
    first_seen  timestamptz NOT NULL,
    last_seen   timestamptz NOT NULL,
    resolution  text NOT NULL,
    PRIMARY KEY (message_id, object)
);
CREATE INDEX failure_last_seen ON weirgate.failure (last_seen);

-- The latest report of each importer process.
CREATE TABLE weirgate.worker (
    worker            text PRIMARY KEY,
    fleet             text NOT NULL,
    state             text NOT NULL,
    slots             bigint NOT NULL,
    busy              bigint NOT NULL,
    done              bigint NOT NULL,
    service_ms        bigint NOT NULL,
    oldest_message_at timestamptz,
    started_at        timestamptz NOT NULL,
    reported_at       timestamptz NOT NULL
);

-- Every scaling decision with its inputs, as the policy reported it.
CREATE TABLE weirgate.plan (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    fleet   text NOT NULL,
    at      timestamptz NOT NULL,
    desired bigint NOT NULL,
    report  text NOT NULL
);
CREATE INDEX plan_fleet_at ON weirgate.plan (fleet, at);

CREATE TABLE weirgate.lease (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL
);
