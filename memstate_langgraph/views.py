"""What is stored, as it is read: old payloads through their upcast, and nothing whose time to live has passed.

Both rules are here once. A plan that reads for somebody is run under a `View`, which changes what storage answers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from memstate_langgraph.facts import Entry, Fact, Query
from memstate_langgraph.item_ops import LastReads
from memstate_langgraph.ops import FactsAt, Find, Hydrate, Load, Op, Plan, ReadLog, Together, Work
from memstate_langgraph.rules import ITEM_TYPE, Rules, matches
from memstate_langgraph.run import in_turn, relay

R = TypeVar("R")


def expired(facts: Iterable[Fact], now: datetime) -> Plan[set[str]]:
    """The ids of the facts whose time to live has passed; reading an item of a LangGraph store lengthens its life."""
    mortal = [fact for fact in facts if fact.ttl is not None]
    items = tuple(fact.id for fact in mortal if fact.type == ITEM_TYPE)
    read = (yield from LastReads(items)) if items else {}
    return {fact.id for fact in mortal if fact.has_expired(now, read.get(fact.id))}


def shown(rules: Rules, entry: Entry) -> Entry:
    """An entry with its facts as their types are now."""
    facts = {"before": entry.before, "after": entry.after}
    old = {name: rules.current(fact) for name, fact in facts.items() if fact is not None and rules.is_old(fact)}
    return entry.model_copy(update=old) if old else entry


@dataclass(frozen=True, slots=True)
class View:
    """Storage as types are now and at a time."""

    rules: Rules
    now: datetime

    def __call__(self, work: Work[R]) -> Work[R]:
        def start() -> Generator[Op[Any], Any, R]:
            return relay(work.start(), self._answer)

        return replace(work, start=start)

    def _answer(self, op: Op[Any]) -> Plan[Any]:
        match op:
            case Together():
                return (yield from in_turn(op.questions, self._answer))
            case Find():
                return (yield from self._find(op.query))
            case Load():
                standing = yield from op
                gone = yield from expired((where.fact for where in standing.values() if where.fact), self.now)
                return {
                    key: where._replace(fact=where.fact and self.rules.current(where.fact) if key not in gone else None)
                    for key, where in standing.items()
                }
            case Hydrate():
                facts = yield from op
                gone = yield from expired(facts.values(), self.now)
                return {key: self.rules.current(fact) for key, fact in facts.items() if fact.id not in gone}
            case FactsAt():  # what had expired then, only the asker knows
                return [self.rules.current(fact) for fact in (yield from op)]
            case ReadLog():
                return [shown(self.rules, entry) for entry in (yield from op)]
        return (yield from op)

    def _find(self, query: Query) -> Plan[list[Fact]]:
        """As many as are asked for, or all there are: more are read where some have expired."""
        question, count = self._asked(query), query.limit
        while True:
            found = yield from Find(replace(question, limit=count))
            gone = yield from expired(found, self.now)
            if count is None or query.limit is None or len(found) < count or len(found) - len(gone) >= query.limit:
                return [self.rules.current(fact) for fact in found if fact.id not in gone][: query.limit]
            count *= 4

    def _asked(self, query: Query) -> Query:
        """The query with what it asks of payloads asked last, of payloads as they are now."""
        if not self.rules.evolved(query.type):
            return query
        payload = {key: wanted for key, wanted in query.filters.items() if key.startswith("payload.")}
        inner = query.where
        if not payload and inner is None:
            return query

        def where(fact: Fact) -> bool:
            now = self.rules.current(fact)
            return matches(now, payload) and (inner is None or inner(now))

        rest = {key: wanted for key, wanted in query.filters.items() if key not in payload}
        return replace(query, filters=rest, where=where)
