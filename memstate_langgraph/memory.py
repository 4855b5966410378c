"""MemoryStore and AsyncMemoryStore: the two doors to one set of rules."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from pydantic import BaseModel

from memstate_langgraph import care
from memstate_langgraph.differences import Diff, Preview
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Cause, Entry, Fact, Namespace, Query, ScoredFact, altered
from memstate_langgraph.flows import Core, Transaction
from memstate_langgraph.graph import current_cause
from memstate_langgraph.ops import ReadLog
from memstate_langgraph.overview import store_html
from memstate_langgraph.past import Moment
from memstate_langgraph.plans import By, Change, Discard, Drop, Patch, Promote, Put, Rollback
from memstate_langgraph.retention import Purged, Scope, Swept, purge, sweep
from memstate_langgraph.rules import Constraint, Rules, check_count, check_namespace, check_text, dumped
from memstate_langgraph.run import AsyncStorage, Flow, Progress, Storage, aperform, perform
from memstate_langgraph.schemas import Upcast, seconds_of
from memstate_langgraph.search import search

R = TypeVar("R")
_WITHIN_FACT = frozenset({"payload", "source"})


class _Store:
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
        if not isinstance(ephemeral, bool):
            raise ValidationFailed(f"ephemeral: must be True or False, not {ephemeral!r}")
        if id_given is None:
            id_given = "id" in fact.model_fields_set
        ttl = fact.ttl if ttl is None else seconds_of(ttl)
        fact = self.rules.admit(altered(fact, ephemeral=ephemeral or fact.ephemeral, ttl=ttl))
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


class MemoryStore(_Store):
    """Typed facts, their log and their vectors in one transactional history.

    Safe to use from several threads. Every change is one transaction, atomic with the vector stores of its
    hooks: it is committed whole, or an error is raised and nothing of it can be seen. `strict` refuses
    facts of types that are not registered.

    In a LangGraph task whose graph has a `MemStateCheckpointer` over the same storage, a change is visible to
    the task and what follows it in the run at once, and to everybody else with the task's result: exactly once,
    and never if the task fails. `immediate=True` commits at once, as outside a graph.
    """

    _door = "sync"

    def __init__(self, storage: Storage, hooks: Iterable[object] | None = None, *, strict: bool = False) -> None:
        if not callable(getattr(storage, "aio", None)):
            raise ValidationFailed(f"MemoryStore: takes a sync storage such as SQLiteStorage, not {storage!r}")
        self.storage = storage
        super().__init__(hooks, strict)
        self._core.identity = storage.identity

    def _do(self, flow: Flow[R]) -> R:
        if self._transaction is None:
            return perform(flow, self.storage)
        token = self._core.ambient.set(self._transaction)
        try:
            return perform(flow, self.storage)
        finally:
            self._core.ambient.reset(token)

    def commit(
        self,
        fact: Fact,
        session_id: str | None = None,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
        ttl: float | timedelta | None = None,
    ) -> str:
        """Store a fact and return its id, which for a singleton is that of the fact that holds the key.

        `expected_version` must be the stored version, 0 for none. An `idempotency_key` that was used
        before, anywhere in this storage, returns the first id and writes nothing. With a `ttl` (seconds or a timedelta)
        the fact is gone when it was not changed for so long; see `sweep`.
        Raises `ValidationFailed`, `ConflictError` or `HookError`, having changed nothing.
        """
        by = self._by(session_id, actor, reason, cause)
        change = self._put(fact, ephemeral, by, idempotency_key, expected_version, ttl)
        return self._do(self._core.change(change, immediate))[0]

    def commit_many(
        self,
        facts: Iterable[Fact],
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
    ) -> list[str]:
        """Store facts as one transaction, with one call of each vector store; their ids in order."""
        changes = self._put_many(facts, self._by(session_id, actor, reason, cause), idempotency_key)
        return [fact_id for (fact_id,) in self._do(self._core.change_many(changes, immediate))]

    def commit_model(
        self,
        model: BaseModel,
        fact_id: str | None = None,
        source: str | None = None,
        session_id: str | None = None,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        namespace: Namespace = (),
        immediate: bool = False,
        ttl: float | timedelta | None = None,
    ) -> str:
        """`commit` for an instance of a registered model."""
        fact, id_given = self._put_model(model, fact_id, source, namespace)
        by = self._by(session_id, actor, reason, None)
        change = self._put(fact, ephemeral, by, idempotency_key, expected_version, ttl, id_given)
        return self._do(self._core.change(change, immediate))[0]

    def update(
        self,
        fact_id: str,
        patch: Mapping[str, Any],
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
    ) -> str:
        """Merge fields into a fact's payload: `{"payload": {"age": 31}}`, or just `{"age": 31}`.

        The change belongs to `session_id`, or else to the fact's own session.
        Raises `FactNotFound`, `ValidationFailed`, `ConflictError` or `HookError`, having changed nothing.
        """
        by = self._by(session_id, actor, reason, cause)
        return self._do(
            self._core.change(self._patch(fact_id, patch, by, idempotency_key, expected_version), immediate)
        )[0]

    def delete(
        self,
        fact_id: str,
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
    ) -> str:
        """Delete a fact; the log keeps what it was, so rollback brings it back."""
        by = self._by(session_id, actor, reason, cause)
        return self._do(self._core.change(self._drop(fact_id, by, idempotency_key, expected_version), immediate))[0]

    def promote(
        self,
        session_id: str,
        fact_ids: Sequence[str] | None = None,
        actor: str | None = None,
        reason: str | None = None,
        immediate: bool = False,
    ) -> list[str]:
        """Make ephemeral facts of a session (all, or these) ordinary ones; their ids."""
        by = self._by(session_id, actor, reason, None)
        return self._do(self._core.change(self._promote(session_id, fact_ids, by), immediate))

    def discard_session(
        self, session_id: str, actor: str | None = None, reason: str | None = None, immediate: bool = False
    ) -> int:
        """Delete a session's ephemeral facts as one transaction; how many there were."""
        by = self._by(session_id, actor, reason, None)
        return len(self._do(self._core.change(self._discard(session_id, by), immediate)))

    def rollback(
        self,
        steps: int = 1,
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        namespace: Namespace | None = None,
        types: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
        expected: Preview | None = None,
    ) -> list[str]:
        """Undo the last transactions in force (of a session), all or none; the ids of the facts it touched.

        Facts get back exactly what they were (their `version` moves on), in the vector stores too. Fewer
        steps than asked for are undone if there are no more. Raises `ConflictError` if another session
        has changed one of the facts since, or if one lies outside `namespace` or `types`, where given; or if
        it would do anything else than what is `expected`, which `would_undo` said.
        """
        by = self._by(None, actor, reason, cause)
        change = self._rollback(steps, session_id, by, namespace, types, idempotency_key, expected)
        return self._do(self._core.change(change, immediate))

    def revert(
        self,
        *,
        run_id: str | None = None,
        tool_call_id: str | None = None,
        task_id: str | None = None,
        thread_id: str | None = None,
        since: Moment | None = None,
        actor: str | None = None,
        reason: str | None = None,
        namespace: Namespace | None = None,
        types: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
        expected: Preview | None = None,
    ) -> list[str]:
        """Undo all that has a cause: a run, a tool call, a task or a thread of a graph; the ids of the facts.

        As one transaction, all or nothing, with the guard of `rollback`: raises `ConflictError` if something
        else has changed one of the facts since, or if it would do anything else than what is `expected`, which
        `would_undo` said. `since` is a position of the log, a time or a checkpoint's config.
        """
        by = self._by(None, actor, reason, cause)
        causes = {"run_id": run_id, "tool_call_id": tool_call_id, "task_id": task_id, "thread_id": thread_id}
        change = self._revert(causes, by, namespace, types, idempotency_key, expected)
        return self._do(self._core.undo(change, since, immediate))

    def would_undo(
        self,
        steps: int = 1,
        session_id: str | None = None,
        namespace: Namespace | None = None,
        types: Iterable[str] | None = None,
        *,
        run_id: str | None = None,
        tool_call_id: str | None = None,
        task_id: str | None = None,
        thread_id: str | None = None,
        since: Moment | None = None,
        idempotency_key: str | None = None,
    ) -> Preview:
        """What `rollback`, or `revert` if a cause is given, would change now. Raises what they would raise.

        `expected=` of both takes it, so that what was shown and agreed to is what is done. Nothing would be changed
        under an `idempotency_key` that was used before.
        """
        causes = {"run_id": run_id, "tool_call_id": tool_call_id, "task_id": task_id, "thread_id": thread_id}
        return self._do(self._would_undo(steps, session_id, namespace, types, since, causes, idempotency_key))

    def diff(self, start: Moment, end: Moment | None = None) -> Diff:
        """What changed between two positions of the log, times or checkpoints; until now without `end`."""
        return self._do(self._core.diff(start, end))

    @contextmanager
    def transaction(
        self,
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        immediate: bool = False,
    ) -> Iterator[MemoryStore]:
        """Several changes as one: `with memory.transaction() as tx: tx.commit(...); tx.delete(...)`.

        Committed when the block ends, not at all if it raises. Inside, `get` and `query` see its changes,
        through `tx` and through the store itself; `search` does not.
        """
        transaction = self._core.begin(self._by(session_id, actor, reason, None), immediate)
        self._core.ambient.set(transaction)
        try:
            yield self._bound(transaction)
        finally:
            transaction.open = False
            self._core.ambient.set(None)  # there is no outer one; a token would bind the block to one context
        perform(self._core.finish(transaction), self.storage)

    def get(self, fact_id: str, as_of: Moment | None = None) -> Fact | None:
        """The live fact with this id, or None; `as_of` a position of the log, a time, or a checkpoint's config."""
        return self._do(self._core.get(fact_id, as_of))

    def query(
        self,
        typename: str | None = None,
        filters: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        namespace: Namespace | None = None,
        limit: int | None = None,
        as_of: Moment | None = None,
    ) -> list[Fact]:
        """Live facts in the order of their last change, oldest first.

        Filters: `{"payload.role": "admin"}`, nested paths, or operators `{"payload.age": {"$gte": 18}}`.
        With `as_of`, the facts as they were then: that reads the log up to there.
        """
        return self._do(self._core.query(Query(typename, namespace, session_id, None, _filters(filters), limit), as_of))

    def search(
        self,
        query: str,
        limit: int | None = 5,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
        typename: str | None = None,
        namespace: Namespace | None = None,
        session_id: str | None = None,
        as_of: Moment | None = None,
    ) -> list[ScoredFact]:
        """Live facts nearest in meaning, best first; `limit=None` ranks all. Filters are those of `query`.

        What it returns was true at one moment: no half of a transaction, no vector without its fact. With
        `as_of` the texts of then are all embedded anew and ranked by cosine: it costs an embedding for each
        fact in scope, and its scores do not compare with those of the vector store.
        """
        scope = Query(typename, namespace, session_id, None, _filters(filters))
        return self._do(search(self._core, query, limit, score_threshold, scope, as_of))

    def log(self, session_id: str | None = None, limit: int | None = None) -> list[Entry]:
        """Entries of the log, newest first."""
        return self._do(self._core.log(ReadLog(session_id=session_id, limit=limit)))

    def history(self, fact_id: str, as_of: Moment | None = None) -> list[Entry]:
        """All entries of one fact, newest first, also after it was deleted."""
        return self._do(self._core.log(ReadLog(fact_id=fact_id), as_of))

    def verify(self) -> care.Report:
        """Compare facts, log and vector stores, changing nothing."""
        return self._do(care.verify(self._core, self.storage))

    def repair(
        self, progress: Progress | None = None, *, rebuild: bool | Iterable[str] = False, upcast: bool = False
    ) -> care.Report:
        """Remove what vector stores hold beyond the live facts, embed again what they lack; what is left.

        `rebuild` embeds everything again, in all collections or in those of the hooks so named: after a change
        of the embedding model, or for a store that lost vectors and cannot tell which. Searches compare vectors
        of both models until the old ones are removed, after `grace`. `upcast` stores the facts that follow an
        earlier version of their schema as they are read now, immutable ones too: that changes their form and not what
        they say, so rollback does not count it. `progress(stage, done, total)` is called as it goes. Safe while
        others write; if it dies, begin it again.
        """
        return self._do(care.repair(self._core, self.storage, progress, rebuild, upcast))

    def sweep(self, progress: Progress | None = None) -> Swept:
        """Delete the facts whose time to live has passed, items of a `MemStateStore` among them; what was deleted.

        Nobody sees them anyway: this gives their space back, and takes their vectors out of the vector stores. Each
        500 are a transaction, which rollback does not count: what has expired does not come back. Safe while others
        write; if it dies, what is left waits for the next one. `MemStateCheckpointer.sweep` sees to threads as well.
        """
        return self._do(sweep(self._core, progress))

    def purge(
        self,
        *,
        fact_id: str | None = None,
        session_id: str | None = None,
        namespace: Namespace | None = None,
        checkpoints: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        progress: Progress | None = None,
    ) -> Purged:
        """Erase for good, live or deleted, one fact, all facts that a session has ever put or changed, or all in a
        namespace and those below it: from the facts, the log, the idempotency keys and the vector stores.

        One transaction, all or nothing, that cannot be undone. The log keeps who did it, when, and the ids, and of
        what it erased the order, times, sessions and actors. `checkpoints` deletes the threads in which the facts were
        written too (and, with `session_id`, the thread of that name). `vacuum()` afterwards overwrites the bytes in
        the file. Raises `HookError` if a hook refuses.
        """
        scope = Scope(fact_id, session_id, namespace)
        by = self._by(session_id, actor, reason, None)
        return self._do(purge(self._core, scope, by, checkpoints, progress))

    def vacuum(self, progress: Progress | None = None) -> int:
        """Give space that nothing uses any more back to the file system; how many bytes.

        Works in short steps, so that others can write meanwhile. `progress(stage, done, total)` is called as it goes.
        """
        return self.storage.vacuum(progress)

    def close(self) -> None:
        self.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class AsyncMemoryStore(_Store):
    """`MemoryStore` with every call awaited; the words are explained there."""

    _door = "async"

    def __init__(self, storage: AsyncStorage, hooks: Iterable[object] | None = None, *, strict: bool = False) -> None:
        if not callable(getattr(storage, "sync", None)):
            raise ValidationFailed(
                f"AsyncMemoryStore: takes an async storage such as AsyncSQLiteStorage, not {storage!r}"
            )
        self.storage = storage
        super().__init__(hooks, strict)
        self._core.identity = storage.identity

    async def _do(self, flow: Flow[R]) -> R:
        if self._transaction is None:
            return await aperform(flow, self.storage)
        token = self._core.ambient.set(self._transaction)
        try:
            return await aperform(flow, self.storage)
        finally:
            self._core.ambient.reset(token)

    async def commit(
        self,
        fact: Fact,
        session_id: str | None = None,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
        ttl: float | timedelta | None = None,
    ) -> str:
        """See `MemoryStore.commit`."""
        by = self._by(session_id, actor, reason, cause)
        change = self._put(fact, ephemeral, by, idempotency_key, expected_version, ttl)
        return (await self._do(self._core.change(change, immediate)))[0]

    async def commit_many(
        self,
        facts: Iterable[Fact],
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
    ) -> list[str]:
        """See `MemoryStore.commit_many`."""
        changes = self._put_many(facts, self._by(session_id, actor, reason, cause), idempotency_key)
        return [fact_id for (fact_id,) in await self._do(self._core.change_many(changes, immediate))]

    async def commit_model(
        self,
        model: BaseModel,
        fact_id: str | None = None,
        source: str | None = None,
        session_id: str | None = None,
        ephemeral: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        namespace: Namespace = (),
        immediate: bool = False,
        ttl: float | timedelta | None = None,
    ) -> str:
        """See `MemoryStore.commit_model`."""
        fact, id_given = self._put_model(model, fact_id, source, namespace)
        by = self._by(session_id, actor, reason, None)
        change = self._put(fact, ephemeral, by, idempotency_key, expected_version, ttl, id_given)
        return (await self._do(self._core.change(change, immediate)))[0]

    async def update(
        self,
        fact_id: str,
        patch: Mapping[str, Any],
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
    ) -> str:
        """See `MemoryStore.update`."""
        by = self._by(session_id, actor, reason, cause)
        change = self._patch(fact_id, patch, by, idempotency_key, expected_version)
        return (await self._do(self._core.change(change, immediate)))[0]

    async def delete(
        self,
        fact_id: str,
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        expected_version: int | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
    ) -> str:
        """See `MemoryStore.delete`."""
        by = self._by(session_id, actor, reason, cause)
        return (
            await self._do(self._core.change(self._drop(fact_id, by, idempotency_key, expected_version), immediate))
        )[0]

    async def promote(
        self,
        session_id: str,
        fact_ids: Sequence[str] | None = None,
        actor: str | None = None,
        reason: str | None = None,
        immediate: bool = False,
    ) -> list[str]:
        """See `MemoryStore.promote`."""
        by = self._by(session_id, actor, reason, None)
        return await self._do(self._core.change(self._promote(session_id, fact_ids, by), immediate))

    async def discard_session(
        self, session_id: str, actor: str | None = None, reason: str | None = None, immediate: bool = False
    ) -> int:
        """See `MemoryStore.discard_session`."""
        by = self._by(session_id, actor, reason, None)
        return len(await self._do(self._core.change(self._discard(session_id, by), immediate)))

    async def rollback(
        self,
        steps: int = 1,
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        namespace: Namespace | None = None,
        types: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
        expected: Preview | None = None,
    ) -> list[str]:
        """See `MemoryStore.rollback`."""
        by = self._by(None, actor, reason, cause)
        change = self._rollback(steps, session_id, by, namespace, types, idempotency_key, expected)
        return await self._do(self._core.change(change, immediate))

    async def revert(
        self,
        *,
        run_id: str | None = None,
        tool_call_id: str | None = None,
        task_id: str | None = None,
        thread_id: str | None = None,
        since: Moment | None = None,
        actor: str | None = None,
        reason: str | None = None,
        namespace: Namespace | None = None,
        types: Iterable[str] | None = None,
        idempotency_key: str | None = None,
        cause: Cause | None = None,
        immediate: bool = False,
        expected: Preview | None = None,
    ) -> list[str]:
        """See `MemoryStore.revert`."""
        by = self._by(None, actor, reason, cause)
        causes = {"run_id": run_id, "tool_call_id": tool_call_id, "task_id": task_id, "thread_id": thread_id}
        change = self._revert(causes, by, namespace, types, idempotency_key, expected)
        return await self._do(self._core.undo(change, since, immediate))

    async def would_undo(
        self,
        steps: int = 1,
        session_id: str | None = None,
        namespace: Namespace | None = None,
        types: Iterable[str] | None = None,
        *,
        run_id: str | None = None,
        tool_call_id: str | None = None,
        task_id: str | None = None,
        thread_id: str | None = None,
        since: Moment | None = None,
        idempotency_key: str | None = None,
    ) -> Preview:
        """See `MemoryStore.would_undo`."""
        causes = {"run_id": run_id, "tool_call_id": tool_call_id, "task_id": task_id, "thread_id": thread_id}
        return await self._do(self._would_undo(steps, session_id, namespace, types, since, causes, idempotency_key))

    async def diff(self, start: Moment, end: Moment | None = None) -> Diff:
        """See `MemoryStore.diff`."""
        return await self._do(self._core.diff(start, end))

    @asynccontextmanager
    async def transaction(
        self,
        session_id: str | None = None,
        actor: str | None = None,
        reason: str | None = None,
        immediate: bool = False,
    ) -> AsyncIterator[AsyncMemoryStore]:
        """See `MemoryStore.transaction`."""
        transaction = self._core.begin(self._by(session_id, actor, reason, None), immediate)
        self._core.ambient.set(transaction)
        try:
            yield self._bound(transaction)
        finally:
            transaction.open = False
            self._core.ambient.set(None)  # there is no outer one; a token would bind the block to one context
        await aperform(self._core.finish(transaction), self.storage)

    async def get(self, fact_id: str, as_of: Moment | None = None) -> Fact | None:
        """See `MemoryStore.get`."""
        return await self._do(self._core.get(fact_id, as_of))

    async def query(
        self,
        typename: str | None = None,
        filters: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        namespace: Namespace | None = None,
        limit: int | None = None,
        as_of: Moment | None = None,
    ) -> list[Fact]:
        """See `MemoryStore.query`."""
        return await self._do(
            self._core.query(Query(typename, namespace, session_id, None, _filters(filters), limit), as_of)
        )

    async def search(
        self,
        query: str,
        limit: int | None = 5,
        filters: Mapping[str, Any] | None = None,
        score_threshold: float | None = None,
        typename: str | None = None,
        namespace: Namespace | None = None,
        session_id: str | None = None,
        as_of: Moment | None = None,
    ) -> list[ScoredFact]:
        """See `MemoryStore.search`."""
        scope = Query(typename, namespace, session_id, None, _filters(filters))
        return await self._do(search(self._core, query, limit, score_threshold, scope, as_of))

    async def log(self, session_id: str | None = None, limit: int | None = None) -> list[Entry]:
        """See `MemoryStore.log`."""
        return await self._do(self._core.log(ReadLog(session_id=session_id, limit=limit)))

    async def history(self, fact_id: str, as_of: Moment | None = None) -> list[Entry]:
        """See `MemoryStore.history`."""
        return await self._do(self._core.log(ReadLog(fact_id=fact_id), as_of))

    async def verify(self) -> care.Report:
        """See `MemoryStore.verify`."""
        return await self._do(care.verify(self._core, self.storage))

    async def repair(
        self, progress: Progress | None = None, *, rebuild: bool | Iterable[str] = False, upcast: bool = False
    ) -> care.Report:
        """See `MemoryStore.repair`."""
        return await self._do(care.repair(self._core, self.storage, progress, rebuild, upcast))

    async def sweep(self, progress: Progress | None = None) -> Swept:
        """See `MemoryStore.sweep`."""
        return await self._do(sweep(self._core, progress))

    async def purge(
        self,
        *,
        fact_id: str | None = None,
        session_id: str | None = None,
        namespace: Namespace | None = None,
        checkpoints: bool = False,
        actor: str | None = None,
        reason: str | None = None,
        progress: Progress | None = None,
    ) -> Purged:
        """See `MemoryStore.purge`."""
        scope = Scope(fact_id, session_id, namespace)
        by = self._by(session_id, actor, reason, None)
        return await self._do(purge(self._core, scope, by, checkpoints, progress))

    async def vacuum(self, progress: Progress | None = None) -> int:
        """See `MemoryStore.vacuum`."""
        return await self.storage.vacuum(progress)

    async def close(self) -> None:
        await self.storage.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
