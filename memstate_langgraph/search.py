"""Search by meaning: what a vector store finds, as far as it was true at one moment.

A position of the log comes first, then the vector store is asked, then the hits are kept whose vector was live at
that position; more are asked for until enough survive. What the running task has staged is among them.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Sequence
from typing import cast

from memstate_langgraph.errors import HookError, MemoryStoreError, ValidationFailed
from memstate_langgraph.facts import Fact, Query, ScoredFact
from memstate_langgraph.flows import Core, ask
from memstate_langgraph.ops import Hydrate, Plan, reads
from memstate_langgraph.past import Moment, facts_at
from memstate_langgraph.plans import changed_by
from memstate_langgraph.reading import log_position
from memstate_langgraph.rules import answers, check_characters, check_count, check_query
from memstate_langgraph.run import Flow
from memstate_langgraph.staging import drafts_of
from memstate_langgraph.vectors import VectorStoreSyncHook


@reads
def hydrate(vectors: tuple[str, ...], at: int) -> Plan[dict[str, Fact]]:
    return (yield from Hydrate(vectors, at))


def search(
    core: Core,
    query: str,
    limit: int | None,
    score_threshold: float | None,
    scope: Query,
    as_of: Moment | None = None,
) -> Flow[list[ScoredFact]]:
    if not core.vectors:
        raise MemoryStoreError("search: this store has no vector hook; add a VectorStoreSyncHook")
    if not isinstance(cast("object", query), str) or not query.strip():
        raise ValidationFailed(f"search: the query must be some text, not {query!r}")
    check_characters(query, "search: the query")
    if limit is not None:
        check_count(limit, "limit")
    if score_threshold is not None and not isinstance(cast("object", score_threshold), int | float):
        raise ValidationFailed(f"score_threshold: must be a number, not {score_threshold!r}")
    scope = check_query(scope)
    best: dict[str, ScoredFact] = {}
    for hook in core.vectors:
        if scope.type is not None and not hook.embeds(scope.type):
            continue
        if as_of is None:
            hits = yield from _ranked(core, hook, query, limit, score_threshold, scope)
        else:
            hits = yield from _ranked_then(core, hook, query, score_threshold, scope, as_of)
        for found in hits:
            known = best.get(found.fact.id)
            if known is None or found.score > known.score:
                best[found.fact.id] = found
    ranked = sorted(best.values(), key=lambda found: -found.score)
    return ranked[:limit]


def _ranked(
    core: Core, hook: VectorStoreSyncHook, query: str, limit: int | None, threshold: float | None, scope: Query
) -> Flow[list[ScoredFact]]:
    if limit == 0:
        return []
    deadline = None if hook.timeout is None else time.monotonic() + hook.timeout
    for _ in range(3):
        began = time.monotonic()
        stages = core.visible()
        ours = changed_by(drafts_of(stages))
        prepared = {
            made.vector_id: fact
            for stage in stages
            for (name, fact_id), made in stage.prepared.items()
            if name == hook.name and (fact := ours.get(fact_id)) is not None
        }
        # The snapshot comes first: a vector that is replaced while we search is still ours to show.
        at: int = yield log_position()
        k = 1000 if limit is None else limit + 5
        while True:
            hits = yield from ask(hook, "search", query, k, scope.type, scope.namespace, deadline=deadline)
            stored: dict[str, Fact] = yield core.seen(hydrate(tuple(vector_id for vector_id, _ in hits), at))
            facts = {key: fact for key, fact in stored.items() if fact.id not in ours} | prepared
            by_fact: dict[str, ScoredFact] = {}  # while a collection is rebuilt, a fact may be hit twice
            for vector_id, score in hits:
                if (
                    (fact := facts.get(vector_id)) is not None
                    and (threshold is None or score >= threshold)
                    and answers(fact, scope)
                ):
                    by_fact.setdefault(fact.id, ScoredFact(fact, score))
            found = list(by_fact.values())
            below = threshold is not None and bool(hits) and hits[-1][1] < threshold
            if len(hits) < k or below or (limit is not None and len(found) >= limit):
                break
            k *= 4
        if hook.grace <= 0 or time.monotonic() - began < hook.grace:
            return found[:limit]
    raise HookError(f"vector store {hook.name!r}: a search took longer than the grace time of {hook.grace} s")


def _ranked_then(
    core: Core, hook: VectorStoreSyncHook, query: str, threshold: float | None, scope: Query, as_of: Moment
) -> Flow[list[ScoredFact]]:
    """By cosine over the texts of then, all embedded anew: their vectors may be gone, and scores must compare."""
    then: list[Fact] = yield core.seen(facts_at(as_of))
    texts = [(fact, text) for fact in then if answers(fact, scope) and (text := hook.text_of(fact)) is not None]
    if not texts:
        return []
    deadline = None if hook.timeout is None else time.monotonic() + hook.timeout
    vectors, wanted = yield from ask(hook, "embed", [text.text for _, text in texts], query, deadline=deadline)
    found = [ScoredFact(fact, cosine(vector, wanted)) for (fact, _), vector in zip(texts, vectors, strict=True)]
    return [one for one in found if threshold is None or one.score >= threshold]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    size = math.hypot(*one) * math.hypot(*other)
    return sum(map(operator.mul, one, other)) / size if size else 0.0
