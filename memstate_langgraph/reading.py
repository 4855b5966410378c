"""Reading: what is stored, then, and with what the caller has changed and not committed yet."""

from __future__ import annotations

from dataclasses import replace

from memstate_langgraph.differences import Diff
from memstate_langgraph.facts import Entry, Fact, Query
from memstate_langgraph.flows import Core
from memstate_langgraph.ops import Find, LastSeq, Load, Plan, ReadLog, reads
from memstate_langgraph.past import Moment, diff as past_diff, facts_at, position as past_position
from memstate_langgraph.plans import changed_by
from memstate_langgraph.rules import CHECKPOINT_TYPE, WRITE_TYPE, answers, check_count, check_query, check_text
from memstate_langgraph.run import Flow
from memstate_langgraph.staging import drafts_of

# --- plans


@reads
def find(query: Query) -> Plan[list[Fact]]:
    return (yield from Find(query))


@reads
def load(fact_id: str) -> Plan[Fact | None]:
    standing = yield from Load((fact_id,))
    return standing[fact_id].fact if fact_id in standing else None


@reads
def log_position() -> Plan[int]:
    return (yield from LastSeq())


@reads
def read_log(question: ReadLog) -> Plan[list[Entry]]:
    return (yield from question)


# --- flows


def overlay(core: Core) -> dict[str, Fact | None]:
    """The facts that the surrounding transaction or task changes, as its own reads see them.

    Taken before storage is asked: what lands meanwhile is then seen twice, never not at all.
    """
    transaction = core.ambient.get()
    drafts = drafts_of(core.visible())
    changed, now = changed_by(drafts if transaction is None else [*drafts, transaction.draft]), core.now()
    return {fact_id: None if fact is not None and fact.has_expired(now) else fact for fact_id, fact in changed.items()}


def get(core: Core, fact_id: str, as_of: Moment | None = None) -> Flow[Fact | None]:
    check_text(fact_id, "fact_id")
    if as_of is not None:
        then: list[Fact] = yield core.seen(facts_at(as_of, fact_id))
        return then[0] if then else None
    ours = overlay(core)
    if fact_id in ours:
        return ours[fact_id]
    fact: Fact | None = yield core.seen(load(fact_id))
    return fact


def query(core: Core, query: Query, as_of: Moment | None = None) -> Flow[list[Fact]]:
    query = check_query(query)
    if as_of is not None:
        then: list[Fact] = yield core.seen(facts_at(as_of))
        return [fact for fact in then if answers(fact, query)][: query.limit]
    if query.type in (CHECKPOINT_TYPE, WRITE_TYPE):
        from memstate_langgraph.checkpoints import as_facts  # loads LangGraph, which facts alone do not need

        rendered: list[Fact] = yield as_facts(query)
        return rendered
    ours = overlay(core)
    # so many that enough are left where all that was changed is among them
    enough = None if query.limit is None else query.limit + len(ours)
    stored: list[Fact] = yield core.seen(find(replace(query, limit=enough)))
    facts = [fact for fact in stored if fact.id not in ours]
    changed = [fact for fact in ours.values() if fact is not None and answers(fact, query)]
    facts = [*reversed(changed), *facts] if query.newest else facts + changed
    return facts[: query.limit]


def diff(core: Core, start: Moment, end: Moment | None) -> Flow[Diff]:
    found: Diff = yield core.seen(past_diff(start, end))
    return found


def log(core: Core, question: ReadLog, as_of: Moment | None = None) -> Flow[list[Entry]]:
    if as_of is not None:
        question = replace(question, until=(yield past_position(as_of)))
    if question.limit is not None:
        check_count(question.limit, "limit")
    for name in ("session_id", "fact_id"):
        if (text := getattr(question, name)) is not None:
            check_text(text, name)
    entries: list[Entry] = yield core.seen(read_log(question))
    return entries
