"""Rows of several tables, to write or to read, as one statement of SQLite, which is a transaction of its own.

BEGIN, the rows of each table and COMMIT are calls into SQLite, and around each of them Python's threads may take turns:
for a transaction as small as a checkpoint's that costs more than what it does. No statement writes to several tables,
but a trigger does: here on views that each writing connection makes for itself, one for what each kind of step of most
graphs writes.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any

from memstate_langgraph.backends import sql_checkpoints as texts
from memstate_langgraph.backends.statements import AT_ONCE, Batch, Sql, Statement, insert_of

WRONG = "memstate: not as it was taken to be"
"""The error of a statement whose checks found nothing."""

Shape = tuple[tuple[str, int], ...]
"""How many rows of which statements, in their order."""

_INSERTS = frozenset({texts.SAVE_VALUE, texts.SAVE_FIRST_WRITE, texts.SAVE_LAST_WRITE})
_FEW = range(1, 5)
"""So many channels change in most steps."""
_LARGE: tuple[Shape, ...] = (
    (),
    ((texts.HOLDS, 1),),
    ((texts.HOLDS, 1), (texts.SAVE_CHUNK, 1)),
    ((texts.HAS_NO_POOL, 1), (texts.JOIN_POOL, 1), (texts.SAVE_CHUNK, 1)),
)
"""What comes before the rows of values if one of them is large: it shares bytes with its last version, or is the first
of its thread.
"""
_SHAPES: tuple[Shape, ...] = (
    *((*large, (texts.SAVE_VALUE, values), (texts.SAVE_CHECKPOINT, 1)) for large in _LARGE for values in _FEW),
)
_CHECKS = texts.HOLDS, texts.HAS_NO_POOL


def _width(shape: Shape) -> int:
    return sum(text.count("?") * count for text, count in shape)


_STATEMENTS = {
    shape: f"INSERT INTO at_once_{view} VALUES ({', '.join('?' * _width(shape))})" for view, shape in enumerate(_SHAPES)
}


_COMMON = [
    *(statement for shape, statement in _STATEMENTS.items() if shape[-2][1] <= 2),
    *(insert_of(texts.SAVE_FIRST_WRITE, count) for count in (1, 2)),
]
"""What the first turns of nearly every graph write."""


def prepare(connection: sqlite3.Connection, error: type[Exception]) -> None:
    """Make the views, which are gone with the connection, and have the statements compiled that are needed first.

    `error` is the driver's.
    """
    for view, shape in enumerate(_SHAPES):
        columns = ", ".join(f"NULL AS p{i}" for i in range(_width(shape)))
        connection.execute(f"CREATE TEMP VIEW at_once_{view} AS SELECT {columns}")
        connection.execute(
            f"CREATE TEMP TRIGGER at_once_{view}_written INSTEAD OF INSERT ON at_once_{view} BEGIN {_body(shape)} END"
        )
    compile_all(connection, _COMMON, error)


def compile_all(connection: sqlite3.Connection, statements: Iterable[str], error: type[Exception]) -> None:
    """Have statements compiled before they are needed."""
    for statement in statements:
        # Without its parameters it is refused, but compiled by then and kept. Where another process has made the tables
        # since this connection looked, it is not: then the first turn compiles it.
        with suppress(error):
            connection.execute(statement)


def _body(shape: Shape) -> str:
    first, *rest = "".join(_step(text) * count for text, count in shape).split("?")
    return first + "".join(f"NEW.p{i}{text}" for i, text in enumerate(rest))


def _step(text: str) -> str:
    return f"SELECT RAISE(ABORT, '{WRONG}') WHERE NOT EXISTS ({text}); " if text in _CHECKS else f"{text}; "


def at_once(batches: Sequence[Batch]) -> tuple[str, Sequence[Any]] | None:
    """One statement that writes these rows, unless a check among them finds nothing; None if it takes several."""
    if len(batches) == 1:
        text, rows, _ = batches[0]
        if len(rows) == 1:
            return text, rows[0]
        if text in _INSERTS and len(rows) <= AT_ONCE:
            return insert_of(text, len(rows)), [*chain.from_iterable(rows)]
    statement = _STATEMENTS.get(tuple([(text, len(rows)) for text, rows, _ in batches]))
    if statement is None:
        return None
    return statement, [*chain.from_iterable(chain.from_iterable(map(_rows_of, batches)))]


_rows_of = attrgetter("rows")


def asked_at_once(questions: Sequence[Statement]) -> tuple[str, Sequence[Any], Sequence[int]] | None:
    """One statement that answers these: of each of its rows the first column is the position of the question, and
    of the others as many as that has, which are given, are of its answer. None if it takes several.
    """
    asked = [question for question in questions if isinstance(question, Sql)]
    text, widths = _union(tuple([question.text for question in asked]))
    if not text or len(asked) < len(questions):
        return None
    return text, [*chain.from_iterable([question.parameters for question in asked])], widths


@lru_cache(maxsize=256)
def _union(questions: tuple[str, ...]) -> tuple[str, Sequence[int]]:
    """Empty if a question is not a plain SELECT, whose columns can be counted."""
    widths = [0 if (plain := _PLAIN.match(text)) is None else plain[1].count(",") + 1 for text in questions]
    if not all(widths):
        return "", ()
    parts = [
        f"SELECT {position}, *{', NULL' * (max(widths) - width)} FROM ({text})"
        for position, (text, width) in enumerate(zip(questions, widths, strict=True))
    ]
    return " UNION ALL ".join(parts), widths


_PLAIN = re.compile(r"SELECT (\w+(?:, \w+)*) FROM ")
