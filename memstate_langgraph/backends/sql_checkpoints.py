"""The ops about checkpoints as SQL statements, once for all SQL dialects."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from memstate_langgraph import checkpoint_ops as ops
from memstate_langgraph.backends.statements import Answer, Batch, Dialect, Sql, Statements, one_of
from memstate_langgraph.ops import Likely, Op

_CHECKPOINT = (
    "thread_id, checkpoint_ns, checkpoint_id, parent_id, run_id, kind, body, metadata_kind, metadata, position"
)
_WRITE = "thread_id, checkpoint_ns, checkpoint_id, task_id, idx, task_path, channel, kind, value, pieces"
_VALUE = "thread_id, checkpoint_ns, channel, version, kind, pieces"


def _upsert(table: str, columns: str, key: str) -> str:
    names = columns.split(", ")
    rest = [name for name in names if name not in key.split(", ")]
    return (
        f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(names))}) "
        f"ON CONFLICT ({key}) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in rest)}"
    )


def _insert_new(table: str, columns: str) -> str:
    slots = ", ".join("?" * len(columns.split(", ")))
    return f"INSERT INTO {table} ({columns}) VALUES ({slots}) ON CONFLICT DO NOTHING"


_WRITE_KEY = "thread_id, checkpoint_ns, checkpoint_id, task_id, idx"
SAVE_CHECKPOINT = _upsert("checkpoints", _CHECKPOINT, "thread_id, checkpoint_ns, checkpoint_id").replace(
    "?) ON CONFLICT", "COALESCE(?, (SELECT max(seq) FROM log), 0)) ON CONFLICT"
)
SAVE_VALUE = _upsert("channel_values", _VALUE, "thread_id, checkpoint_ns, channel, version")
SAVE_CHUNK = _insert_new("chunks", "pool, id, cipher, packed, data")
SAVE_FIRST_WRITE = _insert_new("writes", _WRITE)
SAVE_LAST_WRITE = _upsert("writes", _WRITE, _WRITE_KEY)
JOIN_POOL = "INSERT INTO threads (thread_id, pool) VALUES (?, ?)"
HAS_NO_POOL = "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM threads WHERE thread_id = ?)"
HOLDS = (
    "SELECT 1 FROM channel_values WHERE thread_id = ? AND checkpoint_ns = ? AND channel = ? AND version = ? "
    "AND kind = ? AND pieces = ?"
)


def _where(conditions: dict[str, Any]) -> tuple[str, list[Any]]:
    given = {text: value for text, value in conditions.items() if value is not None}
    return ("WHERE " + " AND ".join(given) if given else ""), list(given.values())


def pool(op: ops.Pool | ops.NewPool, d: Dialect) -> Statements[bytes | None]:
    rows = yield Sql("SELECT pool FROM threads WHERE thread_id = ?", (op.thread_id,))
    return rows[0][0] if rows else None


def join_pool(op: ops.JoinPool, d: Dialect) -> list[Batch]:
    return [Batch(JOIN_POOL, [(op.thread_id, op.pool)])]


def save_checkpoint(op: ops.SaveCheckpoint, d: Dialect) -> list[Batch]:
    return [Batch(SAVE_CHECKPOINT, [(*op.row.place, *op.row[1:])])]


def save_step(op: ops.SaveStep, d: Dialect) -> list[Batch]:
    thread_id, checkpoint_ns, _ = op.row.place
    batches = [_chunks(op.pool, op.chunks)] if op.chunks else []
    if op.values:
        batches.append(_values(thread_id, checkpoint_ns, op.values))
    batches.append(Batch(SAVE_CHECKPOINT, [(*op.row.place, *op.row[1:])]))
    return batches


def save_values(op: ops.SaveValues, d: Dialect) -> list[Batch]:
    return [_values(op.thread_id, op.checkpoint_ns, op.rows)]


def _values(thread_id: str, checkpoint_ns: str, rows: Sequence[ops.ValueRow]) -> Batch:
    return Batch(SAVE_VALUE, [(thread_id, checkpoint_ns, *key, kind, pieces) for key, kind, pieces in rows], True)


def holds(op: ops.Holds, d: Dialect) -> Statements[bool]:
    text, checks, _ = check_of(op)
    rows = yield Sql(" UNION ALL ".join([text] * len(checks)), [part for check in checks for part in check])
    return len(rows) == len(checks)


def check_of(op: Likely[Any]) -> Batch:
    """A statement that finds something for each row of parameters, if the op's answer is what it likely is."""
    if isinstance(op, ops.NewPool):
        return Batch(HAS_NO_POOL, [(op.thread_id,)])
    assert isinstance(op, ops.Holds)
    return Batch(HOLDS, [(op.thread_id, space, *key, kind, pieces) for space, (key, kind, pieces) in op.values])


def check_of_head(op: ops.Stands) -> Sql:
    """A statement that finds something if it stands: for SQLite, where asking costs no exchange with a server."""
    row = op.row
    return Sql(
        text_of_head(len(op.values), len(op.empty)),
        [
            *row.place,
            *row[1:-1],  # not the position, which storage may have given
            *chain.from_iterable([(*key, kind, pieces) for key, kind, pieces in op.values]),
            *chain.from_iterable(op.empty),
        ],
    )


@lru_cache
def text_of_head(values: int, empty: int) -> str:
    """The statement for so many channels with a value, and so many without."""
    place = "thread_id = c.thread_id AND checkpoint_ns = c.checkpoint_ns"
    value = f"EXISTS (SELECT 1 FROM channel_values WHERE {place} AND channel = ? AND version = ?"
    return (
        "SELECT 1 FROM checkpoints c WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? "
        "AND parent_id IS ? AND run_id IS ? AND kind = ? AND body = ? AND metadata_kind = ? AND metadata = ? "
        f"AND NOT EXISTS (SELECT 1 FROM checkpoints WHERE {place} AND checkpoint_id > c.checkpoint_id) "
        f"AND NOT EXISTS (SELECT 1 FROM writes WHERE {place} AND checkpoint_id = c.checkpoint_id)"
        + f" AND {value} AND kind = ? AND pieces = ?)" * values
        + f" AND NOT {value})" * empty
    )


def save_chunks(op: ops.SaveChunks, d: Dialect) -> list[Batch]:
    return [_chunks(op.pool, op.rows)]


def _chunks(pool: bytes, rows: Sequence[ops.ChunkRow]) -> Batch:
    return Batch(SAVE_CHUNK, [(pool, row.id, row.cipher, int(row.packed), row.data) for row in rows])


def save_writes(op: ops.SaveWrites, d: Dialect) -> list[Batch]:
    first = [(*row.place, *row[1:]) for row in op.rows if row.idx >= 0]
    last = [(*row.place, *row[1:]) for row in op.rows if row.idx < 0]
    return [Batch(text, rows) for text, rows in ((SAVE_FIRST_WRITE, first), (SAVE_LAST_WRITE, last)) if rows]


def _checkpoints(rows: Sequence[Any]) -> list[ops.CheckpointRow]:
    return [ops.CheckpointRow(ops.Place(*row[:3]), *row[3:]) for row in rows]


def find_checkpoints(op: ops.FindCheckpoints, d: Dialect) -> Statements[list[ops.CheckpointRow]]:
    where, parameters = _where(
        {
            "thread_id = ?": op.thread_id,
            "checkpoint_ns = ?": op.checkpoint_ns,
            "checkpoint_id = ?": op.checkpoint_id,
            "checkpoint_id < ?": op.before,
        }
    )
    if op.after is not None:
        where += f" {'AND' if where else 'WHERE'} (checkpoint_id, checkpoint_ns, thread_id) < (?, ?, ?)"
        parameters += [op.after.checkpoint_id, op.after.checkpoint_ns, op.after.thread_id]
    limit = ""
    if op.limit is not None:
        limit = " LIMIT ?"
        parameters.append(op.limit)
    # within a namespace the primary key gives the order
    order = ["checkpoint_id DESC"]
    order += [f"{name} DESC" for name in ("checkpoint_ns", "thread_id") if getattr(op, name) is None]
    rows = yield Sql(f"SELECT {_CHECKPOINT} FROM checkpoints {where} ORDER BY {', '.join(order)}{limit}", parameters)
    return _checkpoints(rows)


_ANCESTORS = (
    "WITH RECURSIVE line (id, depth) AS ("
    "SELECT parent_id, 1 FROM checkpoints WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? "
    "UNION ALL SELECT c.parent_id, line.depth + 1 FROM line JOIN checkpoints c "
    "ON c.thread_id = ? AND c.checkpoint_ns = ? AND c.checkpoint_id = line.id WHERE line.depth < ?) "
    f"SELECT {_CHECKPOINT} FROM line JOIN checkpoints "
    "ON thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = line.id ORDER BY depth"
)


def ancestors(op: ops.Ancestors, d: Dialect) -> Statements[list[ops.CheckpointRow]]:
    thread_id, checkpoint_ns, _ = op.place
    parameters = (*op.place, thread_id, checkpoint_ns, op.limit, thread_id, checkpoint_ns)
    return _checkpoints((yield Sql(_ANCESTORS, parameters)))


def thread_ids(op: ops.ThreadIds, d: Dialect) -> Statements[list[str]]:
    rows = yield Sql(
        "SELECT thread_id FROM checkpoints WHERE thread_id > ? UNION "
        "SELECT thread_id FROM writes WHERE thread_id > ? ORDER BY thread_id LIMIT ?",
        (op.after, op.after, op.limit),
    )
    return [thread_id for (thread_id,) in rows]


def find_runs(op: ops.FindRuns, d: Dialect) -> Statements[list[ops.Place]]:
    rows = yield Sql(
        f"SELECT thread_id, checkpoint_ns, checkpoint_id FROM checkpoints WHERE {d.among('run_id')}",
        (d.listed(op.run_ids),),
    )
    return [ops.Place(*row) for row in rows]


FEW = 8
"""Up to so many pairs are compared one by one, by the primary key; for more, a list is cheaper."""


def find_values(op: ops.FindValues, d: Dialect) -> Statements[list[ops.ValueRow]]:
    if op.keys is not None and not op.keys:
        return []
    select = "SELECT channel, version, kind, pieces FROM channel_values WHERE thread_id = ? AND checkpoint_ns = ?"
    parameters: list[Any] = [op.thread_id, op.checkpoint_ns]
    if op.keys is not None and len(op.keys) <= FEW:
        # one by one: with OR, SQLite uses only the first columns of the primary key, and reads all that the thread had
        select = " UNION ALL ".join([f"{select} AND channel = ? AND version = ?"] * len(op.keys))
        parameters = [part for key in op.keys for part in (*parameters, *key)]
    elif op.keys is not None:
        select += f" AND {d.among('channel')} AND {d.among('version')}"
        parameters += [d.listed({key.channel for key in op.keys}), d.listed({key.version for key in op.keys})]
    rows = yield Sql(select, parameters)
    found = [ops.ValueRow(ops.ValueKey(row[0], row[1]), row[2], row[3]) for row in rows]
    return found if op.keys is None or len(op.keys) <= FEW else [row for row in found if row.key in op.keys]


def value_spaces(op: ops.ValueSpaces, d: Dialect) -> Statements[list[str]]:
    rows = yield Sql("SELECT DISTINCT checkpoint_ns FROM channel_values WHERE thread_id = ?", (op.thread_id,))
    return [space for (space,) in rows]


def find_chunks(op: ops.FindChunks, d: Dialect) -> Statements[list[ops.ChunkRow]]:
    found: list[ops.ChunkRow] = []
    for start in range(0, len(op.ids), 100):
        ids = op.ids[start : start + 100]
        slots = ", ".join("?" * len(ids))
        rows = yield Sql(
            f"SELECT id, cipher, packed, data FROM chunks WHERE pool = ? AND id IN ({slots})", (op.pool, *ids)
        )
        found += [ops.ChunkRow(row[0], row[1], bool(row[2]), row[3]) for row in rows]
    return found


def find_writes(op: ops.FindWrites, d: Dialect) -> Statements[list[ops.WriteRow]]:
    where, parameters = _where({"thread_id = ?": op.thread_id, "checkpoint_ns = ?": op.checkpoint_ns})
    if op.checkpoint_ids is not None:
        one, listed = one_of(d, "checkpoint_id", op.checkpoint_ids)
        where += f" AND {one}"
        parameters.append(listed)
    rows = yield Sql(f"SELECT {_WRITE} FROM writes {where}", parameters)
    return [ops.WriteRow(ops.Place(*row[:3]), *row[3:]) for row in rows]


def wrote_to(op: ops.WroteTo, d: Dialect) -> Statements[list[str]]:
    rows = yield Sql(
        "SELECT channel FROM writes WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ? AND task_id = ?",
        (*op.place, op.task_id),
    )
    return [channel for (channel,) in rows]


def pool_pieces(op: ops.PoolPieces, d: Dialect) -> Statements[list[bytes]]:
    found: list[bytes] = []
    for table in ("channel_values", "writes"):
        rows = yield Sql(
            f"SELECT v.pieces FROM threads t JOIN {table} v ON v.thread_id = t.thread_id "
            "WHERE t.pool = ? AND v.pieces IS NOT NULL",
            (op.pool,),
        )
        found += [pieces for (pieces,) in rows]
    return found


def pool_chunks(op: ops.PoolChunks, d: Dialect) -> Statements[list[bytes]]:
    rows = yield Sql("SELECT id FROM chunks WHERE pool = ?", (op.pool,))
    return [chunk_id for (chunk_id,) in rows]


def drop_checkpoints(op: ops.DropCheckpoints, d: Dialect) -> list[Batch]:
    return [
        Batch(f"DELETE FROM {table} WHERE thread_id = ? AND checkpoint_ns = ? AND checkpoint_id = ?", op.places)
        for table in ("checkpoints", "writes")
    ]


def drop_values(op: ops.DropValues, d: Dialect) -> list[Batch]:
    text = "DELETE FROM channel_values WHERE thread_id = ? AND checkpoint_ns = ? AND channel = ? AND version = ?"
    return [Batch(text, [(op.thread_id, op.checkpoint_ns, *key) for key in op.keys])]


def drop_chunks(op: ops.DropChunks, d: Dialect) -> list[Batch]:
    return [Batch("DELETE FROM chunks WHERE pool = ? AND id = ?", [(op.pool, chunk_id) for chunk_id in op.ids])]


def drop_thread(op: ops.DropThread, d: Dialect) -> list[Batch]:
    return [
        Batch(f"DELETE FROM {table} WHERE thread_id = ?", [(op.thread_id,)])
        for table in ("checkpoints", "writes", "channel_values", "threads")
    ]


def copy_thread(op: ops.CopyThread, d: Dialect) -> list[Batch]:
    return [
        Batch(
            f"INSERT INTO {table} (thread_id, {rest}) SELECT ?, {rest} FROM {table} WHERE thread_id = ?",
            [(op.target, op.source)],
        )
        for table, columns in (("checkpoints", _CHECKPOINT), ("writes", _WRITE), ("channel_values", _VALUE))
        for rest in (columns.partition(", ")[2],)
    ]


CHECKPOINT_ANSWERS: dict[type[Op[Any]], Answer] = {
    ops.Pool: pool,
    ops.NewPool: pool,
    ops.JoinPool: join_pool,
    ops.SaveStep: save_step,
    ops.SaveCheckpoint: save_checkpoint,
    ops.SaveValues: save_values,
    ops.SaveChunks: save_chunks,
    ops.SaveWrites: save_writes,
    ops.FindCheckpoints: find_checkpoints,
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
