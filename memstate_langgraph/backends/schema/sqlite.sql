-- Facts as they are now. `seq` is the log entry that made each so.
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
    seq         INTEGER NOT NULL
);
CREATE UNIQUE INDEX facts_singleton ON facts (type, namespace, singleton) WHERE singleton IS NOT NULL;
CREATE INDEX facts_seq ON facts (seq);
CREATE INDEX facts_type ON facts (type, seq);
CREATE INDEX facts_namespace ON facts (namespace, type, seq);
CREATE INDEX facts_session ON facts (session_id, seq);
CREATE INDEX facts_ephemeral ON facts (session_id, seq) WHERE ephemeral;

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
    node            TEXT
);
CREATE UNIQUE INDEX log_version ON log (fact_id, version);
CREATE UNIQUE INDEX log_idempotency ON log (idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX log_tx ON log (tx, seq);
CREATE INDEX log_session ON log (session_id, seq);
CREATE TRIGGER log_keeps_rows BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER log_keeps_values BEFORE UPDATE ON log BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;

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
CREATE INDEX vectors_due ON vectors (due) WHERE state <> 'live';
CREATE INDEX vectors_collection ON vectors (collection, id);
