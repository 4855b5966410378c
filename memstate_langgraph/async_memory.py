"""AsyncMemoryStore: the same store, awaited."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
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
from memstate_langgraph.run import AsyncStorage, Flow, Progress, aperform
from memstate_langgraph.search import search

R = TypeVar("R")


class AsyncMemoryStore(Calls):
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
        return await self._do(reading.diff(self._core, start, end))

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
        return await self._do(reading.get(self._core, fact_id, as_of))

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
            reading.query(self._core, self._query(typename, namespace, session_id, filters, limit), as_of)
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
        scope = self._query(typename, namespace, session_id, filters)
        return await self._do(search(self._core, query, limit, score_threshold, scope, as_of))

    async def log(self, session_id: str | None = None, limit: int | None = None) -> list[Entry]:
        """See `MemoryStore.log`."""
        return await self._do(reading.log(self._core, ReadLog(session_id=session_id, limit=limit)))

    async def history(self, fact_id: str, as_of: Moment | None = None) -> list[Entry]:
        """See `MemoryStore.history`."""
        return await self._do(reading.log(self._core, ReadLog(fact_id=fact_id), as_of))

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
        """Close the storage, also one that was passed in; vector stores stay open."""
        await self.storage.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()
