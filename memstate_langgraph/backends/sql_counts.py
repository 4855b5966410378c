"""The ops that say how much there is, as SQL statements, once for all SQL dialects."""

from __future__ import annotations

from typing import Any

from memstate_langgraph.backends.statements import Answer, Dialect, Sql, Statements
from memstate_langgraph.checkpoint_ops import ListThreads, ThreadRow
from memstate_langgraph.ops import Count, Counts, Op


def count(op: Count, d: Dialect) -> Statements[Counts]:
    facts = yield Sql("SELECT type, COUNT(*) FROM facts GROUP BY type ORDER BY type")
    ((entries,),) = yield Sql("SELECT COUNT(*) FROM log")
    ((steps,),) = yield Sql("SELECT COUNT(*) FROM steps")
    vectors = yield Sql(
        "SELECT collection, state, COUNT(*) FROM vectors GROUP BY collection, state ORDER BY collection, state"
    )
    return Counts(dict(facts), entries, steps, {(collection, state): number for collection, state, number in vectors})


def list_threads(op: ListThreads, d: Dialect) -> Statements[list[ThreadRow]]:
    rows = yield Sql(
        "SELECT thread_id, COUNT(*), MIN(checkpoint_id), MAX(checkpoint_id) AS newest FROM checkpoints "
        "GROUP BY thread_id ORDER BY newest, thread_id"
    )
    return [ThreadRow(*row) for row in rows]


COUNT_ANSWERS: dict[type[Op[Any]], Answer] = {Count: count, ListThreads: list_threads}
