"""What checkpoints cost, what is shared and given back, what damage does."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.graph import END, START, MessagesState, StateGraph

from memstate_langgraph import (
    AsyncMemoryStore,
    AsyncSQLiteStorage,
    ConflictError,
    DamagedCheckpoint,
    MemoryStore,
    MemStateCheckpointer,
    SQLiteStorage,
    checkpoint_ops as ops,
)
from memstate_langgraph.ops import Plan, reads, writes
from tests.damage import DAMAGES, damage
from tests.models import note
from tests.saver.helpers import META, chat, checkpoint, config, forgetful
from tests.servers import behind_its_back


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


@reads
def _held(thread_id: str, pool: bytes) -> Plan[tuple[set[ops.ValueKey], int]]:
    """Which values a thread has, and how many chunks and pending writes."""
    values = yield from ops.FindValues(thread_id, "")
    chunks = yield from ops.PoolChunks(pool)
    return {row.key for row in values}, len(chunks) + len((yield from ops.FindWrites(thread_id)))


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
    versions = saver.get_tuple(config()).checkpoint["channel_versions"]  # type: ignore[union-attr]
    pool = saver._storage.run(reads(lambda: iter(ops.Pool("t")))())
    assert pool is not None
    held, pieces = saver._storage.run(_held("t", pool))
    assert held <= set(versions.items())
    assert pieces
    app.invoke({"messages": [HumanMessage("and on")]}, config())
    assert len(app.get_state(config()).values["messages"]) == 26
    saver.prune(["t"], strategy="max_age", max_age=timedelta(days=1))
    saver.delete_thread("t")
    saver.delete_thread("other")
    assert list(saver.list(None)) == []
    assert saver._storage.run(_held("t", pool)) == (set(), 0)


def test_a_copy_outlives_its_source(saver: MemStateCheckpointer) -> None:
    app = chat(saver)
    app.invoke({"messages": [HumanMessage("hello" * 50)]}, config())
    values = app.get_state(config()).values
    saver.put_writes(saver.get_tuple(config()).config, [("a", "waits"), ("b", "x" * 5000)], "task")  # type: ignore[union-attr]
    saver.copy_thread("t", "copy")
    saver.delete_thread("t")
    assert app.get_state(config("copy")).values == values
    pending = saver.get_tuple(config("copy")).pending_writes  # type: ignore[union-attr]
    assert pending == [("task", "a", "waits"), ("task", "b", "x" * 5000)]


def test_a_thread_that_has_only_pending_writes_is_copied(saver: MemStateCheckpointer) -> None:
    at: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "1"}}
    saver.put_writes(at, [("a", "waits")], "task")
    saver.copy_thread("t", "copy")
    found = saver._storage.run(reads(lambda: iter(ops.FindWrites("copy")))())
    assert [(row.place.thread_id, row.channel) for row in found] == [("copy", "a")]
    with pytest.raises(ConflictError, match="already has"):
        saver.copy_thread("t", "copy")


@pytest.mark.parametrize("more", [0, 8], ids=["of a few channels", "of many"])
def test_a_thread_that_another_began_anew_goes_on(saver: MemStateCheckpointer, more: int) -> None:
    def put(by: MemStateCheckpointer, values: list[str], version: str) -> None:
        held = {"a": values, **{f"small {i}": i for i in range(more)}}
        versions: ChannelVersions = dict.fromkeys(held, version)
        by.put(config(), checkpoint(held, versions), META, versions)

    another, old = forgetful(saver), [f"{i} " * 500 for i in range(4)]
    put(saver, old, "1")
    another.delete_thread("t")
    put(another, ["new"], "1")
    put(saver, [*old, "more"], "2")
    found = forgetful(saver).get_tuple(config())
    assert found is not None
    assert found.checkpoint["channel_values"]["a"] == [*old, "more"]


def test_a_plan_that_begins_again_reads_what_is_there_by_then(saver: MemStateCheckpointer) -> None:
    work = saver._find_one(config())
    again = checkpoint()
    for values in ({"a": "first"}, {"b": "second"}):
        versions: ChannelVersions = dict.fromkeys(values, "1")
        again = {**again, "channel_values": values, "channel_versions": versions}
        forgetful(saver).put(config(), again, META, versions)
        (found,) = saver._storage.run(work)
        assert {channel: saver._codec.loads(of.kind, of.data) for channel, of in found.values.items()} == values


def _is_newer(other: MemStateCheckpointer, at: RunnableConfig) -> None:
    other.put(at, checkpoint(), META, {})


def _has_writes(other: MemStateCheckpointer, at: RunnableConfig) -> None:
    other.put_writes(at, [("small", 3)], "task")


def _is_stored_again(other: MemStateCheckpointer, at: RunnableConfig, **to: Any) -> None:
    found = other.get_tuple(at)
    assert found is not None
    held = {**found.checkpoint["channel_values"], **to}
    versions = found.checkpoint["channel_versions"]
    new: ChannelVersions = {channel: versions[channel] for channel in to}
    metadata = found.metadata if to else {**found.metadata, "step": 7}
    other.put(found.parent_config or config(), {**found.checkpoint, "channel_values": held}, metadata, new)


def _was_deleted(other: MemStateCheckpointer, at: RunnableConfig) -> None:
    other.delete_thread("t")


@pytest.mark.parametrize(
    "happens",
    [
        _is_newer,
        _has_writes,
        _is_stored_again,
        partial(_is_stored_again, small=3),
        partial(_is_stored_again, text="other " * 500),
        partial(_is_stored_again, empty="not any more"),
        _was_deleted,
    ],
    ids=["newer", "writes", "metadata", "small", "large", "empty", "deleted"],
)
def test_what_another_did_to_the_last_checkpoint_is_seen(
    saver: MemStateCheckpointer, happens: Callable[[MemStateCheckpointer, RunnableConfig], None]
) -> None:
    versions: ChannelVersions = {"small": "1", "text": "1", "empty": "1"}
    saver.put(config(), checkpoint({"small": 2, "text": "long " * 500}, versions), META, versions)
    for reader in (saver, forgetful(saver)):  # one that stored it, and one that read it
        known = reader.get_tuple(config())
        assert known is not None
        assert reader.get_tuple(config()) == known == forgetful(saver).get_tuple(config())
        happens(forgetful(saver), known.config)
        seen = reader.get_tuple(config())
        assert seen == forgetful(saver).get_tuple(config())
        assert seen != known or reader is not saver
        if seen is None:
            break


def _holds(*values: tuple[str, ops.ValueRow]) -> Plan[bool]:
    return (yield from ops.Holds("t", values))


def test_what_is_held_is_held_just_so(saver: MemStateCheckpointer) -> None:
    held = ops.ValueRow(ops.ValueKey("a", "1"), "msgpack", b"pieces"), ops.ValueRow(ops.ValueKey("b", "1"), "", b"")

    @writes
    def save() -> Plan[None]:
        yield from ops.SaveValues("t", "", held)
        yield from ops.SaveValues("t", "inner", held[:1])

    saver._storage.run(save())
    ours = [("", held[0]), ("", held[1]), ("inner", held[0])]
    for asking in (reads(_holds), writes(_holds)):
        assert saver._storage.run(asking(*ours))
    key = held[0].key
    for other in (
        ("inner", held[1]),
        ("", held[0]._replace(pieces=b"others")),
        ("", held[0]._replace(kind="json")),
        ("", held[0]._replace(key=key._replace(version="2"))),
        ("", held[0]._replace(key=key._replace(channel="c"))),
    ):
        for asking in (reads(_holds), writes(_holds)):
            assert not saver._storage.run(asking(*ours, other))


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_an_error_never_a_wrong_state(saver: MemStateCheckpointer, what: str) -> None:
    app = chat(saver)
    app.invoke({"messages": [HumanMessage("hello " * 50)]}, config("broken"))
    damage(saver._storage, "broken", what)
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


@pytest.mark.parametrize("collecting", [True, False])
def test_reading_leaves_the_garbage_collector_as_it_was(collecting: bool, tmp_path: Path) -> None:
    with MemStateCheckpointer.from_conn_string(tmp_path / "state.db") as saver:
        app = chat(saver)
        for i in range(5):
            app.invoke({"messages": [HumanMessage(f"question {i}")]}, config())
        was = gc.isenabled()
        try:
            (gc.enable if collecting else gc.disable)()
            fresh = chat(forgetful(saver))
            fresh.get_state(config())
            assert gc.isenabled() is collecting
            assert len(list(fresh.get_state_history(config()))) == 15
            fresh.invoke({"messages": [HumanMessage("and now?")]}, config())
            assert gc.isenabled() is collecting
        finally:
            (gc.enable if was else gc.disable)()


def test_what_a_reader_changes_no_other_sees(saver: MemStateCheckpointer) -> None:
    chat(saver).invoke({"messages": [HumanMessage("question", id="q", additional_kwargs={"deep": [1]})]}, config())
    readers = forgetful(saver)
    for _ in range(3):  # the first one's was made for it, the others' are copies
        found = readers.get_tuple(config()).checkpoint["channel_values"]["messages"]  # type: ignore[union-attr]
        assert (found[0].content, found[0].additional_kwargs, len(found)) == ("question", {"deep": [1]}, 2)
        found[0].content = "changed"
        found[0].additional_kwargs["deep"].append(2)
        found[0].additional_kwargs["more"] = True
        found.append(HumanMessage("more"))
