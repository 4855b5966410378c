"""The transactions of the commit protocol, which `flows` describes: decide, write intents down, go live, clean up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memstate_langgraph.changes import Change
from memstate_langgraph.errors import ConflictError, LeaseLost
from memstate_langgraph.facts import Entry, Vector
from memstate_langgraph.ops import (
    Abandon,
    Activate,
    Buried,
    Due,
    Intend,
    Plan,
    ReadLog,
    Retire,
    notes,
    reads,
    writes,
)
from memstate_langgraph.plans import Draft, Mark
from memstate_langgraph.staging import Prepared, Unit
from memstate_langgraph.vectors import Text

ATTEMPTS = 20
"""How often a change is decided anew because others changed the same facts meanwhile."""

Wanted = dict[tuple[str, str], Text]
"""The text of each touched fact, by hook name and fact id."""


class Rehearsed(Exception):
    """Ends a transaction that was only to see what a change would do."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft


@reads
def preview(changes: Sequence[Change], new_draft: Callable[[], Draft]) -> Plan[Draft]:
    return (yield from decided(changes, new_draft()))


def joined(change: Change, draft: Draft, mark: Mark) -> Plan[Draft]:
    """Decide one more change; an error leaves the draft at the mark, and so does a beginning from the top."""
    draft.back_to(mark)
    try:
        if draft.assume(change):
            yield from draft.decide(change)
            return draft
        return (yield from decided([change], draft))
    except BaseException:
        draft.back_to(mark)
        raise


def decided(changes: Sequence[Change], draft: Draft) -> Plan[Draft]:
    yield from draft.prefetch(changes)
    for change in changes:
        yield from draft.decide(change)
    return draft


@notes
def intend(vectors: tuple[Vector, ...]) -> Plan[None]:
    yield from Intend(vectors)


@writes
def commit(
    changes: Sequence[Change],
    new_draft: Callable[[], Draft],
    previewed: Draft | None,
    wanted: Callable[[Mapping[str, Entry]], Wanted],
    prepared: Mapping[tuple[str, str], Prepared],
    approved: list[Any] | None,
    retire_at: float,
    now: float,
    besides: Callable[[], Plan[None]] | None = None,
) -> Plan[tuple[Draft, list[Entry] | None]]:
    """Commit if everything wanted is prepared and approved; otherwise None, and nothing was written.

    What is to be done `besides` is done in the same transaction.
    """
    if previewed is not None and (yield from previewed.holds()):
        draft = previewed
    else:
        draft = yield from decided(changes, new_draft())
    texts = wanted(draft.final())
    if lacking(texts, prepared) or (approved is not None and approved != gist(draft)):
        return draft, None
    entries = yield from draft.append()
    yield from go_live(entries, texts, prepared, retire_at, now)
    if besides is not None:
        yield from besides()
    return draft, entries


def lacking(texts: Wanted, prepared: Mapping[tuple[str, str], Prepared]) -> bool:
    return any(key not in prepared or prepared[key].text != text for key, text in texts.items())


def go_live(
    entries: Sequence[Entry],
    texts: Wanted,
    prepared: Mapping[tuple[str, str], Prepared],
    retire_at: float,
    now: float,
) -> Plan[None]:
    """Make the vectors of what was appended visible in the place of those of before."""
    seqs = {entry.fact_id: entry.seq for entry in entries}
    born = tuple((prepared[key].vector_id, seqs[key[1]]) for key in texts)
    if born and (yield from Activate(born)) != len(born):
        raise LeaseLost("the vectors took longer to prepare than their lease; nothing was committed, try again")
    changed = {entry.fact_id for entry in entries if entry.before is not None}  # what was not there has no vectors
    before = tuple((fact_id, seq) for fact_id, seq in seqs.items() if fact_id in changed)
    if before:
        yield from Retire(before, retire_at)
    spare = tuple(made.vector_id for key, made in prepared.items() if key not in texts)
    if spare:
        yield from Abandon(spare, now)


@reads
def preview_units(units: Sequence[Unit]) -> Plan[list[Draft] | None]:
    """The units decided anew, each over those before it; None if they have landed."""
    drafts: list[Draft] = []
    for unit in units:
        if (yield from is_landed(unit)):
            return None
        drafts.append((yield from decided(unit.changes, unit.new_draft().over(drafts))))
    return drafts


def is_landed(unit: Unit) -> Plan[bool]:
    return bool(unit.draft.entries and (yield from ReadLog(tx=unit.draft.tx, limit=1)))


@writes
def rehearse(units: Sequence[Unit], changes: Sequence[Change], new_draft: Callable[[], Draft]) -> Plan[None]:
    """Raises `Rehearsed` with what the changes would do after the units; nothing is kept."""
    for unit in units:
        if not (yield from is_landed(unit)):  # since the caller looked which there are
            yield from (yield from decided(unit.changes, unit.new_draft())).append()
    draft = new_draft()
    draft.rests_on_others = True
    raise Rehearsed((yield from decided(changes, draft)))


@notes
def abandon(ids: tuple[str, ...] | None, now: float) -> Plan[None]:
    yield from Abandon(ids, now)


@reads
def due(indexes: tuple[str, ...], now: float, limit: int) -> Plan[list[Vector]]:
    return (yield from Due(indexes, now, limit))


@notes
def bury(ids: tuple[str, ...], now: float, until: float) -> Plan[None]:
    yield from Buried(ids, now, until)


def contended() -> ConflictError:
    return ConflictError(f"others changed the same facts {ATTEMPTS} times meanwhile; nothing was written, try again")


def gist(draft: Draft) -> list[Any]:
    """What a veto hook was shown: equal gists need no second asking."""
    return [(entry.op, entry.fact_id, entry.version, entry.after) for entry in draft.entries]
