"""The ops about checkpoints, answered from Redis; the map of the keys is in `lua/commit.lua`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ormsgpack

from memstate_langgraph import checkpoint_ops as ops
from memstate_langgraph.backends.redis_facts import Answer, position
from memstate_langgraph.backends.redis_view import Asking, ByName, View, beginning, blob, joined, parted, text
from memstate_langgraph.backends.scopes import thread
from memstate_langgraph.ops import Op

PAGE = 100
"""How many checkpoints are read at once where any of them may be refused."""


def _packed(*columns: Any) -> bytes:
    return ormsgpack.packb(columns)


# --- where rows are


def _checkpoints(view: View, place: ops.Place) -> str:
    return view.key("checkpoints", place.thread_id, place.checkpoint_ns)


def _ids(view: View, thread_id: str, checkpoint_ns: str) -> str:
    return view.key("ids", thread_id, checkpoint_ns)


def _values(view: View, thread_id: str, checkpoint_ns: str) -> str:
    return view.key("values", thread_id, checkpoint_ns)


def _writes(view: View, place: ops.Place) -> str:
    return view.key("writes", *place)


def _in_order(place: ops.Place) -> bytes:
    """A checkpoint among those of all threads."""
    return joined(place.checkpoint_id, place.checkpoint_ns, place.thread_id)


def _met(view: View, thread_id: str, checkpoint_ns: str) -> None:
    view.add(view.key("spaces", thread_id), checkpoint_ns)


def _spaces(view: View, thread_id: str) -> Asking[list[str]]:
    """The namespaces in which a thread may have something."""
    return [text(space) for space in (yield from view.members(ByName(view.key("spaces", thread_id))))]


def _written(view: View, thread_id: str | None, checkpoint_ns: str | None = None) -> Asking[list[ops.Place]]:
    """The places with pending writes."""
    begins = () if thread_id is None else (thread_id,) if checkpoint_ns is None else (thread_id, checkpoint_ns)
    span = beginning(view.key("writes"), joined(*begins, "")) if begins else ByName(view.key("writes"))
    places = [ops.Place(*parted(member)) for member in (yield from view.members(span))]
    return [place for place in places if checkpoint_ns in (None, place.checkpoint_ns)]


# --- pools


def pool(op: ops.Pool | ops.NewPool, view: View) -> Asking[bytes | None]:
    return (yield from view.one(view.key("pools"), op.thread_id))


def join_pool(op: ops.JoinPool, view: View) -> Asking[None]:
    view.put(view.key("pools"), op.thread_id, op.pool)
    view.add(view.key("pool", op.pool.hex()), op.thread_id)
    return
    yield


def save_chunks(op: ops.SaveChunks, view: View) -> Asking[None]:
    for row in op.rows:
        view.put_first(view.key("chunks", op.pool.hex()), row.id, _packed(*row[1:]))
    return
    yield


def find_chunks(op: ops.FindChunks, view: View) -> Asking[list[ops.ChunkRow]]:
    (rows,) = yield from view.fields((view.key("chunks", op.pool.hex()), op.ids))
    return [
        ops.ChunkRow(chunk_id, *ormsgpack.unpackb(row))
        for chunk_id, row in zip(op.ids, rows, strict=True)
        if row is not None
    ]


def pool_pieces(op: ops.PoolPieces, view: View) -> Asking[list[bytes]]:
    threads = [text(name) for name in (yield from view.members(ByName(view.key("pool", op.pool.hex()))))]
    keys: list[str] = []
    held: list[str] = []
    for thread_id in threads:
        keys += [_values(view, thread_id, space) for space in (yield from _spaces(view, thread_id))]
        held += [_writes(view, place) for place in (yield from _written(view, thread_id))]
    rows = [row for of in (yield from view.everything(*keys, *held)) for row in of.values()]
    return [pieces for row in rows if (pieces := ormsgpack.unpackb(row)[-1]) is not None]


def pool_chunks(op: ops.PoolChunks, view: View) -> Asking[list[bytes]]:
    (chunks,) = yield from view.everything(view.key("chunks", op.pool.hex()))
    return list(chunks)


def drop_chunks(op: ops.DropChunks, view: View) -> Asking[None]:
    view.drop(view.key("chunks", op.pool.hex()), *op.ids)
    return
    yield


# --- values


def save_values(op: ops.SaveValues, view: View) -> Asking[None]:
    _met(view, op.thread_id, op.checkpoint_ns)
    for row in op.rows:
        view.put(_values(view, op.thread_id, op.checkpoint_ns), joined(*row.key), _packed(row.kind, row.pieces))
    return
    yield


def _value(name: bytes, row: bytes) -> ops.ValueRow:
    return ops.ValueRow(ops.ValueKey(*parted(name)), *ormsgpack.unpackb(row))


def find_values(op: ops.FindValues, view: View) -> Asking[list[ops.ValueRow]]:
    key = _values(view, op.thread_id, op.checkpoint_ns)
    if op.keys is None:
        (held,) = yield from view.everything(key)
        return [_value(name, row) for name, row in held.items()]
    names = [joined(*wanted) for wanted in op.keys]
    (rows,) = yield from view.fields((key, names))
    return [_value(name, row) for name, row in zip(names, rows, strict=True) if row is not None]


def holds(op: ops.Holds, view: View) -> Asking[bool]:
    wanted = [(_values(view, op.thread_id, space), [joined(*row.key)]) for space, row in op.values]
    held = yield from view.fields(*wanted)
    return all(found == [_packed(row.kind, row.pieces)] for found, (_, row) in zip(held, op.values, strict=True))


def value_spaces(op: ops.ValueSpaces, view: View) -> Asking[list[str]]:
    spaces = yield from _spaces(view, op.thread_id)
    held = yield from view.everything(*(_values(view, op.thread_id, space) for space in spaces))
    return [space for space, values in zip(spaces, held, strict=True) if values]


def drop_values(op: ops.DropValues, view: View) -> Asking[None]:
    view.drop(_values(view, op.thread_id, op.checkpoint_ns), *(joined(*key) for key in op.keys))
    return
    yield


# --- checkpoints


def _row(place: ops.Place, row: bytes) -> ops.CheckpointRow:
    return ops.CheckpointRow(place, *ormsgpack.unpackb(row))


def _save(view: View, row: ops.CheckpointRow) -> None:
    place = row.place
    view.add(view.key("threads"), place.thread_id)
    _met(view, place.thread_id, place.checkpoint_ns)
    view.put(_checkpoints(view, place), place.checkpoint_id, _packed(*row[1:]))
    view.add(_ids(view, place.thread_id, place.checkpoint_ns), place.checkpoint_id)
    view.add(view.key("checkpoints"), _in_order(place))
    if row.run_id is not None:
        view.add(view.key("runs", row.run_id), joined(*place))


def save_checkpoint(op: ops.SaveCheckpoint, view: View) -> Asking[None]:
    known = op.row.position
    _save(view, op.row._replace(position=(yield from position(view)) if known is None else known))


def _at(view: View, places: Sequence[ops.Place]) -> Asking[list[ops.CheckpointRow]]:
    by_key: dict[str, list[ops.Place]] = {}
    for place in places:
        by_key.setdefault(_checkpoints(view, place), []).append(place)
    wanted = [(key, [blob(place.checkpoint_id) for place in held]) for key, held in by_key.items()]
    found: dict[ops.Place, ops.CheckpointRow] = {}
    for held, rows in zip(by_key.values(), (yield from view.fields(*wanted)), strict=True):
        found.update({place: _row(place, row) for place, row in zip(held, rows, strict=True) if row is not None})
    return [found[place] for place in places if place in found]


def find_checkpoints(op: ops.FindCheckpoints, view: View) -> Asking[list[ops.CheckpointRow]]:
    if op.thread_id is None:
        return (yield from _of_all_threads(op, view))
    if op.checkpoint_ns is not None:
        spaces = [op.checkpoint_ns]
    else:
        spaces = yield from _spaces(view, op.thread_id)
    if op.checkpoint_id is not None:
        places = [ops.Place(op.thread_id, space, op.checkpoint_id) for space in spaces]
        rows = yield from _at(view, places)
    else:
        rows = []
        high = None if op.before is None else blob(op.before)
        if op.after is not None:
            # the one behind it in this order may have the same id in another namespace
            high = min(filter(None, (high, blob(op.after.checkpoint_id) + b"\0")))
        limit = op.limit if op.after is None or op.limit is None else op.limit + 1
        for space in spaces:
            span = ByName(_ids(view, op.thread_id, space), high=high, newest=True, limit=limit)
            place = ops.Place(op.thread_id, space, "")
            held = yield from view.rows(span, _checkpoints(view, place))
            rows += [_row(place._replace(checkpoint_id=text(name)), row) for name, row in held]
    return _chosen(op, rows)


def _of_all_threads(op: ops.FindCheckpoints, view: View) -> Asking[list[ops.CheckpointRow]]:
    highs = [blob(op.before)] if op.before is not None else []
    highs += [_in_order(op.after)] if op.after is not None else []
    span = ByName(view.key("checkpoints"), high=min(highs, default=None), newest=True, limit=op.limit)
    if op.checkpoint_id is not None:
        begins = joined(op.checkpoint_id, "")
        span = ByName(span.key, begins, min([begins + b"\xff", *highs]), newest=True)
    if op.checkpoint_ns is not None:
        span = ByName(span.key, span.low, span.high, newest=True)
    places = []
    for member in (yield from view.members(span)):
        checkpoint_id, checkpoint_ns, thread_id = parted(member)
        place = ops.Place(thread_id, checkpoint_ns, checkpoint_id)
        if op.checkpoint_ns in (None, checkpoint_ns):
            places.append(place)
    places = places if op.limit is None else places[: op.limit]
    # their rows are read anew together with what says that these threads did not change meanwhile
    view.relied.update(thread(place.thread_id).of for place in places)
    return _chosen(op, (yield from _at(view, places)))


def _chosen(op: ops.FindCheckpoints, rows: Sequence[ops.CheckpointRow]) -> list[ops.CheckpointRow]:
    after = None if op.after is None else _in_order(op.after)
    rows = [
        row
        for row in rows
        if op.checkpoint_id in (None, row.place.checkpoint_id)
        and (op.before is None or row.place.checkpoint_id < op.before)
        and (after is None or _in_order(row.place) < after)
    ]
    rows.sort(key=lambda row: _in_order(row.place), reverse=True)
    return rows if op.limit is None else rows[: op.limit]


def ancestors(op: ops.Ancestors, view: View) -> Asking[list[ops.CheckpointRow]]:
    # parents are older, so most of a line is met among the next lower ids
    line: list[ops.CheckpointRow] = []
    key = _checkpoints(view, op.place)
    span = ByName(
        _ids(view, op.place.thread_id, op.place.checkpoint_ns),
        high=blob(op.place.checkpoint_id),
        newest=True,
        limit=op.limit,
    )
    near = dict((yield from view.rows(span, key)))
    ((current,),) = yield from view.fields((key, [blob(op.place.checkpoint_id)]))
    while current is not None and len(line) < op.limit:
        parent_id = _row(op.place, current).parent_id
        if parent_id is None:
            break
        current = near.get(blob(parent_id)) or (yield from view.one(key, parent_id))
        if current is not None:
            line.append(_row(op.place._replace(checkpoint_id=parent_id), current))
    return line


def thread_ids(op: ops.ThreadIds, view: View) -> Asking[list[str]]:
    span = ByName(view.key("threads"), blob(op.after), behind=True, limit=op.limit)
    return [text(name) for name in (yield from view.members(span))]


def list_threads(op: ops.ListThreads, view: View) -> Asking[list[ops.ThreadRow]]:
    threads: dict[str, list[str]] = {}
    for member in (yield from view.members(ByName(view.key("checkpoints")))):
        checkpoint_id, _, thread_id = parted(member)
        threads.setdefault(thread_id, []).append(checkpoint_id)
    rows = [ops.ThreadRow(thread_id, len(ids), ids[0], ids[-1]) for thread_id, ids in threads.items()]
    return sorted(rows, key=lambda row: (row.last, row.thread_id))


def find_runs(op: ops.FindRuns, view: View) -> Asking[list[ops.Place]]:
    held = yield from view.ranges(*(ByName(view.key("runs", run_id)) for run_id in op.run_ids))
    places = [ops.Place(*parted(member)) for members in held for _, member in members]
    view.relied.update(thread(place.thread_id).of for place in places)
    return [row.place for row in (yield from _at(view, places)) if row.run_id in op.run_ids]


# --- pending writes


def save_writes(op: ops.SaveWrites, view: View) -> Asking[None]:
    for row in op.rows:
        name, told = joined(row.task_id, str(row.idx)), _packed(*row[3:])
        view.add(view.key("threads"), row.place.thread_id)
        _met(view, row.place.thread_id, row.place.checkpoint_ns)
        view.add(view.key("writes"), joined(*row.place))
        if row.idx >= 0:
            view.put_first(_writes(view, row.place), name, told)
        else:
            view.put(_writes(view, row.place), name, told)
    return
    yield


def _write(place: ops.Place, name: bytes, row: bytes) -> ops.WriteRow:
    task_id, idx = parted(name)
    return ops.WriteRow(place, task_id, int(idx), *ormsgpack.unpackb(row))


def find_writes(op: ops.FindWrites, view: View) -> Asking[list[ops.WriteRow]]:
    if op.checkpoint_ids is None or op.thread_id is None or op.checkpoint_ns is None:
        places = yield from _written(view, op.thread_id, op.checkpoint_ns)
        places = [place for place in places if op.checkpoint_ids is None or place.checkpoint_id in op.checkpoint_ids]
    else:
        places = [ops.Place(op.thread_id, op.checkpoint_ns, checkpoint_id) for checkpoint_id in op.checkpoint_ids]
    held = yield from view.everything(*(_writes(view, place) for place in places))
    return [_write(place, *item) for place, rows in zip(places, held, strict=True) for item in rows.items()]


def wrote_to(op: ops.WroteTo, view: View) -> Asking[list[str]]:
    (held,) = yield from view.everything(_writes(view, op.place))
    writes = [_write(op.place, *item) for item in held.items()]
    return [write.channel for write in writes if write.task_id == op.task_id]


# --- removing and copying


def _drop_writes(view: View, place: ops.Place) -> None:
    view.clear(_writes(view, place))
    view.remove(view.key("writes"), joined(*place))


def _drop_rows(view: View, rows: Sequence[ops.CheckpointRow]) -> None:
    for row in rows:
        place = row.place
        view.drop(_checkpoints(view, place), place.checkpoint_id)
        view.remove(_ids(view, place.thread_id, place.checkpoint_ns), place.checkpoint_id)
        view.remove(view.key("checkpoints"), _in_order(place))
        if row.run_id is not None:
            view.remove(view.key("runs", row.run_id), joined(*place))


def drop_checkpoints(op: ops.DropCheckpoints, view: View) -> Asking[None]:
    _drop_rows(view, (yield from _at(view, op.places)))
    for place in op.places:
        _drop_writes(view, place)
    for thread_id in dict.fromkeys(place.thread_id for place in op.places):
        left = yield from find_checkpoints(ops.FindCheckpoints(thread_id, limit=1), view)
        if not left and not (yield from _written(view, thread_id)):
            view.remove(view.key("threads"), thread_id)


def drop_thread(op: ops.DropThread, view: View) -> Asking[None]:
    spaces = yield from _spaces(view, op.thread_id)
    _drop_rows(view, (yield from find_checkpoints(ops.FindCheckpoints(op.thread_id), view)))
    for place in (yield from _written(view, op.thread_id)):
        _drop_writes(view, place)
    for space in spaces:
        view.clear(_values(view, op.thread_id, space))
    held = yield from pool(ops.Pool(op.thread_id), view)
    if held is not None:
        view.remove(view.key("pool", held.hex()), op.thread_id)
        view.drop(view.key("pools"), op.thread_id)
    view.clear(view.key("spaces", op.thread_id))
    view.remove(view.key("threads"), op.thread_id)


def copy_thread(op: ops.CopyThread, view: View) -> Asking[None]:
    for row in (yield from find_checkpoints(ops.FindCheckpoints(op.source), view)):
        _save(view, row._replace(place=row.place._replace(thread_id=op.target)))
    writes = yield from find_writes(ops.FindWrites(op.source), view)
    moved = tuple(row._replace(place=row.place._replace(thread_id=op.target)) for row in writes)
    yield from save_writes(ops.SaveWrites(moved), view)
    for space in (yield from value_spaces(ops.ValueSpaces(op.source), view)):
        rows = yield from find_values(ops.FindValues(op.source, space), view)
        yield from save_values(ops.SaveValues(op.target, space, tuple(rows)), view)


CHECKPOINT_ANSWERS: dict[type[Op[Any]], Answer] = {
    ops.Pool: pool,
    ops.JoinPool: join_pool,
    ops.NewPool: pool,
    ops.SaveCheckpoint: save_checkpoint,
    ops.SaveValues: save_values,
    ops.SaveChunks: save_chunks,
    ops.SaveWrites: save_writes,
    ops.FindCheckpoints: find_checkpoints,
    ops.ListThreads: list_threads,
    ops.Ancestors: ancestors,
    ops.ThreadIds: thread_ids,
    ops.FindRuns: find_runs,
    ops.FindValues: find_values,
    ops.Holds: holds,
    ops.Stands: ops.says_no,
    ops.ValueSpaces: value_spaces,
    ops.FindChunks: find_chunks,
    ops.FindWrites: find_writes,
    ops.WroteTo: wrote_to,
    ops.PoolPieces: pool_pieces,
    ops.PoolChunks: pool_chunks,
    ops.DropCheckpoints: drop_checkpoints,
    ops.DropValues: drop_values,
    ops.DropChunks: drop_chunks,
    ops.DropThread: drop_thread,
    ops.CopyThread: copy_thread,
}
