"""The past: positions of the log, the facts as they were then, and what changed between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

from memstate_langgraph.checkpoint_ops import FindCheckpoints
from memstate_langgraph.differences import Diff, differences
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Fact
from memstate_langgraph.ops import FactsAt, LastSeq, Plan, PositionAt, ReadLog, reads
from memstate_langgraph.rules import check_characters, check_count
from memstate_langgraph.views import expired

Moment = int | datetime | Mapping[str, Any]
"""A position of the log, a time, or the config of a checkpoint."""


def position_of(moment: Moment, name: str) -> Plan[int]:
    """Raises `ValidationFailed`, naming the argument, for what is no moment, or no stored checkpoint."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValidationFailed(f"{name}: a time needs a time zone, such as datetime.now(UTC), not {moment!r}")
        return (yield from PositionAt(moment.astimezone(UTC)))  # stored in UTC, as text
    if isinstance(moment, Mapping):
        place = moment.get("configurable")
        thread_id = place.get("thread_id") if isinstance(place, Mapping) else None
        if not isinstance(place, Mapping) or not thread_id:
            raise ValidationFailed(f"{name}: the config of a checkpoint has a thread_id, this has none")
        checkpoint_ns, checkpoint_id = place.get("checkpoint_ns") or "", place.get("checkpoint_id")
        for part, text in (
            ("thread_id", thread_id),
            ("checkpoint_ns", checkpoint_ns),
            ("checkpoint_id", checkpoint_id),
        ):
            if text is not None:
                check_characters(str(text), f"{name}: {part}")
        asked = None if checkpoint_id is None else str(checkpoint_id)
        rows = yield from FindCheckpoints(str(thread_id), str(checkpoint_ns), asked, limit=1)
        if not rows:
            raise ValidationFailed(f"{name}: there is no checkpoint {checkpoint_id!r} of thread {thread_id!r}")
        return rows[0].position or 0
    if isinstance(cast("object", moment), bool) or not isinstance(cast("object", moment), int):
        raise ValidationFailed(
            f"{name}: must be a position of the log, a time or a checkpoint's config, not {moment!r}"
        )
    check_count(moment, name)
    return moment


@reads
def position(moment: Moment, name: str = "as_of") -> Plan[int]:
    return (yield from position_of(moment, name))


@reads
def facts_at(moment: Moment, fact_id: str | None = None) -> Plan[list[Fact]]:
    at = yield from position_of(moment, "as_of")
    facts = yield from FactsAt(at, fact_id)
    if all(fact.ttl is None for fact in facts):
        return facts
    (newest,) = yield from ReadLog(until=at, limit=1)
    gone = yield from expired(facts, moment if isinstance(moment, datetime) else newest.ts)
    return [fact for fact in facts if fact.id not in gone]


@reads
def diff(start: Moment, end: Moment | None) -> Plan[Diff]:
    first = yield from position_of(start, "start")
    last = (yield from LastSeq()) if end is None else (yield from position_of(end, "end"))
    if last < first:
        raise ValidationFailed(f"diff: goes forward in time, but {last} comes before {first}; swap them")
    entries = yield from ReadLog(after=first, until=last)
    return Diff(differences(reversed(entries)), first, last)
