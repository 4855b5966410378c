"""Commands that take back. What would change is shown first and asked for, and nothing else is done."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from memstate_langgraph.cli.opening import (
    JsonOption,
    StorageArgument,
    Vectors,
    YesOption,
    collections_of,
    counts_of,
    moment_of,
    opened,
    with_vectors,
)
from memstate_langgraph.cli.printing import console, print_changes, print_json
from memstate_langgraph.differences import Preview
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.rules import MAX_COUNT
from memstate_langgraph.saver import MemStateCheckpointer

ACTOR = "memstate command"

ReasonOption = Annotated[str | None, typer.Option("--reason", help="Why; the log keeps it.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")]


@with_vectors
def rollback(
    storage: StorageArgument,
    steps: Annotated[int, typer.Option("--steps", min=1, max=MAX_COUNT, help="How many transactions.")] = 1,
    session: Annotated[str | None, typer.Option("--session", "-s", help="Only those of this session.")] = None,
    reason: ReasonOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    *,
    vectors: Vectors,
) -> None:
    """Undo the last transactions in force (of a session): all of them, or none on a conflict.

    Where facts have vectors it needs them too: --chroma ..., or --hook.
    """
    with opened(storage, vectors) as memory:
        preview = memory.would_undo(steps, session)
        if _agreed(memory, vectors, preview, dry_run, yes, as_json):
            _tell(memory.rollback(steps, session, ACTOR, reason, expected=preview), as_json)


@with_vectors
def revert(
    storage: StorageArgument,
    run: Annotated[str | None, typer.Option("--run", help="What this run did.")] = None,
    tool_call: Annotated[str | None, typer.Option("--tool-call", help="What this tool call did.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="What this task did.")] = None,
    thread: Annotated[str | None, typer.Option("--thread", help="What this thread did.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="MOMENT", help="Only what came later; see diff for moments.")
    ] = None,
    reason: ReasonOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    *,
    vectors: Vectors,
) -> None:
    """Undo all that has a cause in a graph, wherever it is in the log: all of it, or none on a conflict.

    `memstate show` tells the causes of an entry. Where facts have vectors it needs them too: --chroma ..., or --hook.
    """
    what: Any = {"run_id": run, "tool_call_id": tool_call, "task_id": task, "thread_id": thread}
    if all(cause is None for cause in what.values()):
        raise ValidationFailed("revert: say what, with --run, --tool-call, --task or --thread")
    what["since"] = None if since is None else moment_of(since)
    with opened(storage, vectors) as memory:
        preview = memory.would_undo(**what)
        if _agreed(memory, vectors, preview, dry_run, yes, as_json):
            _tell(memory.revert(**what, actor=ACTOR, reason=reason, expected=preview), as_json)


@with_vectors
def rewind(
    storage: StorageArgument,
    thread: Annotated[str, typer.Argument(metavar="THREAD", help="The thread to take back.")],
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="One of those that `threads` lists for it.")],
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    *,
    vectors: Vectors,
) -> None:
    """Take a conversation back to a checkpoint, together with what it has put into memory since.

    No checkpoint is deleted: the old one becomes the newest again. Where facts have vectors it needs them too:
    --chroma ..., or --hook.
    """
    config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": checkpoint}}
    with opened(storage, vectors) as memory:
        saver = MemStateCheckpointer(memory)
        preview = saver.would_rewind(config)
        if not _agreed(memory, vectors, preview, dry_run, yes, as_json, also=f"thread {thread!r} goes back"):
            return
        head = saver.rewind(config, expected=preview)["configurable"]["checkpoint_id"]
    touched = [change.fact_id for change in preview.changes]
    if as_json:
        print_json({"checkpoint": head, "touched": touched})
    else:
        console().print(f"rewound; the thread is at checkpoint {head}; facts touched: {len(touched)}")


def _agreed(
    memory: MemoryStore,
    vectors: Vectors,
    preview: Preview,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    also: str | None = None,
) -> bool:
    """Whether to go on, once it was shown what would change; `also` is what changes besides facts."""
    empty = f"no fact would change, but {also}" if also else "there is nothing to undo: no fact would change"
    if dry_run or not (preview or also):
        print_changes(preview, as_json, empty=empty)
        return False
    names = collections_of(counts_of(memory))
    if names:
        vectors.require(f"facts of this storage have vectors in {', '.join(map(repr, names))}, undone with them")
    if not yes:
        print_changes(preview, as_json=False, empty=empty)
        typer.confirm(f"Undo this? ({also})" if also else "Undo this?", abort=True, err=True)
    return True


def _tell(touched: list[str], as_json: bool) -> None:
    if as_json:
        print_json({"touched": touched})
    else:
        console().print(f"undone; facts touched: {len(touched)}")
