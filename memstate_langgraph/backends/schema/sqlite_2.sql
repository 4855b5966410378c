-- From version 1 to 2: schema versions, times to live and purging.
ALTER TABLE facts ADD COLUMN schema_version INTEGER NOT NULL DEFAULT 1;
ALTER TABLE facts ADD COLUMN ttl REAL;
ALTER TABLE facts ADD COLUMN ends REAL;
CREATE INDEX facts_ends ON facts (ends) WHERE ends IS NOT NULL;
ALTER TABLE log ADD COLUMN purged INTEGER NOT NULL DEFAULT 0;
DROP TRIGGER log_keeps_values;

-- The items of a LangGraph store had their time to live in the payload, in minutes.
UPDATE facts SET ttl = 60.0 * json_extract(payload, '$.ttl')
    WHERE type = 'langgraph.item' AND json_extract(payload, '$.ttl') IS NOT NULL;
UPDATE facts SET ends = (julianday(ts) - 2440587.5) * 86400.0 + ttl WHERE ttl IS NOT NULL;
UPDATE log SET after = '{"ttl":' || (60.0 * json_extract(after, '$.payload.ttl')) || ',' || substr(after, 2)
    WHERE json_extract(after, '$.type') = 'langgraph.item' AND json_extract(after, '$.payload.ttl') IS NOT NULL;

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
