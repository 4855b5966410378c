"""Statements as values: what an answer in SQL yields, for any driver, sync or async, to execute.

They are written with `?` for parameters; a dialect rewrites what differs between databases.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

R = TypeVar("R")
Row = tuple[Any, ...]


AT_ONCE = 32
"""So many rows of one table are one statement."""


class Sql(NamedTuple):
    """One statement; the answer is its rows."""

    text: str
    parameters: Sequence[Any] = ()


class Batch(NamedTuple):
    """One statement for many rows of parameters; no answer.

    `distinct` rows have different keys, so that an INSERT of one may be made one of all.
    """

    text: str
    rows: Sequence[Sequence[Any]]
    distinct: bool = False


Statement = Sql | Batch
Statements = Generator[Statement, Any, R]
"""An answer that asks; one that only writes may be the list of its statements."""


class Dialect(Protocol):
    """What differs between the SQL databases."""

    def among(self, column: str) -> str:
        """A condition that the column's value is in the list bound to one parameter."""
        ...

    def rows(self, alias: str) -> str:
        """The list bound to one parameter as a table of that name, with the column `value`."""
        ...

    def listed(self, values: Iterable[Any]) -> Any:
        """A list as that one parameter."""
        ...


@lru_cache
def insert_of(text: str, count: int) -> str:
    """An INSERT of one row as one of several."""
    head, _, rest = text.partition(" VALUES (")
    slots, _, conflict = rest.rpartition(") ON CONFLICT ")
    return f"{head} VALUES {', '.join([f'({slots})'] * count)} ON CONFLICT {conflict}"


def one_of(d: Dialect, column: str, values: Sequence[Any]) -> tuple[str, Any]:
    """A condition that the column's value is one of these, and its one parameter.

    A list costs SQLite a virtual table, ten times a plain comparison, and most lists have one value.
    """
    return (f"{column} = ?", values[0]) if len(values) == 1 else (d.among(column), d.listed(values))


Answer = Callable[[Any, Dialect], Statements[Any] | list[Batch]]


def as_asking(answer: Statements[Any] | list[Batch]) -> Statements[Any]:
    return _written(answer) if isinstance(answer, list) else answer


def _written(batches: list[Batch]) -> Statements[None]:
    yield from batches
