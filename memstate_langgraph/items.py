"""MemStateStore: LangGraph's `BaseStore` on the same facts, log and vectors.

An item is a fact of type `langgraph.item` in the item's namespace; its id follows from namespace and key, and its
payload holds `key`, `value`, `created_at` and, where given, `index`. Its time to live is that of the fact.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, NamedTuple, TypeVar, cast

from langchain_core.vectorstores import VectorStore
from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    get_text_at_path,
    tokenize_path,
    validate_op_namespace,
)

from memstate_langgraph import reading
from memstate_langgraph.async_memory import AsyncMemoryStore
from memstate_langgraph.changes import By, Change, Drop, Put
from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Fact, Namespace, Query
from memstate_langgraph.graph import current_cause
from memstate_langgraph.item_ops import WasRead
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.ops import Plan, notes
from memstate_langgraph.retention import sweep
from memstate_langgraph.rules import (
    ITEM_TYPE,
    MISSING,
    canonical,
    check_count,
    check_namespace,
    check_operators,
    check_text,
    plain_json,
    same,
    satisfies,
)
from memstate_langgraph.run import Flow, aperform, in_event_loop, perform
from memstate_langgraph.schemas import seconds_of
from memstate_langgraph.search import search
from memstate_langgraph.vectors import VectorStoreSyncHook

R = TypeVar("R")
_ITEMS = uuid.UUID("0f6c1b52-9a0e-4c7b-8a58-6f3f1f1c7d20")


def item_id(namespace: Namespace, key: str) -> str:
    """The id of the fact that holds an item."""
    return str(uuid.uuid5(_ITEMS, canonical([list(namespace), key])))


class ItemSyncHook(VectorStoreSyncHook):
    """Makes the items of a `MemStateStore` searchable by meaning; a hook of the store's memory.

    `fields` are paths as in LangGraph's `IndexConfig`, `"$"` the whole value; `put(..., index=[...])` names others
    for one item, `index=False` none. The texts of all fields of an item are embedded as one.
    `options` are those of `VectorStoreSyncHook`.
    """

    def __init__(self, vector_store: VectorStore, fields: Sequence[str] = ("$",), **options: Any) -> None:
        self.fields = _paths(fields, "fields")
        super().__init__(vector_store, target_types=(ITEM_TYPE,), text_formatter=self._text, **options)

    def _text(self, fact: Fact) -> str | None:
        paths = fact.payload.get("index", self.fields)
        if paths is False:
            return None
        value = fact.payload["value"]
        return "\n".join(text for path in paths for text in get_text_at_path(value, _tokens(path))) or None


class MemStateStore(BaseStore):
    """LangGraph's long-term memory in one history with checkpoints and facts: `compile(store=MemStateStore(memory))`.

    The puts and deletions of one `batch` are one transaction, the last one of a key wins, and what the batch
    reads is what was there before. A change belongs to the session of the running thread, so that
    `memory.rollback(1, session_id=thread_id)` undoes it; outside a graph to `session_id`.

    `search(query=...)` needs an `ItemSyncHook` among the hooks of the memory and ignores the query without one;
    items that are not embedded follow those that are, without a score. Otherwise the last changed come first.

    An item with a time to live (minutes) is gone when it has neither been changed nor read for so long; `sweep_ttl`
    deletes such items. Both doors work over either kind of memory.
    """

    supports_ttl = True

    def __init__(
        self, memory: MemoryStore | AsyncMemoryStore, *, ttl: TTLConfig | None = None, session_id: str = "store"
    ) -> None:
        if not isinstance(cast("object", memory), MemoryStore | AsyncMemoryStore):
            raise ValidationFailed(f"MemStateStore: memory must be a MemoryStore or AsyncMemoryStore, not {memory!r}")
        check_text(session_id, "session_id")
        _ttl(None if ttl is None else ttl.get("default_ttl"))
        self.memory = memory
        self.ttl_config = ttl
        self.session_id = session_id
        self._core = memory._core

    # --- the doors

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        return self._run(self._batch(_checked(ops)))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        return await self._arun(self._batch(_checked(ops)))

    def sweep_ttl(self) -> int:
        """Delete the items whose time has passed, as `memory.sweep()` does with all facts; how many there were."""
        return self._run(self._sweep())

    async def asweep_ttl(self) -> int:
        """See `sweep_ttl`."""
        return await self._arun(self._sweep())

    def _run(self, flow: Flow[R]) -> R:
        if isinstance(self.memory, MemoryStore):
            return self.memory._do(flow)
        if in_event_loop():
            raise ValidationFailed(
                "MemStateStore: a sync call inside a running event loop would block it; use aget, aput and asearch, "
                "or build the store on a MemoryStore"
            )
        for hook in self._core.vectors:
            if "sync" not in hook.doors:
                raise ValidationFailed(f"MemStateStore: hook {hook.name!r} has no sync door; use aget, aput, asearch")
        return perform(flow, self.memory.storage.sync())

    async def _arun(self, flow: Flow[R]) -> R:
        if isinstance(self.memory, AsyncMemoryStore):
            return await self.memory._do(flow)
        return await aperform(flow, self.memory.storage.aio())

    # --- what they do

    def _batch(self, ops: Sequence[Op]) -> Flow[list[Result]]:
        results: list[Result] = [None] * len(ops)
        now = self._core.now()
        gets = [i for i, op in enumerate(ops) if isinstance(op, GetOp)]
        if gets:
            found = yield from self._get([cast("GetOp", ops[i]) for i in gets], now)
            for i, item in zip(gets, found, strict=True):
                results[i] = item
        for i, op in enumerate(ops):
            if isinstance(op, SearchOp):
                results[i] = yield from self._search(op, now)
            elif isinstance(op, ListNamespacesOp):
                results[i] = yield from self._list(op)
        puts = {item_id(op.namespace, op.key): op for op in ops if isinstance(op, PutOp)}
        if puts:
            yield from self._put(puts, now)
        return results

    def _get(self, ops: Sequence[GetOp], now: datetime) -> Flow[list[Item | None]]:
        ids = [item_id(op.namespace, op.key) for op in ops]
        alive = {fact.id: fact for fact in (yield from self._stored(ids))}
        yield from self._read([alive[i] for i, op in zip(ids, ops, strict=True) if op.refresh_ttl and i in alive], now)
        return [_item(alive[fact_id]) if fact_id in alive else None for fact_id in ids]

    def _stored(self, ids: Iterable[str]) -> Flow[list[Fact]]:
        query = Query(ITEM_TYPE, filters={"id": {"$in": list(dict.fromkeys(ids))}})
        return (yield from reading.query(self._core, query))

    def _put(self, puts: Mapping[str, PutOp], now: datetime) -> Flow[None]:
        cause, around = current_cause(), self._core.ambient.get()
        session_id = (around and around.by.session_id) or cause.thread_id or self.session_id
        check_text(session_id, "session_id")
        by = By(session_id, "store", None, cause)
        facts = {fact_id: _fact(fact_id, op, now) for fact_id, op in puts.items() if op.value is not None}
        changes: list[Change] = []
        for fact_id, op in puts.items():
            if op.value is None:
                changes.append(Drop(fact_id, by, missing_ok=True))
            else:
                changes.append(Put(facts[fact_id], by, id_given=True, keeps=("created_at",)))
        yield from self._core.change_many(changes)

    def _search(self, op: SearchOp, now: datetime) -> Flow[list[SearchItem]]:
        wanted = op.offset + op.limit
        scope = Query(ITEM_TYPE, prefix=op.namespace_prefix, where=_where(op.filter), newest=True)
        hits: list[_Hit] = []
        query = op.query if op.query and op.query.strip() else None
        if query is not None and any(hook.embeds(ITEM_TYPE) for hook in self._core.vectors):
            hits = [_Hit(*hit) for hit in (yield from search(self._core, query, wanted, None, scope))]
        if len(hits) < wanted:
            known = {hit.fact.id for hit in hits}
            rest = yield from reading.query(self._core, _limited(scope, wanted - len(hits), known))
            hits += [_Hit(fact, None) for fact in rest]
        shown = hits[op.offset : wanted]
        if op.refresh_ttl:
            yield from self._read([hit.fact for hit in shown], now)
        return [_found(hit) for hit in shown]

    def _list(self, op: ListNamespacesOp) -> Flow[list[Namespace]]:
        conditions = op.match_conditions or ()
        prefix = max((_literal(condition) for condition in conditions), key=len, default=())
        facts = yield from reading.query(self._core, Query(ITEM_TYPE, prefix=prefix))
        namespaces = {fact.namespace for fact in facts}
        kept = {namespace[: op.max_depth] for namespace in namespaces if all(_meets(namespace, c) for c in conditions)}
        return sorted(kept)[op.offset : op.offset + op.limit]

    def _read(self, facts: Sequence[Fact], now: datetime) -> Flow[None]:
        mortal = tuple(fact.id for fact in facts if fact.ttl is not None)
        if mortal:
            yield was_read(mortal, now.timestamp())

    def _sweep(self) -> Flow[int]:
        swept = yield from sweep(self._core, None, ITEM_TYPE)
        return sum(swept.facts.values())


class _Hit(NamedTuple):
    fact: Fact
    score: float | None


@notes
def was_read(ids: tuple[str, ...], at: float) -> Plan[None]:
    yield from WasRead(ids, at)


# --- what comes in


def _checked(ops: Iterable[Op]) -> list[Op]:
    ops = list(ops)
    for op in ops:
        if not isinstance(cast("object", op), GetOp | SearchOp | ListNamespacesOp | PutOp):
            raise ValidationFailed(f"store: {op!r} is no operation of LangGraph's store")
        validate_op_namespace(op)
        if isinstance(op, SearchOp | ListNamespacesOp):
            check_count(op.limit, "limit")
            check_count(op.offset, "offset")
        if isinstance(op, SearchOp):
            _where(op.filter)
        if isinstance(op, ListNamespacesOp) and op.max_depth is not None:
            check_count(op.max_depth, "max_depth", 1)
        if isinstance(op, GetOp | PutOp):
            check_namespace(op.namespace)
            plain_json(op.key, "store: key")
    return ops


def _fact(fact_id: str, op: PutOp, now: datetime) -> Fact:
    if op.value is not None and not isinstance(cast("object", op.value), Mapping):
        raise ValidationFailed(f"store: the value of {op.key!r} must be a dict, not {type(op.value).__name__}")
    payload: dict[str, Any] = {
        "key": op.key,
        "value": plain_json(op.value, f"store: the value of {op.key!r}"),
        "created_at": now.isoformat(),
    }
    if op.index is not None:
        payload["index"] = op.index and list(_paths(op.index, "index"))
    return Fact.model_construct(
        id=fact_id, type=ITEM_TYPE, namespace=op.namespace, payload=payload, source="store", ts=now, ttl=_ttl(op.ttl)
    )


def _ttl(minutes: float | None) -> float | None:
    """LangGraph counts in minutes, facts in seconds."""
    try:
        return None if minutes is None else seconds_of(60.0 * minutes)
    except (TypeError, OverflowError, ValidationFailed) as error:
        raise ValidationFailed(f"ttl: must be minutes, more than 0, not {minutes!r}") from error


def _paths(paths: Sequence[str], where: str) -> tuple[str, ...]:
    if isinstance(paths, str) or not isinstance(cast("object", paths), Sequence):
        raise ValidationFailed(f"{where}: is a list of paths such as 'metadata.title', or False, not {paths!r}")
    for path in paths:
        check_text(path, where)
    return tuple(paths)


def _tokens(path: str) -> str | list[str]:
    return path if path == "$" else tokenize_path(path)


# --- what goes out


def _item(fact: Fact) -> Item:
    return Item(**_told(fact))


def _found(hit: _Hit) -> SearchItem:
    return SearchItem(**_told(hit.fact), score=hit.score)


def _told(fact: Fact) -> dict[str, Any]:
    return {
        "namespace": fact.namespace,
        "key": fact.payload["key"],
        "value": fact.payload["value"],
        "created_at": datetime.fromisoformat(fact.payload["created_at"]),
        "updated_at": fact.ts,
    }


# --- filters, as LangGraph means them


def _where(wanted: Mapping[str, Any] | None) -> Callable[[Fact], bool] | None:
    if not wanted:
        return None
    if not isinstance(cast("object", wanted), Mapping):
        raise ValidationFailed(f"filter: must be a dict, not {wanted!r}")
    plain = plain_json(wanted, "filter")
    _meets_filter({}, plain)  # raises on what no item could meet

    def where(fact: Fact) -> bool:
        return _meets_filter(fact.payload["value"], plain)

    return where


def _meets_filter(value: Any, wanted: Mapping[str, Any]) -> bool:
    """Whether each key has its wanted value; within a value, only the keys that the filter names count."""
    mine = value if isinstance(value, Mapping) else {}
    # no short cut: a filter is wrong or right whatever the items are
    met = [_agrees(mine.get(key, MISSING), item) for key, item in wanted.items()]
    return isinstance(value, Mapping) and all(met)


def _agrees(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if any(key.startswith("$") for key in wanted):
            check_operators(wanted, "filter")
            return satisfies(value, wanted)
        return _meets_filter(value, wanted)
    if isinstance(wanted, list):
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(_agrees(mine, theirs) for mine, theirs in zip(value, wanted, strict=True))
        )
    return same(value, wanted)


def _limited(scope: Query, count: int, known: set[str]) -> Query:
    if not known:
        return replace(scope, limit=count)
    inner = scope.where
    return replace(scope, limit=count, where=lambda fact: fact.id not in known and (inner is None or inner(fact)))


# --- namespaces


def _literal(condition: MatchCondition) -> Namespace:
    """The labels that a condition fixes from the root on."""
    if condition.match_type != "prefix":
        return ()
    path = tuple(condition.path)
    return path[: path.index("*")] if "*" in path else path


def _meets(namespace: Namespace, condition: MatchCondition) -> bool:
    path = tuple(condition.path)
    if condition.match_type not in ("prefix", "suffix"):
        raise ValidationFailed(f"match_type: must be 'prefix' or 'suffix', not {condition.match_type!r}")
    if len(path) > len(namespace):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(theirs in ("*", mine) for mine, theirs in zip(part, path, strict=True))
