"""What the commands print: tables for people, JSON for programs. Colours and boxes only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress as Bars, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from memstate_langgraph.differences import Changes
from memstate_langgraph.facts import Entry, Fact
from memstate_langgraph.rules import canonical
from memstate_langgraph.run import Progress
from memstate_langgraph.tables import change

WIDE = 100_000
"""Columns in a pipe: a program reads whole lines."""

ROOMY = 120
NUMBERS = frozenset({"seq", "version", "score", "step", "number", "checkpoints", "undoes"})
IDS = frozenset({"id", "fact", "checkpoint"})
SHORT = NUMBERS | {"change", "type", "what"}

_BECAME = {"+": "comes", "-": "goes", "~": "changes"}
COLOURS = {"COMMIT": "green", "UPDATE": "yellow", "DELETE": "red", "DISCARD_SESSION": "red", "ROLLBACK": "magenta"}


def console() -> Console:
    """Made for each command, so that it writes to what standard output is then."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, markup=False, emoji=False, width=None if terminal else WIDE)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=_json) + "\n")


def _json(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


def safe(text: object) -> str:
    """Text without control characters: what a model wrote must not steer a terminal."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(text))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table, or `empty` on standard error, so that a pipe sees no line for no row."""
    made = list(rows)
    if not made:
        note(empty)
        return
    out = console()
    style = box.SIMPLE_HEAD if out.is_terminal else None
    table = Table(box=style, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for column in columns:
        # an id that is cut off cannot be copied: it stays whole where there is room, else it goes on below
        whole = column in SHORT or not out.is_terminal or (column in IDS and out.width >= ROOMY)
        table.add_column(column, justify="right" if column in NUMBERS else "left", no_wrap=whole, overflow="fold")
    for row in made:
        table.add_row(*(cell if isinstance(cell, Text) else Text(safe("" if cell is None else cell)) for cell in row))
    out.print(table)


def note(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def when(moment: datetime | None) -> str:
    return "" if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def payload(fact: Fact | None) -> str:
    return "" if fact is None else canonical(fact.payload)


def print_changes(found: Changes, as_json: bool, *, empty: str) -> None:
    if as_json:
        print_json([asdict(one) for one in found.changes])
        return
    rows = [
        (_BECAME[one.sign], one.fact.type, changed(one.before, one.after), one.fact.session_id, one.fact_id)
        for one in found.changes
    ]
    print_table(("what", "type", "payload", "session", "fact"), rows, empty=empty)


def operation(entry: Entry) -> Text:
    text = entry.op.value if entry.undoes is None else f"{entry.op.value} of {entry.undoes}"
    return Text(text, style=COLOURS.get(entry.op.value, ""))


def changed(before: Fact | None, after: Fact | None) -> str:
    return change(before.payload if before else None, after.payload if after else None)


@contextmanager
def bars() -> Iterator[Progress]:
    """Progress bars on standard error, if that is a terminal; they go away when the work is done."""
    shown = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    stages: dict[str, TaskID] = {}

    def tell(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages[stage] = shown.add_task(stage, total=total)
        shown.update(stages[stage], completed=done, total=total)

    with shown:
        yield tell


@contextmanager
def working(on: str) -> Iterator[None]:
    """For work that cannot say how far it is."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(on):
        yield
