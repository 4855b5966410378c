"""verify and repair: do facts, log and vector stores say the same?"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

from memstate_langgraph.changes import By, Rewrite
from memstate_langgraph.errors import LeaseLost, ValidationFailed
from memstate_langgraph.facts import Entry, Fact, Health, Query, Vector
from memstate_langgraph.flows import Core, ask
from memstate_langgraph.ops import (
    Activate,
    Expunge,
    Find,
    LastSeq,
    Load,
    Plan,
    ReadLog,
    ReadVectors,
    Retire,
    reads,
    writes,
)
from memstate_langgraph.protocol import intend
from memstate_langgraph.reading import find
from memstate_langgraph.rules import Rules, check_flag
from memstate_langgraph.run import Flow, Progress, check_progress, tell
from memstate_langgraph.tables import table
from memstate_langgraph.vectors import Text, VectorStoreSyncHook

PAGE = 1000
REBUILD_AT_ONCE = 500


@dataclass(frozen=True)
class Report:
    """What `verify()` found. `ok` means that whatever a reader can see agrees.

    `leftovers` are vectors that search no longer shows and that are waiting for their removal, `outdated` facts that
    are stored at an earlier version of their schema and read through its upcast: both normal.
    """

    facts: int
    entries: int
    vectors: int
    leftovers: int
    findings: tuple[Health, ...] = ()
    warnings: tuple[str, ...] = ()
    outdated: int = 0

    @property
    def ok(self) -> bool:
        return not self.findings

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        head = "all agree" if self.ok else "NOT in step"
        lines = [
            f"facts, log and vectors: {head}",
            f"  {self.facts} live facts, {self.entries} log entries, {self.vectors} live vectors, "
            f"{self.leftovers} awaiting removal",
        ]
        if self.outdated:
            lines.append(f"  {self.outdated} facts of an earlier schema version (repair(upcast=True) rewrites them)")
        lines += [f"  {found.count} x {found.problem}, such as {found.example}" for found in self.findings]
        lines += [f"  note: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        """A table, where a notebook shows the report."""
        rows: list[tuple[str, int | None]] = [
            ("live facts", self.facts),
            ("log entries", self.entries),
            ("live vectors", self.vectors),
            ("vectors awaiting removal", self.leftovers),
            *([("facts of an earlier schema version", self.outdated)] if self.outdated else []),
            *((f"{found.problem}, such as {found.example}", found.count) for found in self.findings),
        ]
        rows += [(f"note: {warning}", None) for warning in self.warnings]
        head = "all agree" if self.ok else "NOT in step"
        return table(("facts, log and vectors", head), rows)


@dataclass
class _Findings:
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, problem: str, examples: Iterable[str]) -> None:
        for example in examples:
            self.counts[problem] += 1
            self.examples.setdefault(problem, example)

    def listed(self) -> tuple[Health, ...]:
        return tuple(Health(problem, count, self.examples[problem]) for problem, count in self.counts.items())


@dataclass(frozen=True, slots=True)
class Books:
    """One snapshot of what storage says; `shown` are the facts as they are read, `unreadable` why some are not."""

    facts: dict[str, Fact]
    shown: dict[str, Fact]
    unreadable: tuple[str, ...]
    replayed: dict[str, Fact]
    gaps: tuple[str, ...]
    entries: int
    seqs: dict[str, int]
    vectors: dict[str, list[Vector]]


@reads
def books(indexes: tuple[str, ...], rules: Rules) -> Plan[Books]:
    replayed: dict[str, Fact] = {}
    versions: dict[str, int] = {}
    seqs: dict[str, int] = {}
    gaps: list[str] = []
    last = yield from LastSeq()
    entries = 0
    for start in range(0, last, PAGE):
        page = yield from ReadLog(after=start, until=start + PAGE)
        entries += len(page)
        for entry in reversed(page):
            if versions.get(entry.fact_id, 0) + 1 != entry.version:
                gaps.append(f"{entry.fact_id} version {entry.version}")
            versions[entry.fact_id] = entry.version
            seqs[entry.fact_id] = entry.seq
            if entry.after is None:
                replayed.pop(entry.fact_id, None)
            else:
                replayed[entry.fact_id] = entry.after
    facts = {fact.id: fact for fact in (yield from Find(Query()))}
    problems = {fact.id: why for fact in facts.values() if (why := rules.unreadable(fact)) is not None}
    shown = {fact.id: rules.current(fact) for fact in facts.values() if fact.id not in problems}
    vectors: dict[str, list[Vector]] = {}
    for index in indexes:
        rows: list[Vector] = []
        while page_of := (yield from ReadVectors(index, rows[-1].id if rows else "", PAGE)):
            rows += page_of
        vectors[index] = rows
    return Books(facts, shown, tuple(problems.values()), replayed, tuple(gaps), entries, seqs, vectors)


def verify(core: Core, storage: Any) -> Flow[Report]:
    return (yield from _examine(core, storage, {}))


def _held(hook: VectorStoreSyncHook) -> Flow[set[str] | None]:
    ids: list[str] | None = yield from ask(hook, "ids")
    return None if ids is None else set(ids)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One vector store against the books."""

    strays: set[str]
    missing: dict[str, Text]
    gone: list[Vector]
    standing: set[str]
    live: int
    waiting: int


def compare(hook: VectorStoreSyncHook, found: Books, held: set[str] | None) -> Flow[Comparison]:
    """`held` is what the vector store held before the books were read."""
    comparison = _compared(hook, found, held, held)
    if comparison.missing and held is not None:
        # What was committed between the two looks is not missing: it is there by now.
        comparison = _compared(hook, found, held, held | ((yield from _held(hook)) or set()))
    return comparison


def _compared(hook: VectorStoreSyncHook, found: Books, held: set[str] | None, since: set[str] | None) -> Comparison:
    rows = found.vectors[hook.name]
    live = {row.fact_id: row for row in rows if row.state == "live"}
    wanted = {fact.id: text for fact in found.shown.values() if (text := hook.text_of(fact)) is not None}
    known = {row.id for row in rows}
    present = known if since is None else since
    missing = {
        fact_id: text
        for fact_id, text in wanted.items()
        if (row := live.get(fact_id)) is None or row.id not in present or row.born != found.seqs[fact_id]
    }
    gone = [row for fact_id, row in live.items() if fact_id in missing or fact_id not in wanted]
    strays = (held or set()) - known  # an id is in the books before the store has it
    standing = (live.keys() & wanted.keys()) - missing.keys()
    return Comparison(strays, missing, gone, standing, len(live), sum(row.state != "live" for row in rows))


def _examine(core: Core, storage: Any, comparisons: dict[str, Comparison]) -> Flow[Report]:
    held: dict[str, set[str] | None] = {}
    for hook in core.vectors:
        held[hook.name] = yield from _held(hook)
    found: Books = yield books(tuple(hook.name for hook in core.vectors), core.rules)
    findings = _Findings()
    findings.add("gap in a fact's versions in the log", found.gaps)
    findings.add(
        "fact that differs from what the log says",
        (fact_id for fact_id, fact in found.facts.items() if found.replayed.get(fact_id) != fact),
    )
    findings.add("fact that the log has and the facts have not", found.replayed.keys() - found.facts.keys())
    findings.add("fact that its upcast cannot read", found.unreadable)
    warnings = list(getattr(getattr(storage, "engine", None), "warnings", list)())
    for hook in core.vectors:
        comparison = yield from compare(hook, found, held[hook.name])
        comparisons[hook.name] = comparison
        findings.add(f"vector in {hook.name!r} that no journal knows (invisible to search)", sorted(comparison.strays))
        findings.add(f"fact without its vector in {hook.name!r} (repair embeds it)", sorted(comparison.missing))
        orphans = [row.id for row in comparison.gone if row.fact_id not in comparison.missing]
        findings.add(f"vector in {hook.name!r} of a fact that should have none", orphans)
        warnings += [f"{hook.name!r} {sentence}" for sentence in hook.capabilities.shortcomings()]
    return Report(
        facts=len(found.facts),
        entries=found.entries,
        vectors=sum(comparison.live for comparison in comparisons.values()),
        leftovers=sum(comparison.waiting for comparison in comparisons.values()),
        findings=findings.listed(),
        warnings=tuple(warnings),
        outdated=sum(core.rules.is_old(fact) for fact in found.facts.values()),
    )


@writes
def replace_vectors(fresh: tuple[tuple[str, Fact], ...], old: tuple[str, ...]) -> Plan[tuple[str, ...]]:
    """Make fresh vectors live in the place of lost ones, for facts that are still what was embedded."""
    born = yield from _unchanged(fresh)
    yield from Expunge(old)
    yield from Activate(tuple((vector_id, entry.seq) for vector_id, entry in born))
    return tuple(vector_id for vector_id, _ in born)


def _unchanged(fresh: tuple[tuple[str, Fact], ...]) -> Plan[list[tuple[str, Entry]]]:
    """The fresh vectors of facts that are still what was embedded, with the entries that made those so."""
    standing = yield from Load(tuple(fact.id for _, fact in fresh))
    born = []
    for vector_id, fact in fresh:
        now = standing[fact.id].fact
        if now is not None and now.version == fact.version:
            (entry,) = yield from ReadLog(fact_id=fact.id, limit=1)
            born.append((vector_id, entry))
    return born


@writes
def forget(ids: tuple[str, ...]) -> Plan[None]:
    yield from Expunge(ids)


@writes
def swap_vectors(index: str, fresh: tuple[tuple[str, Fact], ...], retire_at: float) -> Plan[int]:
    """Make fresh vectors live and retire those they replace, for facts that are still what was embedded; how many.

    A search under way may have found the old ones only, so they stay visible at the positions that are taken.
    """
    born = yield from _unchanged(fresh)
    after = 1 + (yield from LastSeq())
    yield from Retire(tuple((entry.fact_id, after) for _, entry in born), retire_at, index)
    if (yield from Activate(tuple((vector_id, entry.seq) for vector_id, entry in born))) != len(born):
        raise LeaseLost("a collection took longer to rebuild than its lease; what was rebuilt so far stays, try again")
    return len(born)


def repair(
    core: Core, storage: Any, progress: Progress | None, rebuild: bool | Iterable[str], upcast: bool
) -> Flow[Report]:
    afresh = _chosen(core, rebuild)
    check_progress(progress)
    check_flag(upcast, "upcast")
    report = partial(tell, progress)
    if upcast:
        yield from _rewrite(core, report)
    comparisons: dict[str, Comparison] = {}
    yield from _examine(core, storage, comparisons)
    for hook in core.vectors:
        found = comparisons[hook.name]
        strays = sorted(found.strays)
        for start in range(0, len(strays), REBUILD_AT_ONCE):
            batch = tuple(strays[start : start + REBUILD_AT_ONCE])
            yield from ask(hook, "delete", batch)
            report(f"removing strays from {hook.name}", start + len(batch), len(strays))
        yield from _embed_missing(core, hook, found, report)
        if hook.name in afresh:
            yield from _rebuild(core, hook, found, report)
    removed = yield from core.collect()
    report("removing old vectors", removed, removed)
    return (yield from _examine(core, storage, {}))


def _rewrite(core: Core, report: Progress) -> Flow[None]:
    """Store old facts as they are read now, vectors included, a batch in each transaction."""
    done = 0
    looked_at: set[str] = set()
    query = Query(limit=REBUILD_AT_ONCE, where=lambda fact: core.rules.is_old(fact) and fact.id not in looked_at)
    while page := (yield find(query)):
        ids = [fact.id for fact in page]
        looked_at.update(ids)
        readable = [fact.id for fact in page if core.rules.unreadable(fact) is None]  # `verify` names the others
        draft, _ = yield from core.write([Rewrite(tuple(readable), By(None, "repair", "upcast"))])
        done += len(draft.results[0])
        report("rewriting old facts", done, done)


def _embed_missing(core: Core, hook: VectorStoreSyncHook, found: Comparison, report: Progress) -> Flow[None]:
    facts: dict[str, Fact] = yield present(tuple(found.missing), core.rules)
    old = {row.fact_id: row.id for row in found.gone}
    useless = tuple(row.id for row in found.gone if row.fact_id not in facts)
    if useless:
        yield from ask(hook, "delete", useless)
        yield forget(useless)
    todo = list(facts.values())
    for start in range(0, len(todo), REBUILD_AT_ONCE):
        batch = [fact for fact in todo[start : start + REBUILD_AT_ONCE] if hook.text_of(fact) is not None]
        fresh = yield from _embed(hook, batch)
        lost = tuple(old[fact.id] for fact in batch if fact.id in old)
        if lost:
            yield from ask(hook, "delete", lost)
        yield replace_vectors(fresh, lost)
        report(f"embedding into {hook.name}", start + len(batch), len(todo))


def _embed(hook: VectorStoreSyncHook, batch: list[Fact]) -> Flow[tuple[tuple[str, Fact], ...]]:
    """Prepare vectors of facts under fresh ids, as a commit does."""
    texts = [(str(uuid.uuid4()), fact, text) for fact in batch if (text := hook.text_of(fact)) is not None]
    due = time.time() + hook.lease
    yield intend(tuple(Vector(vector_id, hook.name, fact.id, due=due) for vector_id, fact, _ in texts))
    yield from ask(hook, "upsert", [(vector_id, text) for vector_id, _, text in texts])
    return tuple((vector_id, fact) for vector_id, fact, _ in texts)


def _rebuild(core: Core, hook: VectorStoreSyncHook, found: Comparison, report: Progress) -> Flow[None]:
    """Embed what had a vector again. What others commit meanwhile is embedded afresh anyway."""
    standing = sorted(found.standing)
    for start in range(0, len(standing), REBUILD_AT_ONCE):
        ids = tuple(standing[start : start + REBUILD_AT_ONCE])
        facts: dict[str, Fact] = yield present(ids, core.rules)
        batch = [fact for fact in facts.values() if hook.text_of(fact) is not None]
        if batch:
            fresh = yield from _embed(hook, batch)
            yield swap_vectors(hook.name, fresh, time.time() + hook.grace)
        report(f"rebuilding {hook.name}", start + len(ids), len(standing))


def _chosen(core: Core, rebuild: bool | Iterable[str]) -> set[str]:
    names = {hook.name for hook in core.vectors}
    if isinstance(rebuild, bool):
        return names if rebuild else set()
    if isinstance(rebuild, str) or not isinstance(cast("object", rebuild), Iterable):
        raise ValidationFailed(f"rebuild: must be True or a list of hook names, not {rebuild!r}")
    chosen = list(rebuild)
    for name in chosen:
        if name not in names:
            raise ValidationFailed(f"rebuild: there is no hook {name!r}, only {', '.join(sorted(names)) or 'none'}")
    return set(chosen)


@reads
def present(ids: tuple[str, ...], rules: Rules) -> Plan[dict[str, Fact]]:
    standing = yield from Load(ids)
    return {fact_id: rules.current(where.fact) for fact_id, where in standing.items() if where.fact is not None}
