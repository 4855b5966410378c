"""The checkpointer against `InMemorySaver`, in what LangGraph's conformance suite does not ask."""

from __future__ import annotations

import asyncio
import copy
import inspect
import operator
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointMetadata
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt
from pydantic import BaseModel

from memstate_langgraph import (
    AsyncInMemoryStorage,
    AsyncMemoryStore,
    AsyncPostgresStorage,
    AsyncSQLiteStorage,
    DamagedCheckpoint,
    InMemoryStorage,
    MemoryStore,
    MemoryStoreError,
    MemStateCheckpointer,
    PostgresStorage,
    SQLiteStorage,
    ValidationFailed,
)
from tests.models import note
from tests.servers import behind_its_back, postgres_url, schema_of

Saver = BaseCheckpointSaver[Any]
STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: MemoryStore(InMemoryStorage()),
    "sqlite": lambda path: MemoryStore(SQLiteStorage(path)),
    "async memory": lambda path: AsyncMemoryStore(AsyncInMemoryStorage()),
    "async sqlite": lambda path: AsyncMemoryStore(AsyncSQLiteStorage(path)),
    "postgres": lambda path: MemoryStore(PostgresStorage(postgres_url(), schema=schema_of(path))),
    "async postgres": lambda path: AsyncMemoryStore(AsyncPostgresStorage(postgres_url(), schema=schema_of(path))),
}


@pytest.fixture(params=STORES)
def saver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MemStateCheckpointer]:
    saver = MemStateCheckpointer(memory=STORES[request.param](tmp_path / "state.db"))
    yield saver
    saver.close()


def config(thread: str = "t", **more: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **more}}


def checkpoint(values: dict[str, Any] | None = None, versions: dict[str, Any] | None = None) -> Checkpoint:
    return Checkpoint(
        v=2, id=str(uuid6()), ts="2026-01-01T00:00:00+00:00", channel_values=values or {},
        channel_versions=versions or {}, versions_seen={}, updated_channels=None,
    )  # fmt: skip


META: CheckpointMetadata = {"source": "loop", "step": 0, "parents": {}}


# --- what the suite does not ask


def test_an_asked_checkpoint_comes_back_under_its_id(saver: MemStateCheckpointer) -> None:
    stored = saver.put(config(), checkpoint(), META, {})
    found = saver.get_tuple(stored)
    assert found is not None
    assert found.config == stored
    assert found.pending_writes == []
    assert found.parent_config is None
    latest = saver.get_tuple(config())
    assert latest is not None
    assert latest.config == stored


def test_writes_may_come_before_their_checkpoint(saver: MemStateCheckpointer) -> None:
    made = checkpoint()
    saver.put_writes(config(checkpoint_id=made["id"]), [("a", 1)], "task")
    saver.put(config(), made, META, {})
    assert saver.get_tuple(config()).pending_writes == [("task", "a", 1)]  # type: ignore[union-attr]


def test_ordinary_writes_keep_the_first_and_special_ones_the_last(saver: MemStateCheckpointer) -> None:
    stored = saver.put(config(), checkpoint(), META, {})
    saver.put_writes(stored, [("a", 1), ("b", 2)], "task", "p")
    saver.put_writes(stored, [("a", 9), ("b", 9), ("c", 3)], "task", "p")
    saver.put_writes(stored, [("__error__", "first")], "task", "p")
    saver.put_writes(stored, [("__error__", "second"), ("__interrupt__", "i")], "task", "p")
    writes = saver.get_tuple(stored).pending_writes  # type: ignore[union-attr]
    assert writes is not None
    assert sorted((channel, value) for _, channel, value in writes) == [
        ("__error__", "second"), ("__interrupt__", "i"), ("a", 1), ("b", 2), ("c", 3),
    ]  # fmt: skip


def test_writes_come_in_the_order_of_their_tasks_paths(saver: MemStateCheckpointer) -> None:
    stored = saver.put(config(), checkpoint(), META, {})
    for task, path in (("z", "~1"), ("a", "~3"), ("m", "~2"), ("b", "")):
        saver.put_writes(stored, [("x", task), ("y", task)], task, path)
    found = saver.get_tuple(stored)
    assert found is not None
    assert [value for _, _, value in found.pending_writes or ()] == ["b", "b", "z", "z", "m", "m", "a", "a"]
    assert "task_path" in inspect.signature(saver.put_writes).parameters
    assert "task_path" in inspect.signature(saver.aput_writes).parameters


def test_the_latest_is_the_one_with_the_highest_id(saver: MemStateCheckpointer) -> None:
    old, new = checkpoint(), checkpoint()
    saver.put(config(), new, META, {})
    saver.put(config(), old, META, {})
    assert saver.get_tuple(config()).checkpoint["id"] == new["id"]  # type: ignore[union-attr]
    assert [found.checkpoint["id"] for found in saver.list(config())] == [new["id"], old["id"]]
    assert list(saver.list(config(), limit=0)) == []
    assert saver.get_tuple(config(checkpoint_id="unknown")) is None
    assert saver.get_tuple(config("nobody")) is None


def test_metadata_is_merged_and_keeps_its_tuples(saver: MemStateCheckpointer) -> None:
    asked = {**config(user="ana"), "metadata": {"run_id": "r", "thread_id": "no"}}
    meta: Any = {**META, "counters_since_delta_snapshot": {"c": (1, 2)}}
    found = saver.get_tuple(saver.put(asked, checkpoint(), meta, {}))  # type: ignore[arg-type]
    assert found is not None
    about: Any = found.metadata
    assert about["counters_since_delta_snapshot"] == {"c": (1, 2)}
    assert (about["user"], about["run_id"]) == ("ana", "r")
    assert "thread_id" not in about
    assert [one.metadata for one in saver.list(config(), filter={"run_id": "r"})] == [about]
    assert list(saver.list(config(), filter={"run_id": "x"})) == []


def test_a_value_stays_as_its_version_said(saver: MemStateCheckpointer) -> None:
    first = saver.put(config(), checkpoint({"a": [1], "b": 1}, {"a": "1", "b": "1"}), META, {"a": "1", "b": "1"})
    values = {"a": [1, "changed in place"], "b": 2}
    second = saver.put(first, checkpoint(values, {"a": "1", "b": "2"}), META, {"b": "2"})
    assert saver.get_tuple(second).checkpoint["channel_values"] == {"a": [1], "b": 2}  # type: ignore[union-attr]
    assert saver.get_tuple(first).checkpoint["channel_values"] == {"a": [1], "b": 1}  # type: ignore[union-attr]


def test_nobody_shares_a_mutable_object(saver: MemStateCheckpointer) -> None:
    value = [{"x": [1]}]
    stored = saver.put(config(), checkpoint({"a": value}, {"a": "1"}), META, {"a": "1"})
    value[0]["x"].append(2)
    first: Any = saver.get_tuple(stored)
    first.checkpoint["channel_values"]["a"].append(3)
    again: Any = saver.get_tuple(stored)
    assert again.checkpoint["channel_values"]["a"] == [{"x": [1]}]


def test_versions_rise_and_differ_between_forks(saver: MemStateCheckpointer) -> None:
    versions = [saver.get_next_version(None, None)]
    for _ in range(20):
        versions.append(saver.get_next_version(versions[-1], None))
    assert versions == sorted(versions)
    assert all(isinstance(version, str) for version in versions)
    assert saver.get_next_version(versions[0], None) != saver.get_next_version(versions[0], None)
    theirs = InMemorySaver().get_next_version(None, None)  # a thread that began with another saver
    assert saver.get_next_version(theirs, None) > theirs


def test_a_clone_with_another_serializer_shares_everything(saver: MemStateCheckpointer) -> None:
    clone = copy.copy(saver)
    clone.serde = JsonPlusSerializer(allowed_msgpack_modules=None)
    stored = clone.put(config(), checkpoint({"a": [1]}, {"a": "1"}), META, {"a": "1"})
    assert saver.get_tuple(stored).checkpoint["channel_values"] == {"a": [1]}  # type: ignore[union-attr]


def test_bad_configs_are_named(saver: MemStateCheckpointer) -> None:
    configs: list[RunnableConfig] = [{}, {"configurable": {}}, {"configurable": {"thread_id": ""}}]
    for bad in configs:
        with pytest.raises(ValidationFailed, match="thread_id"):
            saver.get_tuple(bad)
    with pytest.raises(ValidationFailed, match="NUL"):
        saver.get_tuple(config("a\x00b"))
    with pytest.raises(ValidationFailed, match="checkpoint_id"):
        saver.put_writes(config(), [("a", 1)], "task")
    with pytest.raises(ValidationFailed, match="strategy"):
        saver.prune(["t"], strategy="sometimes")
    assert saver.put({"configurable": {"thread_id": 7}}, checkpoint(), META, {})["configurable"]["thread_id"] == "7"


async def test_a_sync_call_inside_the_loop_is_refused_where_it_would_block(saver: MemStateCheckpointer) -> None:
    if isinstance(saver.memory, MemoryStore):
        assert saver.get_tuple(config()) is None  # a notebook runs a loop, and calls invoke
    else:
        with pytest.raises(MemoryStoreError, match="ainvoke"):
            saver.get_tuple(config())
    assert await asyncio.to_thread(saver.get_tuple, config()) is None
    assert await saver.aget_tuple(config()) is None


def test_threads(saver: MemStateCheckpointer) -> None:
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            at = config(name)
            for i in range(10):
                version = f"{i:04}"
                at = saver.put(at, checkpoint({"a": list(range(i))}, {"a": version}), META, {"a": version})
                saver.put_writes(at, [("a", i)], "task")
            assert len(list(saver.list(config(name)))) == 10
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_checkpoints_are_facts(saver: MemStateCheckpointer) -> None:
    stored = saver.put(config(), checkpoint({"a": 1}, {"a": "1"}), META, {"a": "1"})
    saver.put_writes(stored, [("a", 2)], "task")
    saver.put(config("other"), checkpoint(), META, {})

    def query(typename: str | None, **question: Any) -> Any:
        if isinstance(saver.memory, MemoryStore):
            return saver.memory.query(typename, **question)
        return asyncio.run(saver.memory.query(typename, **question))

    (fact,) = query("langgraph.checkpoint", session_id="t")
    assert fact.payload["checkpoint_id"] == stored["configurable"]["checkpoint_id"]
    assert fact.payload["metadata"]["source"] == "loop"
    assert len(query("langgraph.checkpoint")) == 2
    assert query("langgraph.checkpoint", filters={"payload.metadata.source": "input"}) == []
    (write,) = query("langgraph.write", session_id="t")
    assert (write.payload["task_id"], write.payload["channel"]) == ("task", "a")
    assert query(None) == []


# --- graphs behave as with LangGraph's own saver


class Wish(BaseModel):
    text: str


@dataclass
class Point:
    x: int


class State(TypedDict, total=False):
    items: Annotated[list[Any], operator.add]
    wish: Wish
    point: Point
    asked: str


def fan_out(state: State) -> list[Send]:
    return [Send("worker", {"items": [i]}) for i in range(3)]


def build(saver: Saver) -> Any:
    inner = StateGraph(State)
    inner.add_node("deep", lambda state: {"items": ["deep"], "wish": Wish(text="w"), "point": Point(3)})
    inner.add_edge(START, "deep")

    def ask(state: State) -> State:
        return {"asked": interrupt("what?"), "items": ["asked"]}

    graph = StateGraph(State)
    graph.add_node("first", lambda state: {"items": ["first"]})
    graph.add_node("worker", lambda state: {"items": [state["items"][0] * 10]})
    graph.add_node("sub", inner.compile())
    graph.add_node("ask", ask)
    graph.add_edge(START, "first")
    graph.add_conditional_edges("first", fan_out, ["worker"])
    graph.add_edge("worker", "sub")
    graph.add_edge("sub", "ask")
    graph.add_edge("ask", END)
    return graph.compile(checkpointer=saver)


def seen(app: Any, at: RunnableConfig) -> list[Any]:
    return [
        (snapshot.values, snapshot.next, snapshot.metadata["step"], [task.name for task in snapshot.tasks])
        for snapshot in app.get_state_history(at)
    ]


def story(saver: Saver) -> list[Any]:
    app, at = build(saver), config()
    told: list[Any] = [app.invoke({"items": ["in"]}, at), seen(app, at)]
    told.append(app.invoke(Command(resume="that"), at))
    app.update_state(at, {"items": ["by hand"]})
    told += [seen(app, at), app.get_state(at).values]
    past = next(snapshot for snapshot in app.get_state_history(at) if snapshot.next == ("ask",))
    told.append(app.invoke(Command(resume="otherwise"), past.config)["asked"])  # a fork from the past
    told += [seen(app, at), [one.metadata["source"] for one in saver.list(at)]]
    saver.copy_thread("t", "copy") if not isinstance(saver, InMemorySaver) else None
    return told


def plain(told: list[Any]) -> str:
    import re

    return re.sub(r"id='[0-9a-f]{32}'|'[0-9a-f-]{36}'", "id", str(told))


def test_a_graph_with_everything_behaves_as_in_memory(saver: MemStateCheckpointer) -> None:
    ours = plain(story(saver))
    assert ours == plain(story(InMemorySaver()))
    copied = seen(build(saver), config("copy"))
    assert copied == seen(build(saver), config())


async def test_the_same_through_ainvoke_and_astream(saver: MemStateCheckpointer) -> None:
    app, theirs = build(saver), build(InMemorySaver())
    for graph in (app, theirs):
        async for _ in graph.astream({"items": ["in"]}, config()):
            pass
        await graph.ainvoke(Command(resume="that"), config())
    ours_now, theirs_now = await app.aget_state(config()), await theirs.aget_state(config())
    assert ours_now.values == theirs_now.values
    assert isinstance(ours_now.values["wish"], Wish)
    assert isinstance(ours_now.values["point"], Point)


def test_a_failed_step_keeps_what_its_other_tasks_wrote(saver: MemStateCheckpointer) -> None:
    ran: list[str] = []
    broken = True

    def fine(state: State) -> State:
        ran.append("fine")
        return {"items": ["fine"]}

    def fails(state: State) -> State:
        if broken:
            time.sleep(0.3)  # so that what the other task wrote is stored
            raise RuntimeError("boom")
        return {"items": ["mended"]}

    graph = StateGraph(State)
    graph.add_node("fine", fine)
    graph.add_node("fails", fails)
    graph.add_edge(START, "fine")
    graph.add_edge(START, "fails")
    app = graph.compile(checkpointer=saver)
    with pytest.raises(RuntimeError):
        app.invoke({"items": []}, config(), durability="sync")
    broken = False
    assert sorted(app.invoke(None, config())["items"]) == ["fine", "mended"]
    assert ran == ["fine"]


def forgetful(saver: MemStateCheckpointer) -> MemStateCheckpointer:
    """The saver as a new process would have it: nothing is known."""
    fresh = copy.copy(saver)
    fresh._recent, fresh._pristine = type(saver._recent)(), type(saver._pristine)()
    return fresh


def chat(saver: Saver) -> Any:
    graph = StateGraph(MessagesState)
    graph.add_node("agent", lambda state: {"messages": [AIMessage(f"answer {len(state['messages'])}", id=None)]})
    graph.add_edge(START, "agent")
    return graph.compile(checkpointer=saver)


def test_messages_come_back_as_messages_also_when_edited_and_removed(saver: MemStateCheckpointer) -> None:
    app = chat(saver)
    for i in range(30):
        app.invoke({"messages": [HumanMessage(f"question {i}", id=f"h{i}")]}, config())
    app.update_state(config(), {"messages": [HumanMessage("edited", id="h3"), RemoveMessage(id="h5")]})
    messages = app.get_state(config()).values["messages"]
    assert len(messages) == 59
    assert isinstance(messages[0], HumanMessage)
    assert isinstance(messages[1], AIMessage)
    assert messages[6].text == "edited"
    assert "h5" not in [message.id for message in messages]
    assert chat(forgetful(saver)).get_state(config()).values["messages"] == messages
    lengths = [len(one.values.get("messages", ())) for one in app.get_state_history(config())]
    assert lengths[:3] == [59, 60, 59]


# --- storage


def size(path: Path) -> int:
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.stat().st_size


def test_a_turn_costs_what_is_new_in_it(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with MemStateCheckpointer.from_conn_string(str(path)) as saver:
        app = chat(saver)
        sizes = [size(path)]
        for i in range(120):
            app.invoke({"messages": [HumanMessage(f"question {i} " + os.urandom(100).hex())]}, config())
            if i % 40 == 39:
                sizes.append(size(path))
    first, _, third = (after - before for before, after in pairwise(sizes))
    assert third < first * 1.35


def test_pruning_gives_back_what_nothing_needs(saver: MemStateCheckpointer) -> None:
    app = chat(saver)
    for name in ("t", "other"):
        for i in range(12):
            app.invoke({"messages": [HumanMessage(f"question {i}", id=f"h{i}")]}, config(name))
    before = app.get_state(config()).values
    saver.prune(["t"], strategy="keep_last", keep_last=5)
    assert len(list(saver.list(config()))) == 5
    saver.prune(["t"])
    assert len(list(saver.list(config()))) == 1
    assert app.get_state(config()).values == before
    storage: Any = saver.memory.storage
    versions = saver.get_tuple(config()).checkpoint["channel_versions"]  # type: ignore[union-attr]
    held = behind_its_back(storage, "SELECT channel, version FROM channel_values WHERE thread_id = 't'")
    assert set(held) <= set(versions.items())
    app.invoke({"messages": [HumanMessage("and on")]}, config())
    assert len(app.get_state(config()).values["messages"]) == 26
    saver.prune(["t"], strategy="max_age", max_age=timedelta(days=1))
    saver.delete_thread("t")
    saver.delete_thread("other")
    for table in ("checkpoints", "channel_values", "chunks", "threads", "writes"):
        assert behind_its_back(storage, f"SELECT count(*) FROM {table}") == [(0,)], table


def test_a_copy_outlives_its_source(saver: MemStateCheckpointer) -> None:
    app = chat(saver)
    app.invoke({"messages": [HumanMessage("hello" * 50)]}, config())
    values = app.get_state(config()).values
    saver.copy_thread("t", "copy")
    saver.delete_thread("t")
    assert app.get_state(config("copy")).values == values


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE writes SET value = ?",
        "UPDATE chunks SET data = ?, packed = 0",
        "UPDATE chunks SET data = ?, packed = 1",
        "DELETE FROM chunks",
        "UPDATE checkpoints SET body = ?",
    ],
)
def test_a_damaged_chunk_is_an_error_never_a_wrong_state(saver: MemStateCheckpointer, damage: str) -> None:
    app = chat(saver)
    app.invoke({"messages": [HumanMessage("hello " * 50)]}, config("broken"))
    storage: Any = saver.memory.storage
    behind_its_back(storage, damage, [bytes(10_000)] * damage.count("?"))  # long enough for what is read of it
    with pytest.raises(DamagedCheckpoint, match=r"'broken'.*checkpoint"):
        list(chat(forgetful(saver)).get_state_history(config("broken")))


def test_encryption_hides_values_and_still_shares_them(tmp_path: Path) -> None:
    pytest.importorskip("Crypto")
    serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
    path = tmp_path / "state.db"
    with MemStateCheckpointer.from_conn_string(str(path), serde=serde) as saver:
        app = chat(saver)
        for _ in range(40):
            app.invoke({"messages": [HumanMessage("the secret word is swordfish " * 5)]}, config())
        values = app.get_state(config()).values
        assert len(values["messages"]) == 80
        chunks = saver.memory.storage.engine.writer.execute("SELECT sum(length(data)) FROM chunks").fetchone()[0]  # type: ignore[union-attr]
        assert chunks < 100_000
        # nor is it seen that two values are the same
        twice = checkpoint({"a": "x" * 5000, "b": "x" * 5000}, {"a": "1", "b": "1"})
        saver.put(config("twice"), twice, META, {"a": "1", "b": "1"})
        ((before,),) = behind_its_back(saver.memory.storage, "SELECT count(*) FROM chunks")
        saver.delete_thread("twice")
        assert behind_its_back(saver.memory.storage, "SELECT count(*) FROM chunks") == [(before - 2,)]
    assert b"swordfish" not in path.read_bytes()
    with MemStateCheckpointer.from_conn_string(str(path), serde=serde) as saver:
        assert chat(saver).get_state(config()).values == values


def test_memories_and_checkpoints_share_a_file_and_not_a_rollback(tmp_path: Path) -> None:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"))
    app = chat(MemStateCheckpointer(memory=memory))
    fact_id = memory.commit(note("kept", id="n"), session_id="t")
    app.invoke({"messages": [HumanMessage("hello")]}, config())
    assert memory.rollback(1) == [fact_id]
    assert memory.rollback(1) == []
    assert len(app.get_state(config()).values["messages"]) == 2


def test_a_put_without_values_leaves_the_thread_readable(saver: MemStateCheckpointer) -> None:
    app = chat(saver)
    app.invoke({"messages": [HumanMessage("hello " * 50)]}, config())
    values = app.get_state(config()).values
    app.update_state(config(), None, as_node=END)
    assert chat(forgetful(saver)).get_state(config()).values == values
    fork = app.update_state(app.get_state(config()).config, None, as_node="__copy__")
    assert chat(forgetful(saver)).get_state(fork).values == values


def test_a_channel_may_hold_anything_in_turn(saver: MemStateCheckpointer) -> None:
    at: RunnableConfig = config()
    messages = [HumanMessage("hello " * 20, id="a"), AIMessage("hi " * 20, id="b")]
    values = [{"a dict": "x" * 100}, messages, "text " * 40, [*messages, HumanMessage("more", id="c")], ["x" * 100]]
    for number, value in enumerate(values):
        version = f"{number:04}"
        at = saver.put(at, checkpoint({"a": value}, {"a": version}), META, {"a": version})
        for _ in range(2):
            assert saver.get_tuple(at).checkpoint["channel_values"] == {"a": value}  # type: ignore[union-attr]


def test_a_list_of_many_checkpoints_comes_in_pages(saver: MemStateCheckpointer) -> None:
    model = InMemorySaver()
    for one in (saver, model):
        for thread in ("t", "u"):
            for i in range(70):
                for space in ("", "sub"):
                    made = checkpoint()
                    made["id"] = f"{i:04}"
                    place: RunnableConfig = {"configurable": {"thread_id": thread, "checkpoint_ns": space}}
                    one.put(place, made, {**META, "step": i}, {})
    asked: list[tuple[RunnableConfig | None, dict[str, Any]]] = [
        (None, {}),
        ({"configurable": {"thread_id": "t"}}, {}),
        (config(), {}),
        (config(), {"before": config(checkpoint_id="0050")}),
        ({"configurable": {"thread_id": "t"}}, {"filter": {"step": 3}}),
    ]
    for where, options in asked:
        ours, theirs = ([one.config for one in each.list(where, **options)] for each in (saver, model))
        assert sorted(map(str, ours)) == sorted(map(str, theirs)), (where, options)
        ids = [one["configurable"]["checkpoint_id"] for one in ours]
        assert ids == sorted(ids, reverse=True)
    assert len(list(saver.list(None, limit=77))) == 77


def test_space_is_given_back_on_request(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    told: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        told.append((stage, done, total))

    with MemStateCheckpointer.from_conn_string(str(path)) as saver:
        kept = saver.put(config("kept"), checkpoint({"a": ["here"]}, {"a": "1"}), META, {"a": "1"})
        for name in ("x", "y"):
            value = os.urandom(2_000_000)
            saver.put(config(name), checkpoint({"a": value}, {"a": "1"}), META, {"a": "1"})
        full = size(path)
        assert full > 4_000_000
        saver.prune(["x", "y"], strategy="delete", progress=progress)
        assert size(path) == full, "space is kept for later until it is asked for"
        given = saver.memory.vacuum(progress)
        assert size(path) == full - given  # type: ignore[operator]
        assert size(path) < 400_000
        assert saver.get_tuple(kept).checkpoint["channel_values"] == {"a": ["here"]}  # type: ignore[union-attr]
        assert saver.memory.vacuum() == 0
    assert told[:2] == [("pruning threads", 1, 2), ("pruning threads", 2, 2)]
    stages = [(done, total) for stage, done, total in told if stage == "giving space back"]
    assert len(stages) > 2
    assert stages == sorted(stages)
    assert stages[-1][0] == stages[-1][1]


async def test_space_is_given_back_through_the_async_door(tmp_path: Path) -> None:
    memory = AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "state.db"))
    saver = MemStateCheckpointer(memory)
    await saver.aput(config(), checkpoint({"a": os.urandom(2_000_000)}, {"a": "1"}), META, {"a": "1"})
    await saver.adelete_thread("t")
    assert await memory.vacuum() > 1_900_000
    await memory.close()


def test_a_subgraph_shares_what_the_graph_around_it_holds(tmp_path: Path) -> None:
    inner = StateGraph(MessagesState)
    inner.add_node("deep", lambda state: {"messages": [AIMessage("deep", id=f"d{len(state['messages'])}")]})
    inner.add_edge(START, "deep")
    outer = StateGraph(MessagesState)
    outer.add_node("sub", inner.compile())
    outer.add_edge(START, "sub")
    path = tmp_path / "state.db"
    with MemStateCheckpointer.from_conn_string(str(path)) as saver:
        app = outer.compile(checkpointer=saver)
        app.invoke({"messages": [HumanMessage(os.urandom(50_000).hex(), id="long")]}, config())
        before = size(path)
        for i in range(20):
            app.invoke({"messages": [HumanMessage(f"short {i}", id=f"h{i}")]}, config())
        assert size(path) - before < 20 * 15_000, "each call of the subgraph begins with the whole list"
