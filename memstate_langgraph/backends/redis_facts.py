"""The ops about facts, log, vectors and items, answered from Redis; the map of the keys is in `lua/commit.lua`.

An index may name what is no longer so, a row never does: rows are believed, indexes only lead to them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any

from memstate_langgraph import item_ops, ops
from memstate_langgraph.backends.redis_view import Asking, ByName, ByScore, View, beginning, blob, joined, text
from memstate_langgraph.backends.sql import (
    FIRST_PAGE,
    LAST_PAGE,
    entry_from_row,
    entry_row,
    fact_from_text,
    fact_row,
    fact_text,
    json_text,
)
from memstate_langgraph.facts import Entry, Fact, Operation, Query, Standing, Vector
from memstate_langgraph.rules import fits, namespace_text

Answer = Callable[[Any, View], Asking[Any]]

VERSION, SEQ = b"version", b"seq"
_STEP_CAUSES = ("thread_id", "run_id", "task_id", "tool_call_id")
"""By which transactions in force are found; what else is asked of a cause is compared."""


# --- rows


def _fact_row(fact: Fact, seq: int) -> bytes:
    return f"{seq} {fact_text(fact_row(fact))}".encode()


def _fact(row: bytes) -> tuple[int, Fact]:
    seq, _, told = row.partition(b" ")
    return int(seq), fact_from_text(told.decode())


def _entry_row(entry: Entry, previous: int | None) -> bytes:
    """`previous` is the seq of the fact's entry before this one: what that left is what this one found."""
    row = list(entry_row(entry, None if entry.after is None else fact_row(entry.after)))
    row[5], after = previous, row[5]
    return _told(row, after)


def _told(columns: list[Any], after: str | None) -> bytes:
    return f"{json_text(columns)}\n{after or ''}".encode()


def _entry(row: bytes) -> tuple[list[Any], str | None]:
    """The columns of an entry, with the seq of the previous one where SQL has `after`, and `after`."""
    head, _, after = row.decode().partition("\n")
    return json.loads(head), after or None


def _after(row: bytes | None) -> str | None:
    return None if row is None else _entry(row)[1]


def _vector(row: bytes) -> Vector:
    return Vector(*json.loads(row))


def _number(value: int) -> bytes:
    return b"%d" % value


# --- facts


def load(op: ops.Load, view: View) -> Asking[dict[str, Standing]]:
    ids = [blob(fact_id) for fact_id in op.ids]
    heads, facts = yield from view.fields((view.key("heads"), ids), (view.key("facts"), ids))
    found: dict[str, Standing] = {}
    for fact_id, told, row in zip(op.ids, heads, facts, strict=True):
        if told is not None:
            version, _, head = json.loads(told)
            found[fact_id] = Standing(None if row is None else _fact(row)[1], version, head)
    return found


def _single(typename: str, namespace: Sequence[str], key: str) -> bytes:
    return json_text([typename, namespace_text(tuple(namespace)), key]).encode()


def holders(op: ops.Holders, view: View) -> Asking[dict[ops.Single, str]]:
    (ids,) = yield from view.fields((view.key("singletons"), [_single(*key) for key in op.keys]))
    return {key: text(fact_id) for key, fact_id in zip(op.keys, ids, strict=True) if fact_id is not None}


def _agrees(fact: Fact, query: Query) -> bool:
    return (
        query.type in (None, fact.type)
        and query.namespace in (None, fact.namespace)
        and query.session_id in (None, fact.session_id)
        and query.ephemeral in (None, fact.ephemeral)
        and (query.ended is None or fact.has_expired(query.ended))
        and fits(fact, query)
    )


def _wanted_ids(query: Query) -> list[str] | None:
    """The ids that a query is about, if it names them."""
    if "id" not in query.filters:
        return None
    wanted = query.filters["id"]
    ids = wanted["$in"] if isinstance(wanted, Mapping) and wanted.keys() == {"$in"} else [wanted]
    return list(dict.fromkeys(ids)) if all(isinstance(fact_id, str) for fact_id in ids) else None


def find(op: ops.Find, view: View) -> Asking[list[Fact]]:
    query = op.query
    ids = _wanted_ids(query)
    if ids is None and query.ended is not None:
        ended = yield from view.members(ByScore(view.key("facts:ends"), high=query.ended.timestamp()))
        ids = [text(fact_id) for fact_id in ended]
    elif ids is None and query.session_id is None:
        if query.prefix:
            # the texts of the namespaces that begin with ["a","b" go on with a comma or end with the bracket
            begins = namespace_text(query.prefix)[:-1].encode()
            ids = yield from _within(view, ByName(view.key("facts:namespaces"), begins + b",", begins + b"]\xff"))
        elif query.namespace is not None and query.type is None:
            begins = joined(namespace_text(query.namespace), "")
            ids = yield from _within(view, beginning(view.key("facts:namespaces"), begins))
    if ids is not None:
        return (yield from _among(view, ids, query))

    def chosen(row: bytes) -> Fact | None:
        fact = _fact(row)[1]
        return fact if _agrees(fact, query) else None

    limit = query.limit
    exact = query.where is None and not query.filters
    page = limit if limit is not None and exact else min(max(limit or LAST_PAGE, FIRST_PAGE), LAST_PAGE)
    span = ByScore(_facts_index(view, query), newest=query.newest)
    return (yield from view.chosen(span, view.key("facts"), chosen, limit, min(page, LAST_PAGE)))


def _within(view: View, span: ByName) -> Asking[list[str]]:
    members = yield from view.members(span)
    return [member.decode().rpartition("\0")[2] for member in members]


def _among(view: View, ids: list[str], query: Query) -> Asking[list[Fact]]:
    (rows,) = yield from view.fields((view.key("facts"), [blob(fact_id) for fact_id in ids]))
    held = sorted((_fact(row) for row in rows if row is not None), key=lambda pair: pair[0], reverse=query.newest)
    found = [fact for _, fact in held if _agrees(fact, query)]
    return found if query.limit is None else found[: query.limit]


def _facts_index(view: View, query: Query) -> str:
    if query.session_id is not None:
        return view.key("facts:ephemeral" if query.ephemeral else "facts:session", query.session_id)
    if query.type is not None and query.namespace is not None:
        return view.key("facts:space", query.type, namespace_text(query.namespace))
    return view.key("facts:all") if query.type is None else view.key("facts:type", query.type)


def _fact_indexes(view: View, fact: Fact) -> list[str]:
    """The sorted sets by seq that a fact is in."""
    keys = [
        view.key("facts:all"),
        view.key("facts:type", fact.type),
        view.key("facts:space", fact.type, namespace_text(fact.namespace)),
    ]
    if fact.session_id is not None:
        keys.append(view.key("facts:session", fact.session_id))
        if fact.ephemeral:
            keys.append(view.key("facts:ephemeral", fact.session_id))
    return keys


def _forget(view: View, fact: Fact) -> None:
    for key in [*_fact_indexes(view, fact), view.key("facts:ends")]:
        view.remove(key, fact.id)
    view.remove(view.key("facts:namespaces"), joined(namespace_text(fact.namespace), fact.id))
    if fact.singleton is not None:
        view.drop(view.key("singletons"), _single(fact.type, fact.namespace, fact.singleton))
    view.drop(view.key("facts"), fact.id)


def _keep(view: View, fact: Fact, seq: int) -> None:
    view.put(view.key("facts"), fact.id, _fact_row(fact, seq))
    for key in _fact_indexes(view, fact):
        view.add(key, fact.id, seq)
    view.add(view.key("facts:namespaces"), joined(namespace_text(fact.namespace), fact.id))
    if (ends := fact.ends()) is not None:
        view.add(view.key("facts:ends"), fact.id, ends.timestamp())
    if fact.singleton is not None:
        view.put(view.key("singletons"), _single(fact.type, fact.namespace, fact.singleton), blob(fact.id))


# --- the log


def last_seq(op: object, view: View) -> Asking[int]:
    return int((yield from view.one(view.key("meta"), text(SEQ))) or 0)


def position(view: View) -> Asking[int]:
    """Of the log, with what this plan appended; it may have moved on when the plan commits."""
    appended = view.written(view.key("meta"), SEQ)
    if appended is None and view.position is None:
        view.position = yield from last_seq(None, view)
    return view.position or 0 if appended is None else int(appended)


def append(op: ops.Append, view: View) -> Asking[None]:
    final = {entry.fact_id: entry for entry in op.entries}
    ids = [blob(fact_id) for fact_id in final]
    heads, facts = yield from view.fields((view.key("heads"), ids), (view.key("facts"), ids))
    newest = {text(name): json.loads(told)[1] for name, told in zip(ids, heads, strict=True) if told is not None}
    for entry in op.entries:
        seq = _number(entry.seq)
        view.put_first(view.key("log"), seq, _entry_row(entry, newest.get(entry.fact_id)))
        newest[entry.fact_id] = entry.seq
        view.add(view.key("log:tx", entry.tx), seq, entry.seq)
        view.add(view.key("log:fact", entry.fact_id), seq, entry.seq)
        if entry.session_id is not None:
            view.add(view.key("log:session", entry.session_id), seq, entry.seq)
        if entry.idempotency_key is not None:
            view.put_first(view.key("log:keys"), entry.idempotency_key, seq)
        view.put(view.key("heads"), entry.fact_id, json_text([entry.version, entry.seq, entry.head]).encode())
    view.put(view.key("meta"), SEQ, _number(op.entries[-1].seq))
    # What goes goes first: a key that one fact gives up in this transaction another may take.
    for row in facts:
        if row is not None:
            _forget(view, _fact(row)[1])
    for entry in final.values():
        if entry.after is not None:
            _keep(view, entry.after, entry.seq)
    yield from _count_steps(op, view)


def _count_steps(op: ops.Append, view: View) -> Asking[None]:
    steps = view.key("steps")
    (rows,) = yield from view.fields((steps, [blob(tx) for tx in op.undone]))
    for tx, row in zip(op.undone, rows, strict=True):
        if row is not None:
            view.drop(steps, tx)
            for key in _step_indexes(view, *json.loads(row)[1:]):
                view.remove(key, tx)
    if op.step:
        entry = op.entries[-1]
        cause = entry.cause.model_dump(exclude_none=True)
        view.put(steps, entry.tx, json_text([entry.seq, entry.session_id, cause]).encode())
        for key in _step_indexes(view, entry.session_id, cause):
            view.add(key, entry.tx, entry.seq)


def _step_indexes(view: View, session_id: str | None, cause: Mapping[str, str]) -> list[str]:
    keys = [view.key("steps:all")]
    if session_id is not None:
        keys.append(view.key("steps:session", session_id))
    return keys + [view.key(f"steps:{name}", cause[name]) for name in _STEP_CAUSES if name in cause]


def steps(op: ops.Steps, view: View) -> Asking[list[str]]:
    after = -1 if op.after is None else op.after
    key = view.key("steps:all") if op.session_id is None else view.key("steps:session", op.session_id)
    key = next((view.key(f"steps:{name}", value) for name, value in op.causes if name in _STEP_CAUSES), key)

    def chosen(row: bytes) -> int | None:
        seq, session_id, cause = json.loads(row)
        agrees = (
            op.session_id in (None, session_id)
            and all(cause.get(name) == value for name, value in op.causes)
            and (op.ran_on is None or cause.get("checkpoint_id", "") >= op.ran_on)
        )
        return seq if agrees else None

    span = ByScore(key, low=after + 1, newest=True)
    seqs = yield from view.chosen(span, view.key("steps"), chosen, op.limit, FIRST_PAGE)
    (rows,) = yield from view.fields((view.key("log"), [_number(seq) for seq in seqs]))
    return [_entry(row)[0][1] for row in rows if row is not None]


def read_log(op: ops.ReadLog, view: View) -> Asking[list[Entry]]:
    low, high = 0 if op.after is None else op.after + 1, op.until
    asked = {1: op.tx, 3: op.fact_id, 6: op.session_id, 10: op.idempotency_key}
    conditions = [(column, value) for column, value in asked.items() if value is not None]

    def chosen(row: bytes) -> bytes | None:
        columns, _ = _entry(row)
        seq = columns[0]
        agrees = low <= seq and (high is None or seq <= high) and all(columns[c] == value for c, value in conditions)
        return row if agrees else None

    log = view.key("log")
    if op.seqs is not None or op.idempotency_key is not None:
        seqs: Iterable[int]
        if op.seqs is None:
            known = yield from view.one(view.key("log:keys"), op.idempotency_key or "")
            seqs = [] if known is None else [int(known)]
        else:
            seqs = sorted(set(op.seqs), reverse=True)
        (rows,) = yield from view.fields((log, [_number(seq) for seq in seqs]))
        found = [row for row in rows if row is not None and chosen(row) is not None]
    elif (key := _log_index(op, view)) is not None:
        span = ByScore(key, low=low, high=float("inf") if high is None else high, newest=True)
        page = LAST_PAGE if op.limit is None else min(max(op.limit, 1), LAST_PAGE)
        found = yield from view.chosen(span, log, chosen, op.limit, page)
    else:
        last = yield from last_seq(op, view)
        top = last if high is None else min(high, last)
        found = yield from _down_the_log(view, top, low, chosen, op.limit)
    return (yield from _entries(view, found if op.limit is None else found[: op.limit]))


def _log_index(op: ops.ReadLog, view: View) -> str | None:
    for name, value in (("tx", op.tx), ("fact", op.fact_id), ("session", op.session_id)):
        if value is not None:
            return view.key(f"log:{name}", value)
    return None


def _down_the_log(
    view: View, top: int, low: int, chosen: Callable[[bytes], bytes | None], limit: int | None
) -> Asking[list[bytes]]:
    """Rows from a seq downwards. Few seqs are missing, so they are counted, not looked up."""
    found: list[bytes] = []
    page = LAST_PAGE if limit is None else max(1, min(limit, LAST_PAGE))
    while top >= max(low, 1) and (limit is None or len(found) < limit):
        bottom = max(low, 1, top - page + 1)
        (rows,) = yield from view.fields((view.key("log"), [_number(seq) for seq in range(top, bottom - 1, -1)]))
        found += [row for row in rows if row is not None and chosen(row) is not None]
        top, page = bottom - 1, min(page * 4, LAST_PAGE)
    return found


def _entries(view: View, rows: Sequence[bytes]) -> Asking[list[Entry]]:
    told = [_entry(row) for row in rows]
    names = [_number(columns[5]) for columns, _ in told if columns[5] is not None]
    (previous,) = yield from view.fields((view.key("log"), names))
    before = dict(zip(names, previous, strict=True))
    return [
        entry_from_row(
            (*columns[:5], after, *columns[6:], None if columns[5] is None else _after(before[_number(columns[5])]))
        )
        for columns, after in told
    ]


def position_at(op: ops.PositionAt, view: View) -> Asking[int]:
    # from the end: what is asked is mostly near it
    wanted = op.ts.isoformat()
    last = yield from last_seq(op, view)
    found = yield from _down_the_log(view, last, 1, lambda row: row if _entry(row)[0][9] <= wanted else None, 1)
    return int(_entry(found[0])[0][0]) if found else 0


def facts_at(op: ops.FactsAt, view: View) -> Asking[list[Fact]]:
    if op.fact_id is not None:
        span = ByScore(view.key("log:fact", op.fact_id), high=op.at, newest=True, limit=1)
        newest = [row for _, row in (yield from view.rows(span, view.key("log")))]
    else:
        rows = yield from _down_the_log(view, op.at, 1, lambda row: row, None)
        by_fact: dict[str, bytes] = {}
        for row in rows:
            by_fact.setdefault(_entry(row)[0][3], row)
        newest = list(reversed(by_fact.values()))
    return [fact_from_text(after) for row in newest if (after := _after(row)) is not None]


def count(op: ops.Count, view: View) -> Asking[ops.Counts]:
    facts = Counter(fact.type for fact in (yield from find(ops.Find(Query()), view)))
    names = [text(name) for name in (yield from view.members(ByName(view.key("vectors:names"))))]
    vectors: Counter[tuple[str, str]] = Counter()
    for name in names:
        rows = yield from view.rows(ByName(view.key("vectors:in", name)), view.key("vectors"))
        vectors.update((name, _vector(row).state) for _, row in rows)
    entries, in_force = yield [("HLEN", view.key("log")), ("HLEN", view.key("steps"))]
    return ops.Counts(dict(sorted(facts.items())), entries, in_force, dict(sorted(vectors.items())))


def purge(op: ops.Purge, view: View) -> Asking[int]:
    log = view.key("log")
    spans = [ByScore(view.key("log:fact", fact_id)) for fact_id in op.fact_ids]
    seqs = [seq for held in (yield from view.ranges(*spans, rows=log)) for _, seq in held]
    (rows,) = yield from view.fields((log, seqs))
    erased = 0
    for seq, row in zip(seqs, rows, strict=True):
        columns: list[Any] = [] if row is None else _entry(row)[0]
        if not columns or columns[2] == Operation.PURGE or columns[20]:
            continue
        if columns[10] is not None:
            view.drop(view.key("log:keys"), columns[10])
        columns[8] = columns[10] = None
        columns[20] = True
        view.put(log, seq, _told(columns, None))
        erased += 1
    for ids in (yield from _vector_ids(view, op.fact_ids)):
        for vector in (yield from _vectors(view, ids)):
            if vector.state == "retired" and (vector.due or 0) > op.now:
                _become(view, vector, replace(vector, due=op.now))
    return erased


# --- vectors


def _vectors(view: View, ids: Iterable[str]) -> Asking[list[Vector]]:
    (rows,) = yield from view.fields((view.key("vectors"), [blob(vector_id) for vector_id in ids]))
    return [_vector(row) for row in rows if row is not None]


def _vector_ids(view: View, fact_ids: Iterable[str]) -> Asking[list[list[str]]]:
    """For each fact, its vectors that are live or were; their rows are read with them."""
    spans = [ByName(view.key("vectors:of", fact_id)) for fact_id in fact_ids]
    held = yield from view.ranges(*spans, rows=view.key("vectors"))
    return [[text(member) for _, member in members] for members in held]


def _vector_indexes(view: View, vector: Vector) -> list[tuple[str, float]]:
    """The sorted sets that a vector is in because of its state, with its score there."""
    keys = [(view.key("vectors:of", vector.fact_id), 0.0)] if vector.born is not None else []
    if vector.state == "intended":
        keys.append((view.key("vectors:leases"), vector.due or 0))
    elif vector.state != "live":
        keys.append((view.key("vectors:due", vector.index), vector.due or 0))
    return keys


def _become(view: View, old: Vector, new: Vector | None) -> None:
    for key, _ in _vector_indexes(view, old):
        view.remove(key, old.id)
    if new is None:
        view.drop(view.key("vectors"), old.id)
        view.remove(view.key("vectors:in", old.index), old.id)
    else:
        for key, score in _vector_indexes(view, new):
            view.add(key, new.id, score)
        view.put(view.key("vectors"), new.id, json_text(astuple(new)).encode())


def intend(op: ops.Intend, view: View) -> Asking[None]:
    for vector in op.vectors:
        view.put_first(view.key("vectors"), vector.id, json_text(astuple(vector)).encode())  # told twice
        view.add(view.key("vectors:names"), vector.index)
        view.add(view.key("vectors:in", vector.index), vector.id)
        for key, score in _vector_indexes(view, vector):
            view.add(key, vector.id, score)
    return
    yield


def activate(op: ops.Activate, view: View) -> Asking[int]:
    born = dict(op.born)
    live = 0
    for vector in (yield from _vectors(view, born)):
        if vector.state == "intended":
            _become(view, vector, replace(vector, state="live", due=None, born=born[vector.id]))
            live += 1
        elif vector.state == "live" and (vector.born or 0) >= min(born.values()):
            live += 1
    return live


def retire(op: ops.Retire, view: View) -> Asking[None]:
    held = yield from _vector_ids(view, [fact_id for fact_id, _ in op.died])
    for (_, seq), ids in zip(op.died, held, strict=True):
        for vector in (yield from _vectors(view, ids)):
            if vector.state == "live" and (vector.born or 0) < seq and op.index in (None, vector.index):
                _become(view, vector, replace(vector, state="retired", died=seq, due=op.due))


def abandon(op: ops.Abandon, view: View) -> Asking[None]:
    ids = op.ids
    if ids is None:
        expired = yield from view.members(ByScore(view.key("vectors:leases"), high=op.now))
        ids = tuple(map(text, expired))
    for vector in (yield from _vectors(view, ids)):
        if vector.state == "intended" and (op.ids is not None or (vector.due or 0) < op.now):
            _become(view, vector, replace(vector, state="retired", due=op.now, late=True))


def due(op: ops.Due, view: View) -> Asking[list[Vector]]:
    spans = [ByScore(view.key("vectors:due", name), high=op.now, limit=op.limit) for name in op.indexes]
    held = yield from view.ranges(*spans, rows=view.key("vectors"))
    found = yield from _vectors(view, [text(member) for members in held for _, member in members])
    ripe = [v for v in found if v.state in ("retired", "tombstone") and v.due is not None and v.due <= op.now]
    return sorted(ripe, key=lambda vector: vector.due or 0)[: op.limit]


def buried(op: ops.Buried, view: View) -> Asking[None]:
    for vector in (yield from _vectors(view, op.ids)):
        if vector.state == "retired" and vector.late:
            _become(view, vector, replace(vector, state="tombstone", due=op.until))
        elif vector.state == "retired" or (vector.state == "tombstone" and (vector.due or 0) <= op.now):
            _become(view, vector, None)


def hydrate(op: ops.Hydrate, view: View) -> Asking[dict[str, Fact]]:
    vectors = [
        vector
        for vector in (yield from _vectors(view, op.vectors))
        if vector.born is not None and vector.born <= op.at and (vector.died is None or vector.died > op.at)
    ]
    (rows,) = yield from view.fields((view.key("log"), [_number(vector.born or 0) for vector in vectors]))
    afters = zip(vectors, map(_after, rows), strict=True)
    return {vector.id: fact_from_text(after) for vector, after in afters if after is not None}


def read_vectors(op: ops.ReadVectors, view: View) -> Asking[list[Vector]]:
    span = ByName(view.key("vectors:in", op.index), blob(op.after), behind=True, limit=op.limit)
    return [_vector(row) for _, row in (yield from view.rows(span, view.key("vectors")))]


def expunge(op: ops.Expunge, view: View) -> Asking[None]:
    for vector in (yield from _vectors(view, op.ids)):
        _become(view, vector, None)


# --- items


def last_reads(op: item_ops.LastReads, view: View) -> Asking[dict[str, float]]:
    (scores,) = (yield [("ZMSCORE", view.key("reads"), *op.ids)]) if op.ids else ([],)
    return {fact_id: float(at) for fact_id, at in zip(op.ids, scores, strict=True) if at is not None}


def was_read(op: item_ops.WasRead, view: View) -> Asking[None]:
    for fact_id in op.ids:
        # GT: two readers may come in the other order
        tell = ("ZREM", view.key("reads")) if op.at is None else ("ZADD", view.key("reads"), "GT", repr(op.at))
        view.blind.append((*tell, fact_id))
    return
    yield


FACT_ANSWERS: dict[type[ops.Op[Any]], Answer] = {
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
    ops.Count: count,
    ops.Intend: intend,
    ops.Activate: activate,
    ops.Retire: retire,
    ops.Abandon: abandon,
    ops.Due: due,
    ops.Buried: buried,
    ops.Hydrate: hydrate,
    ops.ReadVectors: read_vectors,
    ops.Expunge: expunge,
    item_ops.LastReads: last_reads,
    item_ops.WasRead: was_read,
}
