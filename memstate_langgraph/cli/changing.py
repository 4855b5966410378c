"""Commands that check, mend, delete and move. What destroys is shown first and asked for."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer

from memstate_langgraph import moving
from memstate_langgraph.backends.urls import storage_from
from memstate_langgraph.care import Report
from memstate_langgraph.cli.opening import (
    JsonOption,
    StorageArgument,
    Vectors,
    YesOption,
    collections_of,
    counts_of,
    opened,
    with_vectors,
)
from memstate_langgraph.cli.printing import bars, console, note, print_json, safe, working
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.overview import overview
from memstate_langgraph.rules import MAX_COUNT
from memstate_langgraph.saver import MemStateCheckpointer

NOT_IN_STEP = 1
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@with_vectors
def verify(
    storage: StorageArgument,
    as_json: JsonOption = False,
    *,
    vectors: Vectors,
) -> None:
    """Compare facts, log and vectors, changing nothing; exit code 1 if they differ."""
    with opened(storage, vectors) as memory:
        with working("comparing"):
            report = memory.verify()
        unseen = [] if vectors.named else collections_of(counts_of(memory))
    if unseen:
        note(f"not compared: vectors in {', '.join(map(repr, unseen))}; for that give --chroma ..., or --hook")
    _print_report(report, as_json)


@with_vectors
def repair(
    storage: StorageArgument,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Embed everything again.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    *,
    vectors: Vectors,
) -> None:
    """Remove vectors that no fact stands for, embed facts that lack theirs.

    It needs the vectors: --chroma ..., or --hook. Facts and log are never changed.
    """
    vectors.require("repair mends vectors")
    with opened(storage, vectors) as memory:
        with working("comparing"):
            before = memory.verify()
        if not yes and (rebuild or not before.ok):
            _print_report(before, as_json=False, fail=False)
            typer.confirm("Embed everything again?" if rebuild else "Repair this?", abort=True, err=True)
        with bars() as progress:
            report = memory.repair(progress, rebuild=rebuild)
    _print_report(report, as_json)


def _print_report(report: Report, as_json: bool, *, fail: bool = True) -> None:
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    else:
        for line in str(report).splitlines():
            console().print(safe(line), style="green" if report.ok else "red", soft_wrap=True)
    if fail and not report.ok:
        raise typer.Exit(NOT_IN_STEP)


def prune(
    storage: StorageArgument,
    thread: Annotated[list[str] | None, typer.Option("--thread", help="This thread; may be repeated.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All threads.")] = False,
    keep_last: Annotated[
        int | None, typer.Option("--keep-last", min=1, max=MAX_COUNT, help="Keep this many of each thread.")
    ] = None,
    older_than: Annotated[
        str | None, typer.Option("--older-than", metavar="AGE", help="Delete older ones: 90s, 15m, 12h, 30d, 8w.")
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete whole threads.")] = False,
    vacuum: Annotated[bool, typer.Option("--vacuum", help="Then give the space back to the file system.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Delete checkpoints; of what is kept the newest always is one. Facts and log stay."""
    options = _strategy(keep_last, older_than, delete)
    if bool(thread) == every:
        raise ValidationFailed("prune: say of which threads, with --thread NAME (repeated) or --all")
    with opened(storage) as memory:
        before = {row.thread_id: row.checkpoints for row in memory.storage.run(overview()).threads}
        chosen = list(before) if every else list(dict.fromkeys(thread or ()))
        unknown = [name for name in chosen if name not in before]
        if unknown:
            raise ValidationFailed(f"prune: there are no checkpoints of thread {', '.join(map(repr, unknown))}")
        number = sum(before[name] for name in chosen)
        if not yes:
            what = "Delete all" if delete else "Prune the"
            typer.confirm(f"{what} {number} checkpoints of {len(chosen)} threads?", abort=True, err=True)
        with bars() as progress:
            MemStateCheckpointer(memory).prune(chosen, **options, progress=progress)
            freed = memory.vacuum(progress) if vacuum else 0
        after = {row.thread_id: row.checkpoints for row in memory.storage.run(overview()).threads}
    deleted = number - sum(after.get(name, 0) for name in chosen)
    if as_json:
        print_json({"threads": len(chosen), "deleted": deleted, "kept": number - deleted, "freed_bytes": freed})
        return
    console().print(f"{deleted} checkpoints deleted, {number - deleted} kept, in {len(chosen)} threads")
    if vacuum:
        console().print(f"{freed:,} bytes given back")


def _strategy(keep_last: int | None, older_than: str | None, delete: bool) -> dict[str, Any]:
    if [keep_last is not None, older_than is not None, delete].count(True) != 1:
        raise ValidationFailed("prune: give one of --keep-last NUMBER, --older-than AGE and --delete")
    if delete:
        return {"strategy": "delete"}
    if keep_last is not None:
        return {"strategy": "keep_last", "keep_last": keep_last}
    age = re.fullmatch(r"(\d{1,6})([smhdw])", older_than or "")
    if age is None:
        raise ValidationFailed(f"--older-than: {older_than!r} is no age; write 90s, 15m, 12h, 30d or 8w")
    return {"strategy": "max_age", "max_age": timedelta(**{_UNITS[age[2]]: int(age[1])})}


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A URL, or the path of a SQLite file.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The same; it is made if it is not there.")],
    vectors: Annotated[
        list[str] | None,
        typer.Option("--vectors", metavar="NAME", help="A collection that stays in use; may be repeated. See stats."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Copy facts, log and checkpoints into an empty storage, and compare what arrived.

    It may be stopped and called again. Nobody should write to either side meanwhile. A new vector store is filled
    with repair on the target.
    """
    with opened(source) as old, MemoryStore(storage_from(target)) as new, bars() as progress:
        moved = moving.copy(old, new, vectors=vectors or (), progress=progress)
    if as_json:
        print_json(asdict(moved))
        return
    console().print(f"{moved.facts} facts, {moved.entries} log entries and {moved.threads} threads are there, compared")
