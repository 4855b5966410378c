-- What sqlite.sql says, in PostgreSQL's words. Every name begins with {prefix}; the search path is the schema.
-- Text is compared byte by byte (COLLATE "C"), so that order means the same in every database. Payloads are
-- json and not jsonb: they can be queried, and 1e308 comes back as it was, not as a number of 309 digits.
CREATE TABLE {prefix}memstate (version INTEGER NOT NULL);

-- Facts as they are now. `seq` is the log entry that made each so.
CREATE TABLE {prefix}facts (
    id          TEXT COLLATE "C" PRIMARY KEY,
    type        TEXT COLLATE "C" NOT NULL,
    namespace   TEXT COLLATE "C" NOT NULL,
    session_id  TEXT COLLATE "C",
    source      TEXT COLLATE "C",
    ts          TEXT COLLATE "C" NOT NULL,
    version     BIGINT NOT NULL,
    ephemeral   BOOLEAN NOT NULL,
    singleton   TEXT COLLATE "C",
    payload     JSON NOT NULL,
    seq         BIGINT NOT NULL,
    schema_version BIGINT NOT NULL DEFAULT 1,
    ttl         DOUBLE PRECISION,
    ends        DOUBLE PRECISION
);
CREATE UNIQUE INDEX {prefix}facts_singleton ON {prefix}facts (type, namespace, singleton)
    WHERE singleton IS NOT NULL;
CREATE INDEX {prefix}facts_seq ON {prefix}facts (seq);
CREATE INDEX {prefix}facts_type ON {prefix}facts (type, seq);
CREATE INDEX {prefix}facts_namespace ON {prefix}facts (namespace, type, seq);
CREATE INDEX {prefix}facts_session ON {prefix}facts (session_id, seq);
CREATE INDEX {prefix}facts_ephemeral ON {prefix}facts (session_id, seq) WHERE ephemeral;
CREATE INDEX {prefix}facts_ends ON {prefix}facts (ends) WHERE ends IS NOT NULL;

-- Everything that ever happened.
CREATE TABLE {prefix}log (
    seq             BIGINT PRIMARY KEY,
    tx              TEXT COLLATE "C" NOT NULL,
    op              TEXT COLLATE "C" NOT NULL,
    fact_id         TEXT COLLATE "C" NOT NULL,
    version         BIGINT NOT NULL,
    after           TEXT COLLATE "C",
    session_id      TEXT COLLATE "C",
    actor           TEXT COLLATE "C",
    reason          TEXT COLLATE "C",
    ts              TEXT COLLATE "C" NOT NULL,
    idempotency_key TEXT COLLATE "C",
    undoes          BIGINT,
    base            BIGINT,
    thread_id       TEXT COLLATE "C",
    checkpoint_ns   TEXT COLLATE "C",
    checkpoint_id   TEXT COLLATE "C",
    task_id         TEXT COLLATE "C",
    tool_call_id    TEXT COLLATE "C",
    run_id          TEXT COLLATE "C",
    node            TEXT COLLATE "C",
    purged          BOOLEAN NOT NULL DEFAULT false
);
CREATE UNIQUE INDEX {prefix}log_version ON {prefix}log (fact_id, version);
CREATE UNIQUE INDEX {prefix}log_idempotency ON {prefix}log (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX {prefix}log_tx ON {prefix}log (tx, seq);
CREATE INDEX {prefix}log_session ON {prefix}log (session_id, seq);
CREATE INDEX {prefix}log_thread ON {prefix}log (thread_id, seq) WHERE thread_id IS NOT NULL;
CREATE INDEX {prefix}log_run ON {prefix}log (run_id, seq) WHERE run_id IS NOT NULL;
CREATE INDEX {prefix}log_task ON {prefix}log (task_id, seq) WHERE task_id IS NOT NULL;
CREATE INDEX {prefix}log_tool_call ON {prefix}log (tool_call_id, seq) WHERE tool_call_id IS NOT NULL;
-- The one exception: what a purged fact once was is erased, when an entry says that it happened.
CREATE FUNCTION {prefix}log_keeps() RETURNS trigger LANGUAGE plpgsql AS $$
    DECLARE
        erased CONSTANT TEXT[] := ARRAY['after', 'reason', 'idempotency_key', 'purged'];
        told BOOLEAN := false;
    BEGIN
        IF TG_OP = 'UPDATE' AND TG_LEVEL = 'ROW' THEN
            IF NEW.purged AND NEW.after IS NULL AND NEW.reason IS NULL AND NEW.idempotency_key IS NULL
                    AND to_jsonb(NEW) - erased = to_jsonb(OLD) - erased THEN
                EXECUTE 'SELECT EXISTS (SELECT 1 FROM ' || TG_RELID::regclass
                    || ' WHERE fact_id = $1 AND op = ''PURGE'' AND seq > $2)' INTO told USING OLD.fact_id, OLD.seq;
            END IF;
        END IF;
        IF told THEN
            RETURN NEW;
        END IF;
        RAISE EXCEPTION 'the log is append-only' USING ERRCODE = 'restrict_violation';
    END $$;
CREATE TRIGGER {prefix}log_keeps_rows BEFORE UPDATE OR DELETE ON {prefix}log
    FOR EACH ROW EXECUTE FUNCTION {prefix}log_keeps();
CREATE TRIGGER {prefix}log_keeps_all BEFORE TRUNCATE ON {prefix}log
    FOR EACH STATEMENT EXECUTE FUNCTION {prefix}log_keeps();

-- The transactions that rollback counts: neither undone nor undoing. Derived from the log.
CREATE TABLE {prefix}steps (
    seq         BIGINT PRIMARY KEY,
    tx          TEXT COLLATE "C" NOT NULL UNIQUE,
    session_id  TEXT COLLATE "C"
);
CREATE INDEX {prefix}steps_session ON {prefix}steps (session_id, seq);

-- Every id that a vector store was asked to hold and may still hold.
CREATE TABLE {prefix}vectors (
    id          TEXT COLLATE "C" PRIMARY KEY,
    collection  TEXT COLLATE "C" NOT NULL,
    fact_id     TEXT COLLATE "C" NOT NULL,
    state       TEXT COLLATE "C" NOT NULL,
    due         DOUBLE PRECISION,
    born        BIGINT,
    died        BIGINT,
    late        SMALLINT NOT NULL DEFAULT 0
);
CREATE INDEX {prefix}vectors_live ON {prefix}vectors (fact_id) WHERE state = 'live';
CREATE INDEX {prefix}vectors_due ON {prefix}vectors (due) WHERE due IS NOT NULL;
CREATE INDEX {prefix}vectors_collection ON {prefix}vectors (collection, id);

-- When items with a time to live were last read (seconds since the epoch). Reading is no change, so it is not logged.
CREATE TABLE {prefix}reads (
    fact_id     TEXT COLLATE "C" PRIMARY KEY,
    at          DOUBLE PRECISION NOT NULL
);

-- LangGraph's checkpoints without their channel values, which are shared between checkpoints.
CREATE TABLE {prefix}checkpoints (
    thread_id       TEXT COLLATE "C" NOT NULL,
    checkpoint_ns   TEXT COLLATE "C" NOT NULL,
    checkpoint_id   TEXT COLLATE "C" NOT NULL,
    parent_id       TEXT COLLATE "C",
    run_id          TEXT COLLATE "C",
    kind            TEXT COLLATE "C" NOT NULL,
    body            BYTEA NOT NULL,
    metadata_kind   TEXT COLLATE "C" NOT NULL,
    metadata        BYTEA NOT NULL,
    position        BIGINT NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
);
CREATE INDEX {prefix}checkpoints_run ON {prefix}checkpoints (run_id) WHERE run_id IS NOT NULL;

-- The value of a channel at a version, as pieces of chunks.
CREATE TABLE {prefix}channel_values (
    thread_id       TEXT COLLATE "C" NOT NULL,
    checkpoint_ns   TEXT COLLATE "C" NOT NULL,
    channel         TEXT COLLATE "C" NOT NULL,
    version         TEXT COLLATE "C" NOT NULL,
    kind            TEXT COLLATE "C" NOT NULL,
    pieces          BYTEA NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
);

-- Bytes that were new when they were stored. A copied thread shares the pool of the thread it came from.
CREATE TABLE {prefix}chunks (
    pool    BYTEA NOT NULL,
    id      BYTEA NOT NULL,
    cipher  TEXT COLLATE "C",
    packed  INTEGER NOT NULL,
    data    BYTEA NOT NULL,
    UNIQUE (pool, id)
);
CREATE TABLE {prefix}threads (
    thread_id   TEXT COLLATE "C" PRIMARY KEY,
    pool        BYTEA NOT NULL
);
CREATE INDEX {prefix}threads_pool ON {prefix}threads (pool);

-- What tasks wrote, waiting for the step that applies it.
CREATE TABLE {prefix}writes (
    thread_id       TEXT COLLATE "C" NOT NULL,
    checkpoint_ns   TEXT COLLATE "C" NOT NULL,
    checkpoint_id   TEXT COLLATE "C" NOT NULL,
    task_id         TEXT COLLATE "C" NOT NULL,
    idx             BIGINT NOT NULL,
    task_path       TEXT COLLATE "C" NOT NULL,
    channel         TEXT COLLATE "C" NOT NULL,
    kind            TEXT COLLATE "C" NOT NULL,
    value           BYTEA NOT NULL,
    pieces          BYTEA,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
);

-- These bytes are compressed already.
ALTER TABLE {prefix}chunks ALTER data SET STORAGE EXTERNAL;
ALTER TABLE {prefix}checkpoints ALTER body SET STORAGE EXTERNAL, ALTER metadata SET STORAGE EXTERNAL;
