"""What a call of a store asks for: its arguments, checked, as changes. The same for both doors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Self, cast

from pydantic import BaseModel

from memstate_langgraph.changes import By, Change, Discard, Drop, Patch, Promote, Put, Rollback
from memstate_langgraph.differences import Preview
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Cause, Fact, Namespace, Query, altered
from memstate_langgraph.flows import Core, Transaction
from memstate_langgraph.graph import current_cause
from memstate_langgraph.overview import store_html
from memstate_langgraph.past import Moment
from memstate_langgraph.rules import Constraint, Rules, check_count, check_flag, check_namespace, check_text, dumped
from memstate_langgraph.run import Flow
from memstate_langgraph.schemas import Upcast, seconds_of

_WITHIN_FACT = frozenset({"payload", "source"})


class Calls:
    """What both doors share: registration, and arguments made into changes."""

    _door: str

    def __init__(self, hooks: Iterable[object] | None, strict: bool) -> None:
        self._core = Core(Rules(strict=strict))
        self._transaction: Transaction | None = None
        if hooks is not None and not isinstance(cast("object", hooks), Iterable):
            raise ValidationFailed(f"hooks: must be a list of hooks, not {hooks!r}")
        for hook in hooks or ():
            self.add_hook(hook)

    def register_schema(
        self,
        typename: str,
        model: type[BaseModel],
        constraint: Constraint | None = None,
        *,
        version: int = 1,
        upcast: Upcast | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        """Facts of this type are validated by the model from now on, and the constraint holds for them.

        Register types before their first fact: a singleton key does not reach facts stored without it.

        When the model changes in a way that old payloads do not fit, raise `version`: `upcast` is then
        `{1: function, 2: function, ...}`, for each earlier version a function that makes of its payload one of the
        next (a single function is that of version 1). Old facts are read through it, everywhere; what is stored
        stays until the fact is changed or `repair(upcast=True)` rewrites it.

        `ttl` is how long, in seconds or as a timedelta, facts of this type live after their last change, unless they
        say so themselves. Facts that are stored already keep what they have.
        """
        self._core.rules.register(typename, model, constraint, version, upcast, ttl)

    @property
    def rules(self) -> Rules:
        return self._core.rules

    def _repr_html_(self) -> str:
        """Counts and the last changes, where a notebook shows the store."""
        storage: Any = self.storage  # type: ignore[attr-defined]  # each door has its kind
        return store_html(type(self).__name__, storage, self._core.seen)

    def add_hook(self, hook: object) -> None:
        """Add a vector store hook, or a callable `hook(operation, fact_id, fact)` that may veto by raising.

        Vetoes are asked before the commit and may be asked again if others change the facts meanwhile.
        """
        self._core.add_hook(hook, self._door)

    def _by(self, session_id: str | None, actor: str | None, reason: str | None, cause: Cause | None) -> By:
        for name, text in (("session_id", session_id), ("actor", actor), ("reason", reason)):
            if text is not None:
                check_text(text, name)
        if cause is not None and not isinstance(cast("object", cause), Cause):
            raise ValidationFailed(f"cause: must be a Cause, not {cause!r}")
        return By(session_id, actor, reason, cause or current_cause())

    def _put(
        self,
        fact: Fact,
        ephemeral: bool,
        by: By,
        key: str | None,
        expected_version: int | None,
        ttl: float | timedelta | None,
        id_given: bool | None = None,
    ) -> Change:
        if not isinstance(fact, Fact):
            raise ValidationFailed(f"commit: takes a Fact, not {type(fact).__name__}; commit_model takes models")
        check_flag(ephemeral, "ephemeral")
        if id_given is None:
            id_given = "id" in fact.model_fields_set
        ttl = fact.ttl if ttl is None else seconds_of(ttl)
        if ephemeral or ttl != fact.ttl:
            fact = altered(fact, ephemeral=ephemeral or fact.ephemeral, ttl=ttl)
        fact = self.rules.admit(fact)
        return Put(fact, by, id_given, _expected(expected_version), _key(key))

    def _put_model(
        self, model: BaseModel, fact_id: str | None, source: str | None, namespace: Namespace
    ) -> tuple[Fact, bool]:
        typename = self.rules.typename_of(model)
        # unvalidated: `admit` checks every part and says which one is wrong
        given: dict[str, Any] = {"payload": dumped(typename, model), "source": source, "namespace": namespace}
        fact = altered(Fact(type=typename, payload={}), **given)
        return (fact, False) if fact_id is None else (altered(fact, id=fact_id), True)

    def _patch(
        self, fact_id: str, patch: Mapping[str, Any], by: By, key: str | None, expected_version: int | None
    ) -> Change:
        check_text(fact_id, "fact_id")
        if not isinstance(patch, Mapping):
            raise ValidationFailed(f"update: the patch must be a dict, not {patch!r}")
        source = None
        payload = patch
        if "payload" in patch and patch.keys() <= _WITHIN_FACT and isinstance(patch["payload"], Mapping):
            payload, source = patch["payload"], patch.get("source")
        # a copy, since it is applied when the surrounding transaction ends
        return Patch(fact_id, _copied(payload), by, source, _expected(expected_version), _key(key))

    def _drop(self, fact_id: str, by: By, key: str | None, expected_version: int | None) -> Change:
        check_text(fact_id, "fact_id")
        return Drop(fact_id, by, _expected(expected_version), _key(key))

    def _promote(self, session_id: str, fact_ids: Sequence[str] | None, by: By) -> Change:
        check_text(session_id, "session_id")
        return Promote(session_id, by, _names(fact_ids, "fact_ids"))

    def _discard(self, session_id: str, by: By) -> Change:
        check_text(session_id, "session_id")
        return Discard(session_id, by)

    def _rollback(
        self,
        steps: int,
        session_id: str | None,
        by: By,
        namespace: Namespace | None,
        types: Iterable[str] | None,
        key: str | None = None,
        expected: Preview | None = None,
    ) -> Rollback:
        check_count(steps, "steps")
        if session_id is not None:
            check_text(session_id, "session_id")
        if namespace is not None:
            check_namespace(namespace)
        if expected is not None and not isinstance(cast("object", expected), Preview):
            raise ValidationFailed(f"expected: must be what would_undo returned, not {expected!r}")
        within = _names(types, "types")
        names = None if within is None else frozenset(within)
        return Rollback(steps, session_id, by, namespace, names, _key(key), expected=expected)

    def _revert(
        self,
        causes: Mapping[str, str | None],
        by: By,
        namespace: Namespace | None,
        types: Iterable[str] | None,
        key: str | None = None,
        expected: Preview | None = None,
    ) -> Rollback:
        given = tuple((name, text) for name, text in causes.items() if text is not None)
        if not given:
            raise ValidationFailed("revert: say what: run_id, tool_call_id, task_id or thread_id")
        for name, text in given:
            check_text(text, name)
        rollback = self._rollback(1, None, by, namespace, types, key, expected)
        return replace(rollback, steps=None, causes=given)

    def _would_undo(
        self,
        steps: int,
        session_id: str | None,
        namespace: Namespace | None,
        types: Iterable[str] | None,
        since: Moment | None,
        causes: Mapping[str, str | None],
        key: str | None,
    ) -> Flow[Preview]:
        by = self._by(None, None, None, None)
        if since is None and all(cause is None for cause in causes.values()):
            change = self._rollback(steps, session_id, by, namespace, types, key)
        else:
            change = self._revert(causes, by, namespace, types, key)
        return self._core.would_undo(change, since)

    def _query(
        self,
        typename: str | None,
        namespace: Namespace | None,
        session_id: str | None,
        filters: Mapping[str, Any] | None,
        limit: int | None = None,
    ) -> Query:
        return Query(typename, namespace, session_id, None, _filters(filters), limit)

    def _put_many(self, facts: Iterable[Fact], by: By, key: str | None) -> list[Change]:
        if not isinstance(cast("object", facts), Iterable):
            raise ValidationFailed(f"commit_many: takes a list of facts, not {facts!r}")
        facts = list(facts)
        keys = [None if key is None else f"{key}:{i}" for i in range(len(facts))]
        return [self._put(fact, False, by, each, None, None) for fact, each in zip(facts, keys, strict=True)]

    def _bound(self, transaction: Transaction) -> Self:
        bound = copy.copy(self)
        bound._transaction = transaction
        return bound


def _expected(version: int | None) -> int | None:
    if version is not None:
        check_count(version, "expected_version")
    return version


def _key(key: str | None) -> str | None:
    if key is not None:
        check_text(key, "idempotency_key")
    return key


def _names(names: Iterable[str] | None, where: str) -> tuple[str, ...] | None:
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(cast("object", names), Iterable):
        raise ValidationFailed(f"{where}: must be a list of names, not {names!r}")
    names = tuple(names)
    for name in names:
        check_text(name, where)
    return names


def _copied(payload: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return copy.deepcopy(dict(payload))
    except (TypeError, RecursionError) as error:
        raise ValidationFailed(f"update: the patch is nested too deeply or is not plain data ({error})") from error


def _filters(filters: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return {} if filters is None else filters
