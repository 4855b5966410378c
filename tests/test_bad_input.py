"""Whatever comes in, it is stored as it is or refused by a named error that leaves no trace."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import BaseModel

from memstate_langgraph import (
    Constraint,
    Fact,
    InMemoryStorage,
    MemoryStore,
    MemoryStoreError,
    SQLiteStorage,
    ValidationFailed,
    VectorStoreSyncHook,
)
from tests.conftest import Opener
from tests.models import Note, Preference, note
from tests.stores import Unreliable, assert_in_step, hook_over

LONG = "x" * 100_000


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    return value


TEXT = st.text() | st.sampled_from(
    ["", "\x00", "a\x00b", "\ud800", "\udfff!", "'; DROP TABLE facts; --", '"', "ü", "x" * 600]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**2000), max_value=2**2000)
    | st.floats()
    | TEXT
    | st.sampled_from([b"bytes", {1, 2}, object(), datetime(2020, 1, 1, tzinfo=UTC), 1j, nested(50), nested(150), int])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(TEXT | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
PAYLOADS = st.dictionaries(st.sampled_from(["content", "topic", "weight", "else"]) | TEXT, VALUES, max_size=5)


def plain(value: Any) -> Any:
    """What JSON makes of a value that it can carry."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def jsonable(value: Any, depth: int = 0) -> bool:
    if depth > 100:
        return False
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and jsonable(key) and jsonable(item, depth + 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(jsonable(item, depth + 1) for item in value)
    return value is None or (isinstance(value, int) and value.bit_length() <= 1024)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MemoryStore]:
    """One store for many inputs: what one of them breaks, the next one meets."""
    memory = MemoryStore(SQLiteStorage(tmp_path_factory.mktemp("bad") / "state.db"), [hook_over(Unreliable())])
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    memory.register_schema("loose", Loose, Constraint(singleton_key="key"))
    memory.commit(note("as it was", "known"))
    yield memory
    assert_in_step(memory)
    memory.close()


class Loose(BaseModel):
    key: Any = None
    content: Any = None


def outcome(memory: MemoryStore, call: Callable[[], Any]) -> Any:
    """The answer, or the named error, which left no trace."""
    length = len(memory.log())
    try:
        return call()
    except MemoryStoreError as raised:
        error = raised
    assert str(error)
    assert len(memory.log()) == length
    return error


def payloads_are_stored_or_refused(shared: MemoryStore, payload: dict[str, Any], typename: str) -> None:
    fact = Fact(type=typename, payload=payload)
    result = outcome(shared, lambda: shared.commit(fact))
    if isinstance(result, MemoryStoreError):
        assert isinstance(result, ValidationFailed)
        assert repr(typename) in str(result)
        assert typename != "free" or not jsonable(payload)
        return
    stored = shared.get(result)
    assert stored is not None
    if typename == "free":
        assert jsonable(payload)
        assert stored.payload == plain(payload)
        assert [hit.id for hit in shared.query(filters={"id": result})] == [result]
    shared.rollback(1)
    assert shared.get(result) is None or stored.version > 1


@given(payload=PAYLOADS, typename=st.sampled_from(["free", "preference", "loose"]))
@settings(max_examples=250)
def test_payloads_of_every_shape(shared: MemoryStore, payload: dict[str, Any], typename: str) -> None:
    payloads_are_stored_or_refused(shared, payload, typename)


@pytest.mark.long
@given(payload=PAYLOADS, typename=st.sampled_from(["free", "preference", "loose"]))
@settings(max_examples=10_000)
def test_payloads_of_very_many_shapes(shared: MemoryStore, payload: dict[str, Any], typename: str) -> None:
    payloads_are_stored_or_refused(shared, payload, typename)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("typename", ["free", "loose"])
def test_numbers_that_json_lacks(shared: MemoryStore, typename: str, number: float) -> None:
    for payload in ({"content": number}, {"content": [{"deep": (1, number)}]}):
        with pytest.raises(ValidationFailed, match=r"content.*JSON number"):
            shared.commit(Fact(type=typename, payload=payload))


@pytest.mark.parametrize("typename", ["free", "preference", "loose"])
def test_payloads_too_deep_for_anyone(shared: MemoryStore, typename: str) -> None:
    payload = {"content": nested(5000), "topic": "r", "key": nested(900)}
    assert isinstance(outcome(shared, lambda: shared.commit(Fact(type=typename, payload=payload))), ValidationFailed)
    assert isinstance(outcome(shared, lambda: shared.update("known", payload)), ValidationFailed)
    assert isinstance(outcome(shared, lambda: shared.query(filters={"payload.content": payload})), list)


@given(patch=PAYLOADS)
@settings(max_examples=120)
def test_patches_of_every_shape(shared: MemoryStore, patch: dict[str, Any]) -> None:
    before = shared.get("known")
    result = outcome(shared, lambda: shared.update("known", patch))
    after = shared.get("known")
    assert before is not None
    assert after is not None
    if isinstance(result, MemoryStoreError):
        assert after == before
    else:
        assert after.payload == {**before.payload, **plain(patch)}
        shared.rollback(1)


FILTER_KEYS = st.sampled_from(["payload.content", "payload.a.b", "id", "type", "ts", "namespace", "payload."]) | TEXT
OPERATORS = st.sampled_from(["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$where", "$"])
FILTERS = st.dictionaries(FILTER_KEYS, VALUES | st.dictionaries(OPERATORS, VALUES, max_size=3), max_size=3)


@given(filters=FILTERS, search=st.booleans())
@settings(max_examples=120)
def test_filters_of_every_shape(shared: MemoryStore, filters: dict[str, Any], search: bool) -> None:
    calls: list[Callable[[], Any]] = [lambda: shared.query(filters=filters)]
    if search:
        calls.append(lambda: shared.search("anything", limit=None, filters=filters))
    for call in calls:
        result = outcome(shared, call)
        if not isinstance(result, MemoryStoreError):
            assert len(result) <= 1
    assert shared.get("known") is not None


INJECTIONS = [
    "payload.content') OR 1=1 --",
    "payload.content' OR '1'='1",
    'payload.x"); DROP TABLE facts; --',
    "payload.$[*]",
    "id OR 1=1",
    "1=1; --",
    "session_id' UNION SELECT * FROM log --",
]


@pytest.mark.parametrize("injection", INJECTIONS)
def test_injections_find_nothing(memory: MemoryStore, injection: str) -> None:
    memory.commit(note("secret", "a", namespace=("ana",)), session_id="s")
    attempts: list[Callable[[], list[Any]]] = [
        lambda: memory.query(filters={injection: "x"}),
        lambda: memory.query(filters={"payload.content": injection}),
        lambda: memory.query(filters={"id": injection}),
        lambda: memory.query(injection),
        lambda: memory.query(session_id=injection),
        lambda: memory.query(namespace=(injection,)),
        lambda: memory.log(session_id=injection),
        lambda: memory.history(injection),
        lambda: memory.rollback(1, session_id=injection),
    ]
    for attempt in attempts:
        try:
            assert attempt() == []
        except ValidationFailed:
            continue
    fact_id = memory.commit(Fact(id=injection, type=injection, payload={injection: injection}, namespace=(injection,)))
    assert [fact.id for fact in memory.query(injection, namespace=(injection,))] == [fact_id]
    assert len(memory.query()) == 2


JUNK = [
    None, 0, 5, -1, 1.5, math.nan, math.inf, 10**30, True, "", " ", "\x00", "\ud800", LONG, b"x", [], {}, (), [5], {5},
    {"a": 5}, {"\ud800": 5}, ("a", 5), ("a", "\x00"), object(), NotImplemented, lambda *_: None, "nobody",
    Fact(type="", payload={}), Fact.model_construct(type=5, payload=5), Note.model_construct(content=5),
    Fact.model_construct(type="note", payload={5: 5}, ts=5), Note(content="x"),
]  # fmt: skip

VALID: dict[str, dict[str, Any]] = {
    "commit": {"fact": note("new")},
    "commit_many": {"facts": [note("new"), note("newer")]},
    "commit_model": {"model": Preference(content="x", topic="r")},
    "update": {"fact_id": "known", "patch": {"content": "changed"}},
    "delete": {"fact_id": "known"},
    "promote": {"session_id": "s"},
    "discard_session": {"session_id": "s"},
    "rollback": {},
    "get": {"fact_id": "known"},
    "query": {},
    "search": {"query": "words"},
    "log": {},
    "history": {"fact_id": "known"},
    "diff": {"start": 0},
    "revert": {"thread_id": "t"},
    "repair": {},
    "register_schema": {"typename": "kind", "model": Note},
    "add_hook": {"hook": print},
}
ARGUMENTS = [
    (method, name) for method in VALID for name in list(inspect.signature(getattr(MemoryStore, method)).parameters)[1:]
]


@pytest.mark.parametrize(("method", "argument"), ARGUMENTS, ids=[f"{method}-{name}" for method, name in ARGUMENTS])
def test_every_argument_of_every_method(method: str, argument: str) -> None:
    memory = MemoryStore(InMemoryStorage(), [hook_over(Unreliable())])
    memory.register_schema("preference", Preference)
    memory.commit(note("as it was", "known"))
    for junk in JUNK:
        before = len(memory.log())
        outcome(memory, lambda junk=junk: getattr(memory, method)(**{**VALID[method], argument: junk}))  # type: ignore[misc]
        if len(memory.log()) > before:
            assert_in_step(memory)
            memory.rollback(1)
        if method == "add_hook":
            memory._core.vetoes.clear()
        if memory.get("known") is None:
            memory.commit(note("as it was", "known"))
    assert_in_step(memory)


def test_transactions_check_their_arguments(memory: MemoryStore) -> None:
    for name in ("session_id", "actor", "reason"):
        for junk in (5, "", "\x00", LONG, b"x"):
            with pytest.raises(ValidationFailed, match=name), memory.transaction(**{name: junk}):  # type: ignore[arg-type]
                pass
    memory.commit(note("usable"))


@pytest.mark.parametrize(
    "options",
    [
        {"text_field": None},
        {"text_field": "a", "text_formatter": str},
        {"text_field": "a", "lease": -1},
        {"text_field": "a", "grace": math.nan},
        {"text_field": "a", "late": math.inf},
        {"text_field": "a", "timeout": 0},
        {"text_field": "a", "timeout": math.nan},
        {"text_field": "a", "timeout": "1"},
        {"text_field": "a", "grace": None},
        {"text_field": "a", "metadata_fields": "topic"},
        {"text_field": "a", "target_types": "note"},
        {"text_field": "a", "name": ""},
    ],
)
def test_hooks_check_their_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed, match="hook"):
        VectorStoreSyncHook(Unreliable(), **options)


@pytest.mark.parametrize("path", ["", "\x00", "no/such/folder/state.db", "/"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(MemoryStoreError):
        SQLiteStorage(path)


def test_stores_check_their_storage_and_hooks(tmp_path: Path) -> None:
    for wrong in (None, "state.db", tmp_path, object()):
        with pytest.raises(ValidationFailed, match="storage"):
            MemoryStore(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValidationFailed, match="hook"):
        MemoryStore(InMemoryStorage(), [5])
    with pytest.raises(ValidationFailed, match="hook"):
        MemoryStore(InMemoryStorage(), hook_over(Unreliable()))  # type: ignore[arg-type]


def test_a_formatter_that_fails_is_a_failing_hook(open_store: Opener) -> None:
    def formatter(fact: Fact) -> str:
        return str(fact.payload["absent"])

    memory = open_store(VectorStoreSyncHook(Unreliable(), text_formatter=formatter))
    with pytest.raises(MemoryStoreError, match="absent"):
        memory.commit(note("one"))
    assert memory.log() == []


def test_scores_that_are_no_numbers_rank_last(open_store: Opener) -> None:
    class Odd(Unreliable):
        def similarity_search_with_score(self, query: str, k: int = 4, **options: Any) -> list[tuple[Any, float]]:
            found = super().similarity_search_with_score(query, k, **options)
            odd = [math.nan, 0.5, -math.inf, math.inf]
            return [(document, score) for (document, _), score in zip(found, odd, strict=False)]

        async def asimilarity_search_with_score(
            self, query: str, k: int = 4, **options: Any
        ) -> list[tuple[Any, float]]:
            return self.similarity_search_with_score(query, k, **options)

    memory = open_store(hook_over(Odd()))
    for i in range(4):
        memory.commit(note(f"number {i}"))
    hits = memory.search("number", limit=None)
    assert len(hits) == 4
    assert hits[0].score == 0.5
    assert not any(math.isnan(hit.score) for hit in hits)


def test_search_refuses_queries_without_text(open_store: Opener) -> None:
    memory = open_store(hook_over(Unreliable()))
    for wrong in ("", "  \n", None, 5, "\x00", "\ud800"):
        with pytest.raises(ValidationFailed):
            memory.search(wrong)  # type: ignore[arg-type]
    with pytest.raises(MemoryStoreError, match="no vector hook"):
        open_store().search("words")
