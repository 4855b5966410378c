"""The checkpointer's methods, in what LangGraph's conformance suite does not ask."""

from __future__ import annotations

import asyncio
import copy
import inspect
import threading
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from memstate_langgraph import MemoryStore, MemoryStoreError, MemStateCheckpointer, ValidationFailed
from tests.saver.helpers import META, checkpoint, config, forgetful


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


@pytest.mark.parametrize("times", [1, 1000], ids=["small", "large"])
def test_a_value_stays_as_its_version_said(saver: MemStateCheckpointer, times: int) -> None:
    one, two = "one" * times, "two" * times
    first = saver.put(config(), checkpoint({"a": [1], "b": one}, {"a": "1", "b": "1"}), META, {"a": "1", "b": "1"})
    values = {"a": [1, "changed in place"], "b": two}
    second = saver.put(first, checkpoint(values, {"a": "1", "b": "2"}), META, {"b": "2"})
    assert saver.get_tuple(second).checkpoint["channel_values"] == {"a": [1], "b": two}  # type: ignore[union-attr]
    assert saver.get_tuple(first).checkpoint["channel_values"] == {"a": [1], "b": one}  # type: ignore[union-attr]


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


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_a_message_that_decoding_changes_is_the_same_to_every_reader(saver: MemStateCheckpointer) -> None:
    """A field was set to what validation turns into something else, of the first message of its shape and of others."""
    messages: list[HumanMessage] = []
    for i in range(1, 4):
        messages.append(HumanMessage("hello"))
        messages[-1].id = i  # type: ignore[assignment]  # that is what the test is about
        versions: ChannelVersions = {"messages": str(i)}
        saver.put(config(), checkpoint({"messages": list(messages)}, versions), META, versions)
        for reader in (saver, saver, forgetful(saver)):
            found = reader.get_tuple(config())
            assert found is not None
            assert [message.id for message in found.checkpoint["channel_values"]["messages"]] == ["1", "2", "3"][:i]


def _counted(count: Any) -> dict[str, Any]:
    return {"usage_metadata": {"input_tokens": count, "output_tokens": count, "total_tokens": count}}


def _calling(kind: str) -> dict[str, Any]:
    return {"tool_calls": [{"name": "look", "args": {"a": 1}, "id": "1", "type": kind}]}


def _called(arguments: str) -> dict[str, Any]:
    function = {"name": "look", "arguments": arguments}
    return {"additional_kwargs": {"tool_calls": [{"id": "1", "type": "function", "function": function}]}}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param(_counted(1), _counted("2"), id="type"),
        pytest.param(_calling("tool_call"), _calling("other"), id="named type"),
        pytest.param(_called("[1]"), _called('{"a": 1}'), id="text"),
    ],
)
def test_what_is_in_a_message_is_decoded_as_the_serializer_does(
    saver: MemStateCheckpointer, first: dict[str, Any], second: dict[str, Any]
) -> None:
    """The first comes back as it was; in the second, with the same fields, is what decoding turns into something else,
    by the type of a part, or by what a text says.
    """
    messages = [AIMessage("hello", id="1"), AIMessage("hello", id="2")]
    for message, fields in zip(messages, (first, second), strict=True):
        for name, value in fields.items():
            setattr(message, name, value)
    expected = saver.serde.loads_typed(saver.serde.dumps_typed(messages))
    assert expected[0].model_dump() == messages[0].model_dump()
    assert expected[1].model_dump() != messages[1].model_dump()
    versions: ChannelVersions = {"messages": "1"}
    saver.put(config(), checkpoint({"messages": messages}, versions), META, versions)
    reader = forgetful(saver)
    for _ in range(2):
        found = reader.get_tuple(config())
        assert found is not None
        assert found.checkpoint["channel_values"]["messages"] == expected


def test_what_is_not_a_field_of_a_message_is_stored_when_it_changes(saver: MemStateCheckpointer) -> None:
    messages = [HumanMessage("hello", id="1"), HumanMessage("bye", id="2")]
    for i, mood in enumerate((None, "sad", "happy")):
        assert messages[0].__pydantic_extra__ is not None
        if mood is not None:
            messages[0].__pydantic_extra__["mood"] = mood
        versions: ChannelVersions = {"messages": str(i)}
        saver.put(config(), checkpoint({"messages": messages}, versions), META, versions)
        for reader in (saver, forgetful(saver)):
            found = reader.get_tuple(config())
            assert found is not None
            assert found.checkpoint["channel_values"]["messages"][0].model_dump().get("mood") == mood
