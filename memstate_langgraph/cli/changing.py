"""Commands that check and change. What destroys or takes back is shown first and asked for."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta
from typing import Annotated, Any

import typer

from memstate_langgraph.care import Report
from memstate_langgraph.cli.opening import (
    ChromaOption,
    CollectionOption,
    HookOption,
    JsonOption,
    StorageArgument,
    TextFieldOption,
    Vectors,
    YesOption,
    collections_of,
    counts_of,
    opened,
)
from memstate_langgraph.cli.printing import bars, changed, console, note, print_json, print_table, safe, working
from memstate_langgraph.errors import ConflictError, HookError, ValidationFailed
from memstate_langgraph.facts import Entry, Fact
from memstate_langgraph.flows import preview
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.overview import overview
from memstate_langgraph.plans import By, Rollback
from memstate_langgraph.rules import MAX_COUNT
from memstate_langgraph.saver import MemStateCheckpointer

NOT_IN_STEP = 1
ACTOR = "memstate command"
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def rollback(
    storage: StorageArgument,
    steps: Annotated[int, typer.Option("--steps", min=1, max=MAX_COUNT, help="How many transactions.")] = 1,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only those of this session.")] = None,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; the log keeps it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    chroma: ChromaOption = None,
    collection: CollectionOption = None,
    text_field: TextFieldOption = None,
    hook: HookOption = None,
) -> None:
    """Undo the last transactions in force (of a session): all of them, or none on a conflict.

    Where facts have vectors it needs them too: --chroma ..., or --hook.
    """
    vectors = Vectors(chroma, collection, text_field, hook)
    with opened(storage, vectors) as memory:
        planned = _planned(memory, steps, session)
        if dry_run:
            _print_plan(planned, as_json)
            return
        if not planned:
            _print_plan([], as_json)
            return
        _need_vectors(memory, vectors)
        if not yes:
            _print_plan(planned, as_json=False)
            typer.confirm("Undo this?", abort=True, err=True)
        _guard(memory, planned)
        try:
            touched = memory.rollback(steps, session, ACTOR, reason)
        except HookError as error:
            if isinstance(error.__cause__, ConflictError):
                raise error.__cause__ from error
            raise
    if as_json:
        print_json({"touched": touched})
    else:
        console().print(f"undone; facts touched: {len(touched)}")


def _planned(memory: MemoryStore, steps: int, session: str | None) -> list[Entry]:
    """The entries that a rollback would append now: its own plan, run in a read transaction."""
    change = Rollback(steps, session, By(None, ACTOR))
    return memory.storage.run(preview((change,), memory._core.new_draft)).entries


def _print_plan(planned: list[Entry], as_json: bool) -> None:
    if as_json:
        print_json(planned)
        return
    rows = [
        (
            entry.undoes,
            (entry.after or entry.before or Fact(type="", payload={})).type,
            "comes back" if entry.before is None else "goes" if entry.after is None else "changes back",
            changed(entry.before, entry.after),
            entry.session_id,
            entry.fact_id,
        )
        for entry in planned
    ]
    print_table(("undoes", "type", "what", "payload", "session", "fact"), rows, empty="there is nothing to undo")


def _guard(memory: MemoryStore, planned: list[Entry]) -> None:
    """Refuse what was not shown: others may have changed things while the user read."""
    shown = [(entry.fact_id, entry.before, entry.after) for entry in planned]

    def veto(_operation: Any, fact_id: str, fact: Fact | None) -> None:
        if not any(fact_id == known and fact == (after or before) for known, before, after in shown):
            raise ConflictError("others changed the memory meanwhile; nothing was undone, look again and repeat")

    memory.add_hook(veto)


def _need_vectors(memory: MemoryStore, vectors: Vectors) -> None:
    names = collections_of(counts_of(memory))
    if names and not vectors.named:
        raise ValidationFailed(
            f"facts of this storage have vectors in {', '.join(map(repr, names))}: to undo both together, give "
            "--chroma FOLDER --collection NAME --text-field FIELD, or --hook MODULE:NAME"
        )


def verify(
    storage: StorageArgument,
    as_json: JsonOption = False,
    chroma: ChromaOption = None,
    collection: CollectionOption = None,
    text_field: TextFieldOption = None,
    hook: HookOption = None,
) -> None:
    """Compare facts, log and vectors, changing nothing; exit code 1 if they differ."""
    vectors = Vectors(chroma, collection, text_field, hook)
    with opened(storage, vectors) as memory:
        with working("comparing"):
            report = memory.verify()
        unseen = [] if vectors.named else collections_of(counts_of(memory))
    if unseen:
        note(f"not compared: vectors in {', '.join(map(repr, unseen))}; for that give --chroma ..., or --hook")
    _print_report(report, as_json)


def repair(
    storage: StorageArgument,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Embed everything again.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    chroma: ChromaOption = None,
    collection: CollectionOption = None,
    text_field: TextFieldOption = None,
    hook: HookOption = None,
) -> None:
    """Remove vectors that no fact stands for, embed facts that lack theirs.

    It needs the vectors: --chroma ..., or --hook. Facts and log are never changed.
    """
    vectors = Vectors(chroma, collection, text_field, hook)
    if not vectors.named:
        raise ValidationFailed(
            "repair mends vectors: say where they are with --chroma FOLDER --collection NAME --text-field FIELD, "
            "or --hook MODULE:NAME"
        )
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
