-- Facts as they are now. `seq` is the log entry that made each so; `ends` is when the time to live is over that began
-- with the last change (seconds since the epoch).
CREATE TABLE facts (
    id          TEXT PRIMARY KEY,
    type        TEXT NOT NULL,
    namespace   TEXT NOT NULL,
    session_id  TEXT,
    source      TEXT,
    ts          TEXT NOT NULL,
    version     INTEGER NOT NULL,
    ephemeral   INTEGER NOT NULL,
    singleton   TEXT,
    payload     TEXT NOT NULL,
    seq         INTEGER NOT NULL,
    schema_version INTEGER NOT NULL DEFAULT 1,
    ttl         REAL,
    ends        REAL
);
CREATE UNIQUE INDEX facts_singleton ON facts (type, namespace, singleton) WHERE singleton IS NOT NULL;
CREATE INDEX facts_seq ON facts (seq);
CREATE INDEX facts_type ON facts (type, seq);
CREATE INDEX facts_namespace ON facts (namespace, type, seq);
CREATE INDEX facts_session ON facts (session_id, seq);
CREATE INDEX facts_ephemeral ON facts (session_id, seq) WHERE ephemeral;
CREATE INDEX facts_ends ON facts (ends) WHERE ends IS NOT NULL;

-- Everything that ever happened. What a fact was before an entry is what the entry of its previous version
-- left, so it is not stored twice; that versions are unique also makes a lost update impossible.
CREATE TABLE log (
    seq             INTEGER PRIMARY KEY,
    tx              TEXT NOT NULL,
    op              TEXT NOT NULL,
    fact_id         TEXT NOT NULL,
    version         INTEGER NOT NULL,
    after           TEXT,
    session_id      TEXT,
    actor           TEXT,
    reason          TEXT,
    ts              TEXT NOT NULL,
    idempotency_key TEXT,
    undoes          INTEGER,
    base            INTEGER,
    thread_id       TEXT,
    checkpoint_ns   TEXT,
    checkpoint_id   TEXT,
    task_id         TEXT,
    tool_call_id    TEXT,
    run_id          TEXT,
    node            TEXT,
    purged          INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX log_version ON log (fact_id, version);
CREATE UNIQUE INDEX log_idempotency ON log (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX log_tx ON log (tx, seq);
CREATE INDEX log_session ON log (session_id, seq);
CREATE INDEX log_thread ON log (thread_id, seq) WHERE thread_id IS NOT NULL;
CREATE INDEX log_run ON log (run_id, seq) WHERE run_id IS NOT NULL;
CREATE INDEX log_task ON log (task_id, seq) WHERE task_id IS NOT NULL;
CREATE INDEX log_tool_call ON log (tool_call_id, seq) WHERE tool_call_id IS NOT NULL;
CREATE TRIGGER log_keeps_rows BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
-- The one exception: what a purged fact once was is erased, when an entry says that it happened.
CREATE TRIGGER log_keeps_values BEFORE UPDATE ON log WHEN NOT (
        NEW.purged AND NEW.after IS NULL AND NEW.reason IS NULL AND NEW.idempotency_key IS NULL
        AND NEW.seq IS OLD.seq AND NEW.tx IS OLD.tx AND NEW.op IS OLD.op AND NEW.fact_id IS OLD.fact_id
        AND NEW.version IS OLD.version AND NEW.session_id IS OLD.session_id AND NEW.actor IS OLD.actor
        AND NEW.ts IS OLD.ts AND NEW.undoes IS OLD.undoes AND NEW.base IS OLD.base
        AND NEW.thread_id IS OLD.thread_id AND NEW.checkpoint_ns IS OLD.checkpoint_ns
        AND NEW.checkpoint_id IS OLD.checkpoint_id AND NEW.task_id IS OLD.task_id
        AND NEW.tool_call_id IS OLD.tool_call_id AND NEW.run_id IS OLD.run_id AND NEW.node IS OLD.node
        AND EXISTS (SELECT 1 FROM log p WHERE p.fact_id = OLD.fact_id AND p.op = 'PURGE' AND p.seq > OLD.seq)
    )
    BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;

-- The transactions that rollback counts: neither undone nor undoing. Derived from the log.
CREATE TABLE steps (
    seq         INTEGER PRIMARY KEY,
    tx          TEXT NOT NULL UNIQUE,
    session_id  TEXT
);
CREATE INDEX steps_session ON steps (session_id, seq);

-- Every id that a vector store was asked to hold and may still hold.
CREATE TABLE vectors (
    id          TEXT PRIMARY KEY,
    collection  TEXT NOT NULL,
    fact_id     TEXT NOT NULL,
    state       TEXT NOT NULL,
    due         REAL,
    born        INTEGER,
    died        INTEGER,
    late        INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX vectors_live ON vectors (fact_id) WHERE state = 'live';
CREATE INDEX vectors_due ON vectors (due) WHERE due IS NOT NULL;

-- When items with a time to live were last read (seconds since the epoch). Reading is no change, so it is not logged.
CREATE TABLE reads (
    fact_id     TEXT PRIMARY KEY,
    at          REAL NOT NULL
) WITHOUT ROWID;

-- LangGraph's checkpoints without their channel values, which are shared between checkpoints. `position` is that
-- of the log when they were stored.
CREATE TABLE checkpoints (
    thread_id       TEXT NOT NULL,
    checkpoint_ns   TEXT NOT NULL,
    checkpoint_id   TEXT NOT NULL,
    parent_id       TEXT,
    run_id          TEXT,
    kind            TEXT NOT NULL,
    body            BLOB NOT NULL,
    metadata_kind   TEXT NOT NULL,
    metadata        BLOB NOT NULL,
    position        INTEGER NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
) WITHOUT ROWID;
CREATE INDEX checkpoints_run ON checkpoints (run_id) WHERE run_id IS NOT NULL;

-- The value of a channel at a version, as pieces of chunks.
CREATE TABLE channel_values (
    thread_id       TEXT NOT NULL,
    checkpoint_ns   TEXT NOT NULL,
    channel         TEXT NOT NULL,
    version         TEXT NOT NULL,
    kind            TEXT NOT NULL,
    pieces          BLOB NOT NULL,
    PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
) WITHOUT ROWID;

-- Bytes that were new when they were stored. A copied thread shares the pool of the thread it came from.
CREATE TABLE chunks (
    pool    BLOB NOT NULL,
    id      BLOB NOT NULL,
    cipher  TEXT,
    packed  INTEGER NOT NULL,
    data    BLOB NOT NULL,
    UNIQUE (pool, id)
);  -- with a rowid: appended in order, pages are filled
CREATE TABLE threads (
    thread_id   TEXT PRIMARY KEY,
    pool        BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX threads_pool ON threads (pool);

-- What tasks wrote, waiting for the step that applies it.
CREATE TABLE writes (
    thread_id       TEXT NOT NULL,
    checkpoint_ns   TEXT NOT NULL,
    checkpoint_id   TEXT NOT NULL,
    task_id         TEXT NOT NULL,
    idx             INTEGER NOT NULL,
    task_path       TEXT NOT NULL,
    channel         TEXT NOT NULL,
    kind            TEXT NOT NULL,
    value           BLOB NOT NULL,
    pieces          BLOB,
    PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
) WITHOUT ROWID;
