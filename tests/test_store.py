"""`MemStateStore` beside LangGraph's own stores."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings, strategies as st
from langchain_core.vectorstores import InMemoryVectorStore
from langgraph.store.base import GetOp, InvalidNamespaceError, ListNamespacesOp, MatchCondition, PutOp, SearchOp
from langgraph.store.memory import InMemoryStore

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncVectorStoreSyncHook,
    HookError,
    ItemSyncHook,
    MemoryStore,
    MemStateStore,
    ValidationFailed,
    VectorStoreSyncHook,
)
from tests.conftest import Clock, Opener
from tests.models import note
from tests.stores import PLACES, Place, Unreliable, Words, assert_in_step, collect, hook_over


class Awaited(MemStateStore):
    """The async door, called like the sync one, in the runner of the memory where it has one."""

    def __init__(self, memory: Any, **options: Any) -> None:
        super().__init__(getattr(memory, "_store", memory), **options)
        self._runner = getattr(memory, "_runner", None)

    def _await(self, awaitable: Any) -> Any:
        return asyncio.run(awaitable) if self._runner is None else self._runner.run(awaitable)

    def batch(self, ops: Any) -> Any:
        return self._await(super().abatch(ops))

    def sweep_ttl(self) -> int:
        return cast("int", self._await(super().asweep_ttl()))


def store_on(memory: Any, door: str = "sync", **options: Any) -> MemStateStore:
    if door == "async":
        return Awaited(memory, **options)
    return MemStateStore(getattr(memory, "_store", memory), **options)


@pytest.fixture(params=["sync", "async"])
def door(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(memory: MemoryStore, door: str) -> MemStateStore:
    return store_on(memory, door)


def told(results: list[Any]) -> list[Any]:
    """What a batch answered, without times; lists of items as sets, for the model has another order."""

    def one(result: Any) -> Any:
        if result is None or isinstance(result, tuple):
            return result
        if isinstance(result, list):
            return sorted((one(part) for part in result), key=repr)
        return (result.namespace, result.key, result.value, getattr(result, "score", None))

    return [one(result) for result in results]


# --- the model: any batches of operations, on every place and through both doors


def put(namespace: tuple[str, ...], key: str, value: Any, index: Any = None) -> PutOp:
    return PutOp(namespace, key, value, index)  # Hypothesis would make up a time to live


LABELS = st.sampled_from(["a", "b", "c", 'q"', "ä", "a b"])
NAMESPACES = st.lists(LABELS, min_size=1, max_size=3).map(tuple)
KEYS = st.sampled_from(["k", "l", "m"])
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "y", ""])
VALUES = st.dictionaries(
    st.sampled_from(["n", "s", "d"]), SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.just("e"), SCALARS)
)
FILTERS = st.dictionaries(
    st.sampled_from(["n", "s", "d"]),
    SCALARS
    | st.lists(SCALARS, max_size=2)
    | st.dictionaries(st.just("e"), SCALARS)
    | st.builds(lambda name, value: {name: value}, st.sampled_from(["$eq", "$ne"]), SCALARS),
    max_size=2,
)
CONDITIONS = st.builds(
    MatchCondition,
    st.sampled_from(["prefix", "suffix"]),
    st.lists(LABELS | st.just("*"), min_size=1, max_size=3).map(tuple),
)
MANY = 10_000  # the order is tested below
OPS = st.one_of(
    st.builds(put, NAMESPACES, KEYS, VALUES),
    st.builds(put, NAMESPACES, KEYS, VALUES),
    st.builds(put, NAMESPACES, KEYS, st.none()),
    st.builds(GetOp, NAMESPACES, KEYS, st.just(True)),
    st.builds(lambda prefix, wanted: SearchOp(prefix, wanted, MANY), NAMESPACES | st.just(()), FILTERS),
    st.builds(
        ListNamespacesOp,
        st.lists(CONDITIONS, max_size=2).map(tuple),
        st.none() | st.integers(1, 3),
        st.integers(0, 4),
        st.integers(0, 2),
    ),
)


class Model(InMemoryStore):
    """LangGraph's, without the namespaces that hold nothing, which it lists and databases do not."""

    def _handle_list_namespaces(self, op: ListNamespacesOp) -> list[tuple[str, ...]]:
        for namespace in [namespace for namespace, found in self._data.items() if not found]:
            del self._data[namespace]
        return super()._handle_list_namespaces(op)


def _typed(value: Any) -> Any:
    """Python thinks that True is 1; databases do not."""
    if isinstance(value, bool):
        return f"bool {value}"
    if isinstance(value, dict):
        return {key: _typed(part) for key, part in value.items()}
    return type(value)(_typed(part) for part in value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("place", PLACES, ids=[place.name for place in PLACES])
@settings(max_examples=60)
@given(batches=st.lists(st.lists(OPS, max_size=6), max_size=6), data=st.data())
def test_batches_answer_as_the_model_does(
    place: Place, batches: list[list[Any]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    memory = place.open(tmp_path_factory.mktemp("store"))
    ours, model = store_on(memory, data.draw(st.sampled_from(["sync", "async"]))), Model()
    try:
        for batch in batches:
            expected = model.batch([_for_model(op) for op in batch])
            assert _typed(told(ours.batch(batch))) == told(expected)
        assert_in_step(memory)
    finally:
        memory.close()


def _for_model(op: Any) -> Any:
    if isinstance(op, PutOp):
        return op._replace(value=_typed(op.value))
    return op._replace(filter=_typed(op.filter)) if isinstance(op, SearchOp) else op


WORDS = st.sampled_from(["red", "green", "blue", "cat", "dog", "fish", "tree"])
TEXTS = st.lists(WORDS, min_size=1, max_size=3).map(" ".join)
SEARCHES = st.builds(
    lambda prefix, wanted, query: SearchOp(prefix, wanted, MANY, 0, query),
    NAMESPACES | st.just(()),
    st.sampled_from([None, {"kind": "x"}]),
    TEXTS,
)
DOCUMENTS = st.builds(
    lambda text, title, kind: {"text": text, "title": title, "kind": kind}, TEXTS, TEXTS, st.sampled_from("xy")
)


@settings(max_examples=60)
@given(
    puts=st.lists(
        st.builds(put, NAMESPACES, KEYS, DOCUMENTS | st.none(), st.sampled_from([None, False, ["title"]])), max_size=8
    ),
    search=SEARCHES,
)
def test_search_by_meaning_scores_as_the_model_does(puts: list[PutOp], search: SearchOp) -> None:
    memory = PLACES[0].open(Path(), [ItemSyncHook(InMemoryVectorStore(Words()), ["text"])])
    ours, model = MemStateStore(memory), InMemoryStore(index={"dims": 64, "embed": Words(), "fields": ["text"]})
    for put in puts:
        ours.batch([put])
        model.batch([put._replace(value=None), put])  # the model keeps the vectors of a replaced value
        model._vectors[put.namespace].pop(put.key, None)
        model.batch([put])
    found: Any = ours.batch([search]) + model.batch([search])
    mine, theirs = found
    assert {(i.namespace, i.key) for i in mine} == {(i.namespace, i.key) for i in theirs}
    scores = {(i.namespace, i.key): i.score for i in theirs}
    for item in mine:
        expected = scores[item.namespace, item.key]
        assert (item.score is None) == (expected is None)
        assert item.score is None or math.isclose(item.score, expected, abs_tol=1e-6)
    ranks = [-math.inf if item.score is None else item.score for item in mine]
    assert ranks == sorted(ranks, reverse=True)
    memory.close()


# --- one batch


def test_a_batch_is_one_transaction_and_reads_what_was_there_before(memory: MemoryStore, store: MemStateStore) -> None:
    store.put(("a",), "old", {"n": 1})
    results: list[Any] = store.batch(
        [
            PutOp(("a",), "new", {"n": 1}),
            GetOp(("a",), "new"),
            PutOp(("a",), "new", {"n": 2}),
            PutOp(("a",), "old", None),
            GetOp(("a",), "old"),
            SearchOp(("a",)),
        ]
    )
    assert results[0] is results[1] is results[2] is None
    assert results[4].value == {"n": 1}
    assert [item.key for item in results[5]] == ["old"]
    assert [item.value for item in store.search(("a",))] == [{"n": 2}]
    assert memory.rollback(1)
    assert [(item.key, item.value) for item in store.search(("a",))] == [("old", {"n": 1})]


def test_a_batch_with_one_bad_value_puts_nothing(memory: MemoryStore, store: MemStateStore) -> None:
    for bad in (object(), math.nan, {"x": {1: 2}}, "\x00", "\ud800"):
        with pytest.raises(ValidationFailed, match="the value of 'bad'"):
            store.batch([PutOp(("a",), "good", {"v": 1}), PutOp(("a",), "bad", {"v": bad})])
    assert memory.query() == []
    assert memory.log() == []


@pytest.mark.parametrize(
    ("op", "named"),
    [
        (PutOp(("a",), "k", cast("Any", ["list"])), "must be a dict"),
        (PutOp(("a",), "k", {}, index=cast("Any", "title")), "index"),
        (PutOp(("a",), "k", {}, ttl=0), "ttl"),
        (PutOp(("a",), "k", {}, ttl=math.nan), "ttl"),
        (PutOp(("a",), "k\x00", {}), "key"),
        (SearchOp(("a",), limit=-1), "limit"),
        (SearchOp(("a",), offset=cast("Any", "1")), "offset"),
        (SearchOp(("a",), {"n": {"$near": 1}}), r"\$near"),
        (SearchOp(("a",), {"n": {"$gt": 1, "x": 1}}), "x"),
        (ListNamespacesOp(max_depth=0), "max_depth"),
        (GetOp(("a\ud800",), "k"), "namespace"),
        (SearchOp(("a\ud800",)), "namespace"),
        (GetOp(("a",), "k\ud800"), "key"),
        ("get", "no operation"),
    ],
)
def test_bad_operations_are_named(memory: MemoryStore, store: MemStateStore, op: Any, named: str) -> None:
    store.put(("a",), "there", {"n": 1})
    with pytest.raises(ValidationFailed, match=named):
        store.batch([op])
    assert len(memory.log()) == 1


@pytest.mark.parametrize("namespace", [("a.b",), ("",), (1,), ("a\x00",)])
def test_namespaces_that_langgraph_refuses(store: MemStateStore, namespace: Any) -> None:
    ops: list[Any] = [PutOp(namespace, "k", {}), GetOp(namespace, "k"), SearchOp(namespace)]
    for op in [*ops, ListNamespacesOp((MatchCondition("prefix", namespace),))]:
        with pytest.raises(InvalidNamespaceError):
            store.batch([op])
    for refused in ((), ("langgraph",)):
        with pytest.raises(InvalidNamespaceError):
            store.put(refused, "k", {})


# --- order, pages, filters


def test_the_last_changed_come_first_and_pages_follow_each_other(store: MemStateStore) -> None:
    for n in range(7):
        store.put(("a", str(n % 2)), str(n), {"n": n})
    store.put(("a", "0"), "2", {"n": 2})
    expected = ["2", "6", "5", "4", "3", "1", "0"]
    assert [item.key for item in store.search(("a",), limit=10)] == expected
    pages = [store.search(("a",), limit=3, offset=offset) for offset in (0, 3, 6, 9)]
    assert [[item.key for item in page] for page in pages] == [expected[:3], expected[3:6], expected[6:], []]
    assert [item.key for item in store.search(("a",), filter={"n": {"$lte": 3}}, limit=2, offset=1)] == ["3", "1"]
    assert store.search(("a",), limit=0) == []


def test_a_prefix_ends_where_a_label_ends(store: MemStateStore) -> None:
    for namespace in [("ab",), ("a", "x"), ("a",), ('a"',), ("a,",), ("A",), ("a]",)]:
        store.put(namespace, "k", {})
    assert {item.namespace for item in store.search(("a",))} == {("a",), ("a", "x")}
    assert {item.namespace for item in store.search(('a"',))} == {('a"',)}
    assert store.list_namespaces(prefix=("a",)) == [("a",), ("a", "x")]


@pytest.mark.parametrize(
    ("wanted", "keys"),
    [
        ({"n": {"$gt": 1}}, {"2", "3"}),
        ({"n": {"$gte": 1, "$lt": 3}}, {"1", "2"}),
        ({"n": {"$ne": 2}}, {"1", "3", "text", "none"}),
        ({"n": None}, {"none"}),
        ({"n": {"$gt": "a"}}, {"text"}),
        ({"deep": {"n": {"$lt": 3}}}, {"1", "2"}),
        ({"deep": {}}, {"1", "2", "3"}),
        ({"list": [1, {"$gt": 1}]}, {"2", "3"}),
        ({"a.b": 1}, {"1"}),
    ],
)
def test_filters(store: MemStateStore, wanted: dict[str, Any], keys: set[str]) -> None:
    for n in (1, 2, 3):
        store.put(("a",), str(n), {"n": n, "deep": {"n": n, "m": 0}, "list": [1, n], "a.b": n})
    store.put(("a",), "text", {"n": "b"})
    store.put(("a",), "none", {})
    assert {item.key for item in store.search(("a",), filter=wanted)} == keys


# --- times


def test_created_is_kept_by_changes_and_begins_anew_after_a_deletion(
    memory: MemoryStore, store: MemStateStore, clock: Clock
) -> None:
    store.put(("a",), "k", {"n": 1})
    clock.minutes = 1
    store.put(("a",), "k", {"n": 2})
    item = store.get(("a",), "k")
    assert item is not None
    assert (item.created_at, item.updated_at) == (clock.start, clock())
    store.delete(("a",), "k")
    clock.minutes = 2
    memory.rollback(1)
    assert store.get(("a",), "k") == item
    store.delete(("a",), "k")
    store.put(("a",), "k", {"n": 3})
    item = store.get(("a",), "k")
    assert item is not None
    assert item.created_at == item.updated_at == clock()
    assert item.created_at == memory.history(memory.query()[0].id)[0].after.ts  # type: ignore[union-attr]


def test_an_item_ends_when_it_was_not_used_for_its_time(
    memory: MemoryStore, store: MemStateStore, clock: Clock
) -> None:
    store.put(("a",), "read", {"n": 1}, ttl=10)
    store.put(("a",), "found", {"n": 2}, ttl=10)
    store.put(("a",), "glanced", {"n": 3}, ttl=10)
    store.put(("a",), "stays", {"n": 4})
    clock.minutes = 9
    assert store.get(("a",), "read")
    assert [item.key for item in store.search(("a",), filter={"n": 2})] == ["found"]
    assert store.get(("a",), "glanced", refresh_ttl=False)
    clock.minutes = 11
    assert store.get(("a",), "glanced") is None
    assert [item.key for item in store.search(("a",), limit=2, refresh_ttl=False)] == ["stays", "found"]
    assert store.list_namespaces() == [("a",)]
    assert store.sweep_ttl() == 1
    clock.minutes = 20
    assert store.sweep_ttl() == 2
    assert [fact.payload["key"] for fact in memory.query()] == ["stays"]
    assert store.sweep_ttl() == 0
    assert_in_step(memory)


def test_a_put_over_what_has_ended_is_a_new_item(memory: MemoryStore, store: MemStateStore, clock: Clock) -> None:
    store.put(("a",), "k", {}, ttl=1)
    clock.minutes = 2
    store.put(("a",), "k", {})
    item = store.get(("a",), "k")
    assert item is not None
    assert item.created_at == clock()
    clock.minutes = 200
    assert store.get(("a",), "k")


def test_defaults_of_the_time_to_live(memory: MemoryStore, door: str, clock: Clock) -> None:
    store = store_on(memory, door, ttl={"default_ttl": 10, "refresh_on_read": False})
    store.put(("a",), "default", {})
    store.put(("a",), "never", {}, ttl=None)
    clock.minutes = 9
    assert store.get(("a",), "default")
    clock.minutes = 11
    assert [item.key for item in store.search(("a",))] == ["never"]


def test_a_sweep_leaves_what_is_put_again_meanwhile(tmp_path: Path, clock: Clock) -> None:
    memory = PLACES[2].open(tmp_path)
    store = MemStateStore(memory)
    store.put(("a",), "k", {"n": 1}, ttl=1)
    clock.minutes = 2
    busy: list[str] = []

    def veto(operation: str, fact_id: str, fact: Any) -> None:
        if not busy:
            busy.append(operation)
            MemStateStore(PLACES[2].open(tmp_path)).put(("a",), "k", {"n": 2}, ttl=1)

    memory.add_hook(veto)
    assert store.sweep_ttl() == 0
    assert busy == ["EXPIRE"]
    item = store.get(("a",), "k")
    assert item is not None
    assert item.value == {"n": 2}
    memory.close()


# --- one history


def test_items_are_facts_that_only_the_store_writes(memory: MemoryStore, store: MemStateStore) -> None:
    store.put(("a", "b"), "k", {"n": 1})
    (fact,) = memory.query("langgraph.item", namespace=("a", "b"))
    assert fact.payload["value"] == {"n": 1}
    with pytest.raises(ValidationFailed, match="langgraph"):
        memory.commit(fact)
    with pytest.raises(ValidationFailed, match="langgraph"):
        memory.update(fact.id, {"value": 3})
    memory.delete(fact.id)
    assert store.get(("a", "b"), "k") is None


def test_a_transaction_holds_facts_and_items(memory: MemoryStore, door: str) -> None:
    store = store_on(memory, door)
    if door == "sync" and not isinstance(memory, MemoryStore):
        pytest.skip("the block runs in the context of the async door")
    with pytest.raises(ValidationFailed), memory.transaction(session_id="s") as tx:  # noqa: PT012 -- the block is it
        tx.commit(note("half"))
        store.put(("a",), "k", {})
        store.put(("a",), "l", {"bad": object()})
    assert memory.query() == []
    store.put(("a",), "before", {})
    with memory.transaction(session_id="s") as tx:
        tx.commit(note("whole"))
        store.put(("a",), "k", {"n": 1})
        store.put(("a",), "k", {"n": 2})
        found = store.get(("a",), "k")
        assert found is not None
        assert found.value == {"n": 2}
        store.put(("a",), "l", {"n": 3})
        assert [item.key for item in store.search((), limit=3)] == ["l", "k", "before"]
    assert len(memory.query(session_id="s")) == 3
    memory.rollback(1, session_id="s")
    assert [fact.payload["key"] for fact in memory.query()] == ["before"]


def test_deletions_of_several_sessions_are_one_batch(memory: MemoryStore, store: MemStateStore) -> None:
    other = store_on(memory, "async" if isinstance(store, Awaited) else "sync", session_id="other")
    store.put(("a",), "k", {})
    other.put(("a",), "l", {})
    store.batch([PutOp(("a",), "k", None), PutOp(("a",), "l", None), PutOp(("a",), "never", None)])
    assert store.search(()) == []
    memory.rollback(1, session_id="store")
    assert len(store.search(())) == 2


# --- vectors


@pytest.fixture
def searchable(open_store: Opener, vectors: Unreliable, door: str) -> tuple[MemoryStore, MemStateStore]:
    memory = open_store(
        ItemSyncHook(vectors, ["text"], grace=0, late=0), hook_over(Unreliable(), name="facts", grace=0)
    )
    return memory, store_on(memory, door)


def test_search_follows_what_is_put_deleted_and_rolled_back(
    searchable: tuple[MemoryStore, MemStateStore], vectors: Unreliable
) -> None:
    memory, store = searchable

    def nearest(query: str) -> tuple[str, bool]:
        first = store.search(("a",), query=query)[0]
        return first.key, first.score is not None

    store.put(("a",), "pet", {"text": "a grey cat"})
    store.put(("a",), "house", {"text": "a blue house"})
    memory.commit(note("a grey cat too"))
    assert nearest("grey cat") == ("pet", True)
    store.put(("a",), "pet", {"text": "a brown dog"})
    assert nearest("brown dog") == ("pet", True)
    memory.rollback(1)
    assert nearest("grey cat") == ("pet", True)
    store.put(("a",), "pet", {"text": "a grey cat"}, index=False)
    assert [(item.key, item.score is None) for item in store.search(("a",), query="grey cat")] == [
        ("house", False),
        ("pet", True),
    ]
    store.delete(("a",), "house")
    collect(memory)
    assert vectors.store == {}
    assert len(memory.search("grey cat", typename="note")) == 1
    assert not memory.verify().findings


def test_ranked_pages_go_on_with_what_has_no_text(searchable: tuple[MemoryStore, MemStateStore]) -> None:
    _, store = searchable
    for n in range(4):
        store.put(("a",), f"text {n}", {"text": "cat " * (n + 1) + "dog"})
        store.put(("a",), f"none {n}", {})
    whole = [item.key for item in store.search(("a",), query="cat", limit=20)]
    assert whole[:4] == ["text 3", "text 2", "text 1", "text 0"]
    assert sorted(whole[4:]) == [f"none {n}" for n in range(4)]
    paged = [
        item.key for offset in range(0, 9, 3) for item in store.search(("a",), query="cat", limit=3, offset=offset)
    ]
    assert paged == whole


def test_a_failing_vector_store_leaves_no_item(
    searchable: tuple[MemoryStore, MemStateStore], vectors: Unreliable
) -> None:
    memory, store = searchable
    for mood in ("refused", "applied", "late"):
        vectors.mood = mood
        with pytest.raises(HookError):
            store.batch([PutOp(("a",), "k", {"text": "cat"}), PutOp(("a",), "l", {})])
    vectors.mood = "ok"
    vectors.arrive()
    assert store.search(("a",), query="cat") == []
    assert memory.log() == []


def test_fields_are_paths(open_store: Opener, door: str) -> None:
    vectors = InMemoryVectorStore(Words())
    store = store_on(open_store(ItemSyncHook(vectors, ["title", "parts[*].text"])), door)
    store.put(("a",), "k", {"title": "T", "parts": [{"text": "one"}, {"text": "two"}], "other": "no"})
    store.put(("a",), "l", {"other": "yes"}, index=["other"])
    assert {document["text"] for document in vectors.store.values()} == {"T\none\ntwo", "yes"}


def test_a_formatter_of_facts_does_not_see_items(open_store: Opener, door: str) -> None:
    memory = open_store(VectorStoreSyncHook(Unreliable(), text_formatter=lambda fact: str(fact.payload["content"])))
    store = store_on(memory, door)
    store.put(("a",), "k", {"content": "cat"})
    memory.commit(note("cat"))
    assert [hit.fact.type for hit in memory.search("cat")] == ["note"]
    assert [item.score for item in store.search(("a",), query="cat")] == [None]


# --- doors


async def test_a_sync_call_in_an_event_loop_is_refused_by_name(tmp_path: Path) -> None:
    from memstate_langgraph import AsyncInMemoryStorage

    memory = AsyncMemoryStore(AsyncInMemoryStorage())
    store = MemStateStore(memory)
    await store.aput(("a",), "k", {})
    with pytest.raises(ValidationFailed, match="aget"):
        store.get(("a",), "k")
    assert await asyncio.to_thread(store.get, ("a",), "k")
    memory.add_hook(AsyncVectorStoreSyncHook(InMemoryVectorStore(Words()), text_field="content"))
    with pytest.raises(ValidationFailed, match="sync door"):
        await asyncio.to_thread(store.get, ("a",), "k")
    await memory.close()


def test_a_store_is_made_of_a_memory() -> None:
    with pytest.raises(ValidationFailed, match="MemoryStore"):
        MemStateStore(cast("Any", "state.db"))
