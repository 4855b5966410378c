"""What may be asked of the facts: changes as values, each with who asked for it and why. `plans` says what they do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from memstate_langgraph.differences import Preview
from memstate_langgraph.facts import NO_CAUSE, Cause, Fact, Namespace


@dataclass(frozen=True, slots=True)
class By:
    """Who asked for a change, why, and what in a graph made it."""

    session_id: str | None = None
    actor: str | None = None
    reason: str | None = None
    cause: Cause = NO_CAUSE


EXPIRY = By(actor="expiry", reason="its time to live has passed")


@dataclass(frozen=True, slots=True)
class Put:
    """Store a fact, already admitted by the rules. `id_given` says that the caller chose its id.

    The fields of the payload that `keeps` names stay as they are in a fact that is there already.
    """

    fact: Fact
    by: By
    id_given: bool = False
    expected_version: int | None = None
    idempotency_key: str | None = None
    keeps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Patch:
    """Change fields of a payload (merged at the top level), or the source."""

    fact_id: str
    payload: Mapping[str, Any]
    by: By
    source: str | None = None
    expected_version: int | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True)
class Drop:
    """Delete a fact; with `missing_ok` also one that is not there, which changes nothing."""

    fact_id: str
    by: By
    expected_version: int | None = None
    idempotency_key: str | None = None
    missing_ok: bool = False


@dataclass(frozen=True, slots=True)
class Promote:
    """Make ephemeral facts of a session ordinary ones; all of them, or those named."""

    session_id: str
    by: By
    ids: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Discard:
    """Delete the ephemeral facts of a session."""

    session_id: str
    by: By


@dataclass(frozen=True, slots=True)
class Rollback:
    """Undo the last transactions in force, of a session or of all; only within a namespace and types, if given.

    All of them where `steps` is None; only those with these causes, after a position of the log, or whose tasks ran
    on a checkpoint not before `ran_on`. If it is not just what was `expected`, it is refused.
    """

    steps: int | None
    session_id: str | None
    by: By
    namespace: Namespace | None = None
    types: frozenset[str] | None = None
    idempotency_key: str | None = None
    causes: tuple[tuple[str, str], ...] = ()
    after: int | None = None
    ran_on: str | None = None
    expected: Preview | None = None

    def admits(self, fact: Fact) -> bool:
        return (self.namespace is None or fact.namespace == self.namespace) and (
            self.types is None or fact.type in self.types
        )


@dataclass(frozen=True, slots=True)
class Expire:
    """Delete those of these facts whose time to live has passed."""

    ids: tuple[str, ...]
    by: By = EXPIRY


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Store those of these facts that follow an earlier version of their schema as they are read now."""

    ids: tuple[str, ...]
    by: By


@dataclass(frozen=True, slots=True)
class Purge:
    """Delete these facts, which need not be live, so that what they were can be erased."""

    ids: tuple[str, ...]
    by: By


Change = Put | Patch | Drop | Promote | Discard | Rollback | Expire | Rewrite | Purge
