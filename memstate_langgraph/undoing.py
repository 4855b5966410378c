"""Taking back from inside a graph, within a scope: what `RollbackNode` and the tool `undo` share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

from langgraph.types import interrupt

from memstate_langgraph.differences import Preview
from memstate_langgraph.errors import ScopeError, ValidationFailed
from memstate_langgraph.scope import Scope, Script, ask

What = Mapping[str, Any] | Literal["run"]
"""What to take back of this thread: of a run (`"run"` is this one), a tool call, a task, or all since a moment."""

_CAUSES = ("run_id", "tool_call_id", "task_id", "since")


class Undone(NamedTuple):
    """The ids of the facts touched; what would change, if that was asked; whether a human declined."""

    touched: list[str]
    preview: Preview | None = None
    declined: bool = False


def undo(
    scope: Scope,
    steps: int,
    what: What | None,
    *,
    types: Sequence[str] | None,
    actor: str,
    key: str | None,
    dry_run: bool,
    approve: bool,
) -> Script[Undone]:
    """Take back the last steps of this thread, or `what`, and never anything outside the scope."""
    chosen: dict[str, Any]
    if what is None:
        method, chosen = "rollback", {"steps": steps, "session_id": scope.session_id}
    else:
        method, chosen = "revert", {**_causes(what, scope), "thread_id": scope.session_id}
    chosen |= {"namespace": scope.namespace, "types": types, "idempotency_key": key}
    preview: Preview | None = None
    if dry_run or approve:
        preview = yield from ask("would_undo", **chosen)
        if dry_run:
            return Undone([], preview)
        if preview and not _agreed(preview):
            return Undone([], preview, declined=True)
    touched = yield from ask(method, **chosen, actor=actor, cause=scope.cause, expected=preview)
    return Undone(touched, preview)


def _causes(what: What, scope: Scope) -> dict[str, Any]:
    if what == "run":
        if scope.cause.run_id is None:
            raise ScopeError(
                "revert: the application gave this run no id: it must pass config['configurable']['run_id']"
            )
        return {"run_id": scope.cause.run_id}
    if not isinstance(cast("object", what), Mapping) or not what.keys() <= set(_CAUSES):
        raise ValidationFailed(f"revert: must be 'run' or a dict of {', '.join(_CAUSES)}, not {what!r}")
    return dict(what)


def _agreed(preview: Preview) -> bool:
    """Ask a human. The task runs again from its top with the answer, so it must name what it agrees to."""
    question = {
        "action": "undo",
        "preview": str(preview),
        "changes": [
            {"what": one.sign, "fact_id": one.fact_id, "type": one.fact.type, "fields": one.fields()}
            for one in preview.changes
        ],
        "approve": preview.token,
    }
    answer = interrupt(question)
    while answer and answer != preview.token:
        if isinstance(answer, str):
            note = "memory was changed since the last answer, so that it agreed to something else; nothing was undone"
        else:
            note = "answer with the value of 'approve' to agree, or with False"
        answer = interrupt({**question, "note": note})
    return bool(answer)
