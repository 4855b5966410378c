"""MemoryStore: the sync door."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TypeVar

from pydantic import BaseModel

from memstate_langgraph import care, reading
from memstate_langgraph.calls import Calls
from memstate_langgraph.differences import Diff, Preview
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Cause, Entry, Fact, Namespace, ScoredFact
from memstate_langgraph.ops import ReadLog
from memstate_langgraph.past import Moment
from memstate_langgraph.retention import Purged, Scope, Swept, purge, sweep
from memstate_langgraph.run import Flow, Progress, Storage, perform
from memstate_langgraph.search import search

R = TypeVar("R")


class MemoryStore(Calls):
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
        return self._do(reading.diff(self._core, start, end))

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
        return self._do(reading.get(self._core, fact_id, as_of))

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
        return self._do(reading.query(self._core, self._query(typename, namespace, session_id, filters, limit), as_of))

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
        scope = self._query(typename, namespace, session_id, filters)
        return self._do(search(self._core, query, limit, score_threshold, scope, as_of))

    def log(self, session_id: str | None = None, limit: int | None = None) -> list[Entry]:
        """Entries of the log, newest first."""
        return self._do(reading.log(self._core, ReadLog(session_id=session_id, limit=limit)))

    def history(self, fact_id: str, as_of: Moment | None = None) -> list[Entry]:
        """All entries of one fact, newest first, also after it was deleted."""
        return self._do(reading.log(self._core, ReadLog(fact_id=fact_id), as_of))

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
        """Close the storage, also one that was passed in; vector stores stay open."""
        self.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
