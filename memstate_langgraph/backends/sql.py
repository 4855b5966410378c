"""Ops as SQL statements, once for all SQL dialects.

Each answer is a generator that yields statements and is sent their rows, so that any driver, sync or
async, can execute it. Statements are written with `?` for parameters; a dialect rewrites what differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from memstate_langgraph import ops
from memstate_langgraph.backends.sql_checkpoints import CHECKPOINT_ANSWERS
from memstate_langgraph.backends.sql_counts import COUNT_ANSWERS
from memstate_langgraph.backends.sql_items import ITEM_ANSWERS
from memstate_langgraph.backends.statements import Answer, Batch, Dialect, Row, Sql, Statements, one_of
from memstate_langgraph.facts import (
    NO_CAUSE,
    UPKEEP,
    Cause,
    Entry,
    Fact,
    Operation,
    Query,
    Standing,
    Vector,
    unvalidated,
)
from memstate_langgraph.rules import MAX_COUNT, fits, namespace_text

FIRST_PAGE, LAST_PAGE = 100, 10_000
"""How many facts are read at once where filters may refuse any of them."""

# --- rows and values

_FACT = "id, type, namespace, session_id, source, ts, version, ephemeral, singleton, schema_version, ttl, payload"
_FIELDS = _FACT.split(", ")


def fact_row(fact: Fact) -> Row:
    return (
        fact.id,
        fact.type,
        namespace_text(fact.namespace),
        fact.session_id,
        fact.source,
        fact.ts.isoformat(),
        fact.version,
        fact.ephemeral,
        fact.singleton,
        fact.schema_version,
        fact.ttl,
        json_text(fact.payload),
    )


def _fact(row: Row) -> Fact:
    return _made(row, json.loads(row[11]))


def _made(row: Sequence[Any], payload: dict[str, Any]) -> Fact:
    # What storage holds was validated on its way in; validating it again would double the cost of a read.
    fields = {
        "id": row[0],
        "type": row[1],
        "payload": payload,
        "source": row[4],
        "session_id": row[3],
        "ts": datetime.fromisoformat(row[5]),
        "namespace": _namespace(row[2]),
        "version": row[6],
        "ephemeral": bool(row[7]),
        "singleton": row[8],
        "schema_version": row[9],
        "ttl": row[10],
    }
    return unvalidated(Fact, fields)


def json_text(value: Any) -> str:
    return _encode(value)


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # json.dumps would make one per call


@lru_cache(4096)
def _namespace(text: str) -> tuple[str, ...]:
    return tuple(json.loads(text))


def fact_text(row: Row) -> str:
    """A whole fact as the log keeps it."""
    *head, payload = row
    told = {key: value for key, value in zip(_FIELDS, head, strict=False) if value is not None}
    if told["schema_version"] == 1:
        del told["schema_version"]  # as in most facts, and in all that were written before there were others
    return f'{json_text(told)[:-1]},"payload":{payload}}}'  # the payload is JSON already


def fact_from_text(text: str) -> Fact:
    told = {"schema_version": 1, **json.loads(text)}
    return _made([told.get(name) for name in _FIELDS], told["payload"])


_CAUSE = tuple(Cause.model_fields)
_ENTRY = (
    "seq, tx, op, fact_id, version, after, session_id, actor, reason, ts, idempotency_key, undoes, base, "
    + ", ".join(_CAUSE)
    + ", purged"
)
_ENTRY_OF_L = ", ".join(f"l.{name}" for name in _ENTRY.split(", "))
_SLOTS = ", ".join("?" * len(_ENTRY.split(", ")))


def entry_from_row(row: Row) -> Entry:
    fields = {
        "seq": row[0],
        "tx": row[1],
        "op": Operation(row[2]),
        "fact_id": row[3],
        "version": row[4],
        "before": None if row[21] is None else fact_from_text(row[21]),
        "after": None if row[5] is None else fact_from_text(row[5]),
        "session_id": row[6],
        "actor": row[7],
        "reason": row[8],
        "ts": datetime.fromisoformat(row[9]),
        "idempotency_key": row[10],
        "undoes": row[11],
        "base": row[12],
        "cause": unvalidated(Cause, dict(zip(_CAUSE, row[13:20], strict=True))) if any(row[13:20]) else NO_CAUSE,
        "purged": bool(row[20]),
    }
    return unvalidated(Entry, fields)


def entry_row(entry: Entry, after: Row | None) -> Row:
    return (
        entry.seq,
        entry.tx,
        str(entry.op),
        entry.fact_id,
        entry.version,
        None if after is None else fact_text(after),
        entry.session_id,
        entry.actor,
        entry.reason,
        entry.ts.isoformat(),
        entry.idempotency_key,
        entry.undoes,
        entry.base,
        *(getattr(entry.cause, name) for name in _CAUSE),
        entry.purged,
    )


_VECTOR = "id, collection, fact_id, state, due, born, died, late"


def _vector(row: Row) -> Vector:
    vector_id, index, fact_id, state, due_at, born, died, late = row
    return Vector(vector_id, index, fact_id, state, due_at, born, died, bool(late))


# --- facts and log


def load(op: ops.Load, d: Dialect) -> Statements[dict[str, Standing]]:
    # the newest entry of each id tells version and entry in force, also of what was deleted
    columns = f"l.fact_id, l.version, l.seq, l.op, l.undoes, l.base, {', '.join('f.' + n for n in _FIELDS)}"
    if len(op.ids) == 1:  # mostly; no plan for it reads more, however few rows there were when it was made
        rows = yield Sql(
            f"SELECT {columns} FROM log l LEFT JOIN facts f ON f.id = l.fact_id "
            "WHERE l.fact_id = ? AND l.version = (SELECT max(m.version) FROM log m WHERE m.fact_id = ?)",
            (*op.ids, *op.ids),
        )
    else:
        rows = yield Sql(
            f"SELECT {columns} FROM {d.rows('wanted')} "
            "JOIN log l ON l.fact_id = wanted.value "
            "AND l.version = (SELECT max(m.version) FROM log m WHERE m.fact_id = wanted.value) "
            "LEFT JOIN facts f ON f.id = l.fact_id",
            (d.listed(op.ids),),
        )
    return {
        row[0]: Standing(
            fact=None if row[6] is None else _fact(row[6:]),
            version=row[1],
            head=row[2] if row[4] is None and row[3] not in UPKEEP else row[5],
        )
        for row in rows
    }


def holders(op: ops.Holders, d: Dialect) -> Statements[dict[ops.Single, str]]:
    groups: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for typename, namespace, key in op.keys:
        groups.setdefault((typename, namespace), []).append(key)
    found: dict[ops.Single, str] = {}
    for (typename, namespace), keys in groups.items():
        rows = yield Sql(
            # key by key: for a list PostgreSQL sooner keeps a plan that reads all of the type
            "SELECT wanted.value, (SELECT f.id FROM facts f WHERE f.type = ? AND f.namespace = ? "
            f"AND f.singleton = wanted.value) FROM {d.rows('wanted')}",
            (typename, namespace_text(namespace), d.listed(keys)),
        )
        found.update({(typename, namespace, key): fact_id for key, fact_id in rows if fact_id is not None})
    return found


def find_statement(query: Query, beyond: int | None, limit: int, d: Dialect) -> Sql:
    where: list[str] = ["1 = 1"]
    parameters: list[Any] = []
    # with ids, a prefix or an end, their index is the one to use: what a tenant pays does not follow the others
    few = bool(query.prefix) or "id" in query.filters or query.ended is not None
    seq, typename = ("seq + 0", "type || ''") if few else ("seq", "type")
    if beyond is not None:
        where.append(f"{seq} {'<' if query.newest else '>'} ?")
        parameters.append(beyond)
    columns = (
        (typename, query.type),
        ("namespace", None if query.namespace is None else namespace_text(query.namespace)),
        ("session_id", query.session_id),
    )
    for column, value in columns:
        if value is not None:
            where.append(f"{column} = ?")
            parameters.append(value)
    if query.ephemeral is not None:
        where.append("ephemeral" if query.ephemeral else "NOT ephemeral")
    wanted = query.filters.get("id")
    ids = wanted["$in"] if isinstance(wanted, Mapping) and wanted.keys() == {"$in"} else [wanted]
    if "id" in query.filters and all(isinstance(fact_id, str) for fact_id in ids):
        condition, parameter = one_of(d, "id", ids)
        where.append(condition)
        parameters.append(parameter)
    if query.prefix:
        # the texts of the namespaces that begin with ["a","b" go on with a comma or end with the bracket
        begins = namespace_text(query.prefix)[:-1]
        where.append("namespace BETWEEN ? AND ?")
        parameters += [begins + ",", begins + "]"]
    if query.ended is not None:
        where.append("ends <= ?")
        parameters.append(query.ended.timestamp())
    order = f"{seq} DESC" if query.newest else seq
    parameters.append(limit)
    return Sql(f"SELECT {_FACT}, seq FROM facts WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?", parameters)


def find(op: ops.Find, d: Dialect) -> Statements[list[Fact]]:
    # Filters are matched in Python: databases disagree about what equals what in JSON.
    query = op.query
    limit = MAX_COUNT if query.limit is None else query.limit
    found: list[Fact] = []
    free = not query.filters and query.where is None
    beyond, page = None, limit if free else min(max(limit, FIRST_PAGE), LAST_PAGE)
    while len(found) < limit:
        rows = yield find_statement(query, beyond, page, d)
        facts = (_fact(row) for row in rows)
        found += [fact for fact in facts if fits(fact, query)]
        if len(rows) < page:
            break
        beyond, page = rows[-1][-1], min(page * 4, LAST_PAGE)
    return found[:limit]


def append(op: ops.Append, d: Dialect) -> Statements[None]:
    entries = op.entries
    afters = [None if entry.after is None else fact_row(entry.after) for entry in entries]
    log = [entry_row(entry, after) for entry, after in zip(entries, afters, strict=True)]
    yield Batch(f"INSERT INTO log ({_ENTRY}) VALUES ({_SLOTS})", log)
    final = {entry.fact_id: entry for entry in entries}
    as_row = {entry.seq: after for entry, after in zip(entries, afters, strict=True)}
    first_of = {entry.fact_id: entry for entry in reversed(entries)}
    # What goes goes first: a key that one fact gives up in this transaction another may take.
    gone = [
        fact_id
        for fact_id, entry in final.items()
        if (before := first_of[fact_id].before) is not None
        and (entry.after is None or before.singleton != entry.after.singleton)
    ]
    if gone:
        yield Batch(f"DELETE FROM facts WHERE {d.among('id')}", [(d.listed(gone),)])
    rows = [
        (*after, None if (ends := fact.ends()) is None else ends.timestamp(), entry.seq)
        for entry in final.values()
        if (fact := entry.after) is not None and (after := as_row[entry.seq]) is not None
    ]
    if rows:
        yield Batch(
            f"INSERT INTO facts ({_FACT}, ends, seq) VALUES ({', '.join('?' * (len(_FIELDS) + 2))}) "
            "ON CONFLICT (id) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in [*_FIELDS[1:], "ends", "seq"]),
            rows,
        )
    if op.step:
        newest = entries[-1]
        yield Batch(
            "INSERT INTO steps (seq, tx, session_id) VALUES (?, ?, ?)", [(newest.seq, newest.tx, newest.session_id)]
        )
    if op.undone:
        yield Batch(f"DELETE FROM steps WHERE {d.among('tx')}", [(d.listed(op.undone),)])


def read_log(op: ops.ReadLog, d: Dialect) -> Statements[list[Entry]]:
    where, parameters = ["1 = 1"], []
    for column in ("session_id", "fact_id", "tx", "idempotency_key"):
        value = getattr(op, column)
        if value is not None:
            where.append(f"l.{column} = ?")
            parameters.append(value)
    if op.seqs is not None:
        where.append(d.among("l.seq"))
        parameters.append(d.listed(op.seqs))
    if op.after is not None:
        where.append("l.seq > ?")
        parameters.append(op.after)
    if op.until is not None:
        where.append("l.seq <= ?")
        parameters.append(op.until)
    limit = ""
    if op.limit is not None:
        limit = " LIMIT ?"
        parameters.append(op.limit)
    # by version within one fact, so that the index that finds the rows also gives their order
    order = "l.version" if op.fact_id is not None else "l.seq"
    rows = yield Sql(
        f"SELECT {_ENTRY_OF_L}, p.after FROM log l "
        "LEFT JOIN log p ON p.fact_id = l.fact_id AND p.version = l.version - 1 "
        f"WHERE {' AND '.join(where)} ORDER BY {order} DESC{limit}",
        parameters,
    )
    return [entry_from_row(row) for row in rows]


def steps(op: ops.Steps, d: Dialect) -> Statements[list[str]]:
    conditions: list[tuple[str, Any]] = [(f"l.{name} = ?", value) for name, value in op.causes]
    if op.ran_on is not None:
        conditions.append(("l.checkpoint_id >= ?", op.ran_on))
    table = "steps s JOIN log l ON l.seq = s.seq" if conditions else "steps s"
    if op.session_id is not None:
        conditions.append(("s.session_id = ?", op.session_id))
    if op.after is not None:
        conditions.append(("s.seq > ?", op.after))
    where = f"WHERE {' AND '.join(text for text, _ in conditions)} " if conditions else ""
    limit, limits = ("", []) if op.limit is None else (" LIMIT ?", [op.limit])
    parameters = [*(value for _, value in conditions), *limits]
    rows = yield Sql(f"SELECT s.tx FROM {table} {where}ORDER BY s.seq DESC{limit}", parameters)
    return [tx for (tx,) in rows]


def position_at(op: ops.PositionAt, d: Dialect) -> Statements[int]:
    # from the end: what is asked is mostly near it
    rows = yield Sql("SELECT seq FROM log WHERE ts <= ? ORDER BY seq DESC LIMIT 1", (op.ts.isoformat(),))
    return int(rows[0][0]) if rows else 0


def facts_at(op: ops.FactsAt, d: Dialect) -> Statements[list[Fact]]:
    one, parameters = ("", ()) if op.fact_id is None else ("AND l.fact_id = ? ", (op.fact_id,))
    rows = yield Sql(
        f"SELECT l.after FROM log l WHERE l.seq <= ? {one}AND l.after IS NOT NULL AND NOT EXISTS "
        "(SELECT 1 FROM log m WHERE m.fact_id = l.fact_id AND m.version = l.version + 1 AND m.seq <= ?) "
        "ORDER BY l.seq",
        (op.at, *parameters, op.at),
    )
    return [fact_from_text(after) for (after,) in rows]


def last_seq(op: ops.LastSeq, d: Dialect) -> Statements[int]:
    ((seq,),) = yield Sql("SELECT max(seq) FROM log")
    return seq or 0


def purge(op: ops.Purge, d: Dialect) -> Statements[int]:
    which, ids = d.among("fact_id"), d.listed(op.fact_ids)
    erased = yield Sql(
        "UPDATE log SET after = NULL, reason = NULL, idempotency_key = NULL, purged = ? "
        f"WHERE {which} AND op <> 'PURGE' AND NOT purged RETURNING seq",
        (True, ids),
    )
    yield Sql(f"UPDATE vectors SET due = ? WHERE {which} AND state = 'retired' AND due > ?", (op.now, ids, op.now))
    return len(erased)


# --- vectors


def intend(op: ops.Intend, d: Dialect) -> Statements[None]:
    yield Batch(
        f"INSERT INTO vectors ({_VECTOR}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",  # told twice
        [(v.id, v.index, v.fact_id, v.state, v.due, v.born, v.died, int(v.late)) for v in op.vectors],
    )


def activate(op: ops.Activate, d: Dialect) -> Statements[int]:
    # Made live first and counted then: where writers do not exclude each other, what an update met is locked.
    yield Batch(
        "UPDATE vectors SET state = 'live', due = NULL, born = ? WHERE id = ? AND state = 'intended'",
        [(seq, vector_id) for vector_id, seq in op.born],
    )
    ids = d.listed([vector_id for vector_id, _ in op.born])
    first = min((seq for _, seq in op.born), default=0)
    ((live,),) = yield Sql(
        f"SELECT count(*) FROM vectors WHERE {d.among('id')} AND state = 'live' AND born >= ?", (ids, first)
    )
    return int(live)


def retire(op: ops.Retire, d: Dialect) -> Statements[None]:
    yield Batch(
        "UPDATE vectors SET state = 'retired', died = ?, due = ? WHERE fact_id = ? AND state = 'live' AND born < ?"
        + ("" if op.index is None else " AND collection = ?"),
        [
            (seq, op.due, fact_id, seq) if op.index is None else (seq, op.due, fact_id, seq, op.index)
            for fact_id, seq in op.died
        ],
    )


def abandon(op: ops.Abandon, d: Dialect) -> Statements[None]:
    which, parameter = ("due < ?", op.now) if op.ids is None else (d.among("id"), d.listed(op.ids))
    yield Batch(
        f"UPDATE vectors SET state = 'retired', due = ?, late = 1 WHERE state = 'intended' AND {which}",
        [(op.now, parameter)],
    )


def due(op: ops.Due, d: Dialect) -> Statements[list[Vector]]:
    rows = yield Sql(
        f"SELECT {_VECTOR} FROM vectors WHERE due <= ? AND state <> 'live' AND state <> 'intended' "
        f"AND {d.among('collection')} ORDER BY due LIMIT ?",
        (op.now, d.listed(op.indexes), op.limit),
    )
    return [_vector(row) for row in rows]


def buried(op: ops.Buried, d: Dialect) -> Statements[None]:
    ids = d.listed(op.ids)
    yield Sql(
        f"DELETE FROM vectors WHERE {d.among('id')} "
        "AND ((state = 'tombstone' AND due <= ?) OR (state = 'retired' AND late = 0))",
        (ids, op.now),
    )
    yield Sql(
        f"UPDATE vectors SET state = 'tombstone', due = ? WHERE {d.among('id')} AND state = 'retired'", (op.until, ids)
    )


def hydrate(op: ops.Hydrate, d: Dialect) -> Statements[dict[str, Fact]]:
    rows = yield Sql(
        f"SELECT v.id, l.after FROM vectors v JOIN log l ON l.seq = v.born "
        f"WHERE {d.among('v.id')} AND v.born <= ? AND (v.died IS NULL OR v.died > ?) AND l.after IS NOT NULL",
        (d.listed(op.vectors), op.at, op.at),
    )
    return {vector_id: fact_from_text(after) for vector_id, after in rows}


def read_vectors(op: ops.ReadVectors, d: Dialect) -> Statements[list[Vector]]:
    rows = yield Sql(
        f"SELECT {_VECTOR} FROM vectors WHERE collection = ? AND id > ? ORDER BY id LIMIT ?",
        (op.index, op.after, op.limit),
    )
    return [_vector(row) for row in rows]


def expunge(op: ops.Expunge, d: Dialect) -> Statements[None]:
    yield Sql(f"DELETE FROM vectors WHERE {d.among('id')}", (d.listed(op.ids),))


ANSWERS: dict[type[ops.Op[Any]], Answer] = {
    ops.Load: load,
    ops.Holders: holders,
    ops.Find: find,
    ops.Append: append,
    ops.ReadLog: read_log,
    ops.Steps: steps,
    ops.LastSeq: last_seq,
    ops.PositionAt: position_at,
    ops.FactsAt: facts_at,
    ops.Purge: purge,
    ops.Intend: intend,
    ops.Activate: activate,
    ops.Retire: retire,
    ops.Abandon: abandon,
    ops.Due: due,
    ops.Buried: buried,
    ops.Hydrate: hydrate,
    ops.ReadVectors: read_vectors,
    ops.Expunge: expunge,
    **CHECKPOINT_ANSWERS,
    **COUNT_ANSWERS,
    **ITEM_ANSWERS,
}
