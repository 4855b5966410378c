"""Ops as SQL statements, once for all SQL dialects.

Each answer is a generator that yields statements and is sent their rows, so that any driver, sync or
async, can execute it. Statements are written with `?` for parameters; a dialect rewrites what differs.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from memstate_langgraph import ops
from memstate_langgraph.backends.sql_checkpoints import CHECKPOINT_ANSWERS
from memstate_langgraph.backends.sql_counts import COUNT_ANSWERS
from memstate_langgraph.backends.statements import Answer, Batch, Dialect, Row, Scan, Sql, Statements
from memstate_langgraph.facts import Cause, Entry, Fact, Operation, Query, Standing, Vector
from memstate_langgraph.rules import matches

# --- rows and values

_FACT = "id, type, namespace, session_id, source, ts, version, ephemeral, singleton, payload"
_FIELDS = _FACT.split(", ")


def _fact_row(fact: Fact) -> Row:
    return (
        fact.id,
        fact.type,
        namespace_text(fact.namespace),
        fact.session_id,
        fact.source,
        fact.ts.isoformat(),
        fact.version,
        int(fact.ephemeral),
        fact.singleton,
        json_text(fact.payload),
    )


def _fact(row: Row) -> Fact:
    # What storage holds was validated on its way in; validating it again would double the cost of a read.
    return Fact.model_construct(
        id=row[0],
        type=row[1],
        namespace=tuple(json.loads(row[2])),
        session_id=row[3],
        source=row[4],
        ts=datetime.fromisoformat(row[5]),
        version=row[6],
        ephemeral=bool(row[7]),
        singleton=row[8],
        payload=json.loads(row[9]),
    )


def json_text(value: Any) -> str:
    return _encode(value)


_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode  # json.dumps would make one per call


def namespace_text(namespace: tuple[str, ...]) -> str:
    return json_text(list(namespace))


def fact_text(fact: Fact) -> str:
    """A whole fact as the log keeps it."""
    *head, payload = _fact_row(fact)
    told = {key: value for key, value in zip(_FIELDS, head, strict=False) if value is not None}
    return f'{json_text(told)[:-1]},"payload":{payload}}}'  # the payload is JSON already


def fact_from_text(text: str) -> Fact:
    row = json.loads(text)
    row["payload"] = json_text(row["payload"])
    return _fact(tuple(row.get(name) for name in _FIELDS))


_CAUSE = tuple(Cause.model_fields)
_ENTRY = (
    "seq, tx, op, fact_id, version, after, session_id, actor, reason, ts, idempotency_key, undoes, base, "
    + ", ".join(_CAUSE)
)
_ENTRY_OF_L = ", ".join(f"l.{name}" for name in _ENTRY.split(", "))
_SLOTS = ", ".join("?" * len(_ENTRY.split(", ")))


def _entry(row: Row) -> Entry:
    return Entry.model_construct(
        seq=row[0],
        tx=row[1],
        op=Operation(row[2]),
        fact_id=row[3],
        version=row[4],
        after=None if row[5] is None else fact_from_text(row[5]),
        session_id=row[6],
        actor=row[7],
        reason=row[8],
        ts=datetime.fromisoformat(row[9]),
        idempotency_key=row[10],
        undoes=row[11],
        base=row[12],
        cause=Cause.model_construct(**dict(zip(_CAUSE, row[13:20], strict=True))),
        before=None if row[20] is None else fact_from_text(row[20]),
    )


def _entry_row(entry: Entry) -> Row:
    return (
        entry.seq,
        entry.tx,
        str(entry.op),
        entry.fact_id,
        entry.version,
        None if entry.after is None else fact_text(entry.after),
        entry.session_id,
        entry.actor,
        entry.reason,
        entry.ts.isoformat(),
        entry.idempotency_key,
        entry.undoes,
        entry.base,
        *(getattr(entry.cause, name) for name in _CAUSE),
    )


_VECTOR = "id, collection, fact_id, state, due, born, died, late"


def _vector(row: Row) -> Vector:
    vector_id, index, fact_id, state, due_at, born, died, late = row
    return Vector(vector_id, index, fact_id, state, due_at, born, died, bool(late))


# --- facts and log


def load(op: ops.Load, d: Dialect) -> Statements[dict[str, Standing]]:
    # the newest entry of each id tells version and entry in force, also of what was deleted
    rows = yield Sql(
        f"SELECT l.fact_id, l.version, l.seq, l.undoes, l.base, {', '.join('f.' + n for n in _FIELDS)} "
        f"FROM {d.rows('wanted')} "
        "JOIN log l ON l.fact_id = wanted.value "
        "AND l.version = (SELECT max(m.version) FROM log m WHERE m.fact_id = wanted.value) "
        "LEFT JOIN facts f ON f.id = l.fact_id",
        (d.listed(op.ids),),
    )
    return {
        row[0]: Standing(
            fact=None if row[5] is None else _fact(row[5:]),
            version=row[1],
            head=row[2] if row[3] is None else row[4],
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
            f"SELECT singleton, id FROM facts WHERE type = ? AND namespace = ? AND {d.among('singleton')}",
            (typename, namespace_text(namespace), d.listed(keys)),
        )
        found.update({(typename, namespace, key): fact_id for key, fact_id in rows})
    return found


def find_statement(query: Query) -> Scan:
    where, parameters = ["1 = 1"], []
    columns = (
        ("type", query.type),
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
    if isinstance(wanted, str):
        where.append("id = ?")
        parameters.append(wanted)
    return Scan(f"SELECT {_FACT} FROM facts WHERE {' AND '.join(where)} ORDER BY seq", parameters)


def find(op: ops.Find, d: Dialect) -> Statements[list[Fact]]:
    # Filters are matched in Python: databases disagree about what equals what in JSON.
    found: list[Fact] = []
    if op.query.limit == 0:
        return found
    rows = yield find_statement(op.query)
    for row in rows:
        fact = _fact(row)
        if matches(fact, op.query.filters):
            found.append(fact)
            if len(found) == op.query.limit:
                break
    return found


def reserve(op: ops.Reserve, d: Dialect) -> Statements[int]:
    return 1 + (yield from last_seq(ops.LastSeq(), d))


def append(op: ops.Append, d: Dialect) -> Statements[None]:
    entries = op.entries
    yield Batch(f"INSERT INTO log ({_ENTRY}) VALUES ({_SLOTS})", [_entry_row(entry) for entry in entries])
    final = {entry.fact_id: entry for entry in entries}
    first_of = {entry.fact_id: entry for entry in reversed(entries)}
    # What goes goes first: a key that one fact gives up in this transaction another may take.
    gone = [
        fact_id
        for fact_id, entry in final.items()
        if (before := first_of[fact_id].before) is not None
        and (entry.after is None or before.singleton != entry.after.singleton)
    ]
    if gone:
        yield Sql(f"DELETE FROM facts WHERE {d.among('id')}", (d.listed(gone),))
    rows = [(*_fact_row(entry.after), entry.seq) for entry in final.values() if entry.after is not None]
    if rows:
        yield Batch(
            f"INSERT INTO facts ({_FACT}, seq) VALUES ({', '.join('?' * (len(_FIELDS) + 1))}) "
            "ON CONFLICT (id) DO UPDATE SET "
            + ", ".join(f"{name} = excluded.{name}" for name in [*_FIELDS[1:], "seq"]),
            rows,
        )
    if op.step:
        newest = entries[-1]
        yield Sql(
            "INSERT INTO steps (seq, tx, session_id) VALUES (?, ?, ?)", (newest.seq, newest.tx, newest.session_id)
        )
    if op.undone:
        yield Sql(f"DELETE FROM steps WHERE {d.among('tx')}", (d.listed(op.undone),))


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
    return [_entry(row) for row in rows]


def steps(op: ops.Steps, d: Dialect) -> Statements[list[str]]:
    where, parameters = ("", ()) if op.session_id is None else ("WHERE session_id = ?", (op.session_id,))
    rows = yield Sql(f"SELECT tx FROM steps {where} ORDER BY seq DESC LIMIT ?", (*parameters, op.limit))
    return [tx for (tx,) in rows]


def last_seq(op: ops.LastSeq, d: Dialect) -> Statements[int]:
    ((seq,),) = yield Sql("SELECT max(seq) FROM log")
    return seq or 0


# --- vectors


def intend(op: ops.Intend, d: Dialect) -> Statements[None]:
    yield Batch(
        f"INSERT INTO vectors ({_VECTOR}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(v.id, v.index, v.fact_id, v.state, v.due, v.born, v.died, int(v.late)) for v in op.vectors],
    )


def activate(op: ops.Activate, d: Dialect) -> Statements[int]:
    ids = d.listed([vector_id for vector_id, _ in op.born])
    ((intended,),) = yield Sql(f"SELECT count(*) FROM vectors WHERE {d.among('id')} AND state = 'intended'", (ids,))
    yield Batch(
        "UPDATE vectors SET state = 'live', due = NULL, born = ? WHERE id = ? AND state = 'intended'",
        [(seq, vector_id) for vector_id, seq in op.born],
    )
    return int(intended)


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
    yield Sql(
        f"UPDATE vectors SET state = 'retired', due = ?, late = 1 WHERE state = 'intended' AND {which}",
        (op.now, parameter),
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
        f"WHERE {d.among('v.id')} AND v.born <= ? AND (v.died IS NULL OR v.died > ?)",
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
    ops.Reserve: reserve,
    ops.Append: append,
    ops.ReadLog: read_log,
    ops.Steps: steps,
    ops.LastSeq: last_seq,
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
}
