-- What sqlite_2.sql says, in PostgreSQL's words.
ALTER TABLE {prefix}facts ADD COLUMN schema_version BIGINT NOT NULL DEFAULT 1;
ALTER TABLE {prefix}facts ADD COLUMN ttl DOUBLE PRECISION;
ALTER TABLE {prefix}facts ADD COLUMN ends DOUBLE PRECISION;
CREATE INDEX {prefix}facts_ends ON {prefix}facts (ends) WHERE ends IS NOT NULL;
ALTER TABLE {prefix}log ADD COLUMN purged BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE {prefix}log DISABLE TRIGGER {prefix}log_keeps_rows;

UPDATE {prefix}facts SET ttl = 60.0 * (payload ->> 'ttl')::float8
    WHERE type = 'langgraph.item' AND payload ->> 'ttl' IS NOT NULL;
UPDATE {prefix}facts SET ends = extract(epoch FROM ts::timestamptz)::float8 + ttl WHERE ttl IS NOT NULL;
UPDATE {prefix}log
    SET after = '{"ttl":' || (60.0 * (after::json -> 'payload' ->> 'ttl')::float8) || ',' || substr(after, 2)
    WHERE after::json ->> 'type' = 'langgraph.item' AND after::json -> 'payload' ->> 'ttl' IS NOT NULL;

-- The one exception: what a purged fact once was is erased, when an entry says that it happened.
CREATE OR REPLACE FUNCTION {prefix}log_keeps() RETURNS trigger LANGUAGE plpgsql AS $$
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
ALTER TABLE {prefix}log ENABLE TRIGGER {prefix}log_keeps_rows;
