"""The ops about items as SQL statements."""

from __future__ import annotations

from typing import Any

from memstate_langgraph import item_ops
from memstate_langgraph.backends.statements import Answer, Batch, Dialect, Sql, Statements
from memstate_langgraph.ops import Op


def last_reads(op: item_ops.LastReads, d: Dialect) -> Statements[dict[str, float]]:
    rows = yield Sql(f"SELECT fact_id, at FROM reads WHERE {d.among('fact_id')}", (d.listed(op.ids),))
    return dict(rows)


def was_read(op: item_ops.WasRead, d: Dialect) -> Statements[None]:
    if op.at is None:
        yield Sql(f"DELETE FROM reads WHERE {d.among('fact_id')}", (d.listed(op.ids),))
        return
    yield Batch(
        # two readers may come in the other order
        "INSERT INTO reads AS known (fact_id, at) VALUES (?, ?) ON CONFLICT (fact_id) DO UPDATE SET at = excluded.at "
        "WHERE excluded.at > known.at",
        [(fact_id, op.at) for fact_id in sorted(op.ids)],  # in one order, so that no two wait for each other
    )


ITEM_ANSWERS: dict[type[Op[Any]], Answer] = {
    item_ops.LastReads: last_reads,
    item_ops.WasRead: was_read,
}
