"""Random histories of a saver, compared with `InMemorySaver` in everything that can be read.

Two savers share one file, as two processes would, each with what it remembers of the other's past; now and then
one forgets all. Whatever was read is spoiled afterwards: nobody else may notice.
"""

from __future__ import annotations

import copy
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from memstate_langgraph import MemStateCheckpointer
from memstate_langgraph.chunks import Recent
from memstate_langgraph.pristine import Pristine
from tests.stores import POSTGRES, SQLITE

THREADS = ("a", "b", "c")
SPACES = ("", "sub:1")
CHANNELS = ("messages", "table", "note")

texts = st.integers(0, 9).flatmap(lambda i: st.sampled_from([f"{i}", f"word {i} " * 12, f"{i} long text " * 400]))
messages = st.builds(
    lambda kind, text, number: kind(text, number),
    st.sampled_from(
        [
            lambda text, number: HumanMessage(text, id=f"m{number}"),
            lambda text, number: AIMessage(
                text, id=f"m{number}", usage_metadata={"input_tokens": number, "output_tokens": 1, "total_tokens": 2}
            ),
            lambda text, number: AIMessage(
                "", id=f"m{number}", tool_calls=[{"name": "look", "args": {"at": [text]}, "id": f"c{number}"}]
            ),
            lambda text, number: ToolMessage(text, tool_call_id=f"c{number}", artifact={"kept": [number]}),
        ]
    ),
    texts,
    st.integers(0, 99),
)
plain = st.one_of(st.none(), st.integers(-9, 9), texts, st.lists(st.integers(-9, 9), max_size=3))
items = {"messages": messages, "table": plain, "note": plain}


class Model(InMemorySaver):
    """`InMemorySaver` with what it lacks of LangGraph's interface."""

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        self.storage[target_thread_id] = copy.deepcopy(self.storage[source_thread_id])
        tables: tuple[dict[Any, Any], ...] = (self.writes, self.blobs)
        for known in tables:
            for key, value in list(known.items()):
                if key[0] == source_thread_id:
                    known[(target_thread_id, *key[1:])] = copy.deepcopy(value)

    def drop(self, thread: str, space: str, doomed: list[str]) -> None:
        for checkpoint_id in doomed:
            del self.storage[thread][space][checkpoint_id]
            self.writes.pop((thread, space, checkpoint_id), None)

    def keep_last(self, thread: str, count: int) -> None:
        for space, held in self.storage.get(thread, {}).items():
            self.drop(thread, space, sorted(held, reverse=True)[count:])

    def delete_for_runs(self, run_ids: Any) -> None:
        for thread, spaces in self.storage.items():
            for space, held in spaces.items():
                self.drop(
                    thread,
                    space,
                    [i for i, row in held.items() if self.serde.loads_typed(row[1]).get("run_id") in run_ids],
                )


def at(thread: str, space: str, checkpoint_id: str | None = None) -> RunnableConfig:
    chosen = {} if checkpoint_id is None else {"checkpoint_id": checkpoint_id}
    return {"configurable": {"thread_id": thread, "checkpoint_ns": space, **chosen}}


def shown(found: CheckpointTuple | None) -> Any:
    return None if found is None else tuple(found)


def spoil(found: CheckpointTuple | None) -> None:
    """Change everything mutable of what was read."""

    def spoiled(value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                spoiled(item)
            value.append("spoiled")
        elif isinstance(value, dict):
            for item in list(value.values()):
                spoiled(item)
            value["spoiled"] = True
        elif isinstance(value, HumanMessage | AIMessage | ToolMessage):
            spoiled(value.additional_kwargs)
            spoiled(value.__dict__)

    if found is not None:
        spoiled(found.checkpoint["channel_values"])
        for _, _, value in found.pending_writes or ():
            spoiled(value)


class Histories(RuleBasedStateMachine):
    serde: SerializerProtocol | None = None
    place = SQLITE

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model = Model()
        self.savers = [MemStateCheckpointer(self.place.open(self.folder), serde=self.serde) for _ in "ab"]
        self.numbers = itertools.count()
        self.versions: dict[str, int] = {}

    def teardown(self) -> None:
        for saver in self.savers:
            saver.close()
        shutil.rmtree(self.folder)

    # --- what happens

    def known(self, thread: str, space: str) -> list[str]:
        return sorted(self.model.storage.get(thread, {}).get(space, {}))

    def values_of(self, thread: str, space: str, checkpoint_id: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        if checkpoint_id is None:
            return {}, {}
        found = self.model.get_tuple(at(thread, space, checkpoint_id))
        assert found is not None
        return found.checkpoint["channel_values"], found.checkpoint["channel_versions"]

    def edited(self, data: st.DataObject, channel: str, value: Any) -> Any:
        item = items[channel]
        if not isinstance(value, list) or not value:
            return data.draw(st.lists(item, min_size=4, max_size=8))
        how = data.draw(
            st.sampled_from(
                ["append", "append", "append", "edit", "remove", "double", "replace", "insert", "dict", "atom"]
            )
        )
        place = data.draw(st.integers(0, len(value) - 1))
        if how == "append":
            return [*value, data.draw(item)]
        if how == "edit":
            return [*value[:place], data.draw(item), *value[place + 1 :]]
        if how == "insert":
            return [*value[:place], data.draw(item), *value[place:]]
        if how == "remove":
            return value[:place] + value[place + 1 :]
        if how == "double":
            return (value * 2)[:60]
        if how == "dict":
            return {str(i): one for i, one in enumerate(value)}
        return data.draw(item) if how == "atom" else []

    @rule(
        data=st.data(),
        saver=st.integers(0, 1),
        thread=st.sampled_from(THREADS),
        space=st.sampled_from(SPACES),
        changed=st.sets(st.sampled_from(CHANNELS)),
        dropped=st.booleans(),
    )
    def put(self, data: st.DataObject, saver: int, thread: str, space: str, changed: set[str], dropped: bool) -> None:
        known = self.known(thread, space)
        # mostly on the newest, at times a fork, seldom from nothing
        parent = data.draw(st.sampled_from([*known, *known[-1:] * 8, None] if known else [None]))
        values, versions = self.values_of(thread, space, parent)
        for channel in changed:
            if dropped and channel in values:
                del values[channel]
            else:
                values[channel] = self.edited(data, channel, values.get(channel))
        self.store(saver, at(thread, space, parent), values, versions, sorted(changed))

    @rule(
        saver=st.integers(0, 1),
        thread=st.sampled_from(THREADS),
        space=st.sampled_from(SPACES),
        said=st.lists(messages, min_size=1, max_size=5),
    )
    def talk(self, saver: int, thread: str, space: str, said: list[Any]) -> None:
        """A conversation goes on: each message is a pending write, then part of the next checkpoint."""
        for message in said:
            known = self.known(thread, space)
            config = at(thread, space, known[-1] if known else None)
            if known:
                for one in (self.savers[saver], self.model):
                    one.put_writes(config, [("messages", [message])], "talk", "~1")
            values, versions = self.values_of(thread, space, known[-1] if known else None)
            before = values.get("messages")
            values["messages"] = [*(before if isinstance(before, list) else []), message]
            self.store(saver, config, values, versions, ["messages"])

    def store(
        self, saver: int, config: RunnableConfig, values: dict[str, Any], versions: dict[str, Any], changed: list[str]
    ) -> None:
        number, thread = next(self.numbers), config["configurable"]["thread_id"]
        new: ChannelVersions = {}
        for channel in changed:
            # versions begin again after delete_thread, as they do in a new thread
            self.versions[thread] = self.versions.get(thread, 0) + 1
            new[channel] = versions[channel] = f"{self.versions[thread]:06}"
        checkpoint = Checkpoint(
            v=2, id=f"{number:08}", ts="2026-01-01T00:00:00+00:00", channel_values=values, channel_versions=versions,
            versions_seen={"n": dict(versions)}, updated_channels=None,
        )  # fmt: skip
        config["metadata"] = {"run_id": f"r{number % 4}"}
        about: Any = {"source": "loop", "step": number, "parents": {}}
        stored = self.savers[saver].put(config, copy.deepcopy(checkpoint), about, new)
        assert stored == self.model.put(config, copy.deepcopy(checkpoint), about, new)

    @rule(
        data=st.data(),
        saver=st.integers(0, 1),
        thread=st.sampled_from(THREADS),
        space=st.sampled_from(SPACES),
        task=st.sampled_from(["t1", "t2"]),
        path=st.sampled_from(["", "~1", "~2"]),
    )
    def put_writes(self, data: st.DataObject, saver: int, thread: str, space: str, task: str, path: str) -> None:
        known = self.known(thread, space)
        if not known:
            return
        checkpoint_id = data.draw(st.sampled_from(known))
        values, _ = self.values_of(thread, space, checkpoint_id)
        channels = data.draw(st.lists(st.sampled_from([*CHANNELS, "__error__", "__resume__"]), max_size=3, unique=True))
        wrote = [
            (channel, self.edited(data, channel, values.get(channel)) if channel in CHANNELS else data.draw(plain))
            for channel in channels
        ]
        for one in (self.savers[saver], self.model):
            one.put_writes(at(thread, space, checkpoint_id), copy.deepcopy(wrote), task, path)

    @rule(saver=st.integers(0, 1), thread=st.sampled_from(THREADS), count=st.integers(1, 3))
    def prune(self, saver: int, thread: str, count: int) -> None:
        self.savers[saver].prune([thread], strategy="keep_last", keep_last=count)
        self.model.keep_last(thread, count)

    @rule(saver=st.integers(0, 1), thread=st.sampled_from(THREADS))
    def delete_thread(self, saver: int, thread: str) -> None:
        self.savers[saver].delete_thread(thread)
        self.model.delete_thread(thread)
        self.versions.pop(thread, None)

    @rule(saver=st.integers(0, 1), run=st.integers(0, 3))
    def delete_for_runs(self, saver: int, run: int) -> None:
        self.savers[saver].delete_for_runs([f"r{run}"])
        self.model.delete_for_runs([f"r{run}"])

    @rule(saver=st.integers(0, 1), source=st.sampled_from(THREADS), to=st.sampled_from(THREADS))
    def copy_thread(self, saver: int, source: str, to: str) -> None:
        if any(self.known(to, space) for space in SPACES) or not any(self.known(source, s) for s in SPACES):
            return
        self.savers[saver].delete_thread(to)  # of writes that outlived their checkpoints
        self.model.delete_thread(to)
        self.savers[saver].copy_thread(source, to)
        self.model.copy_thread(source, to)
        self.versions[to] = self.versions.get(source, 0)

    @rule(saver=st.integers(0, 1))
    def forget(self, saver: int) -> None:
        """As a new process would."""
        self.savers[saver]._recent = Recent()
        self.savers[saver]._pristine = Pristine()

    # --- what can be read

    @rule(data=st.data(), saver=st.integers(0, 1), thread=st.sampled_from(THREADS), space=st.sampled_from(SPACES))
    def get(self, data: st.DataObject, saver: int, thread: str, space: str) -> None:
        config = at(thread, space, data.draw(st.sampled_from([None, *self.known(thread, space)])))
        for _ in range(3):  # decoded, copied, and copied from what was already spoiled once
            found = self.savers[saver].get_tuple(config)
            assert shown(found) == shown(self.model.get_tuple(config))
            spoil(found)

    @rule(saver=st.integers(0, 1), thread=st.sampled_from(THREADS), space=st.sampled_from([*SPACES, None]))
    def list_all(self, saver: int, thread: str, space: str | None) -> None:
        config: RunnableConfig = {"configurable": {"thread_id": thread}} if space is None else at(thread, space)

        def listed(one: Any) -> list[Any]:
            return sorted(map(shown, one.list(config)), key=lambda found: found[0]["configurable"]["checkpoint_id"])

        assert listed(self.savers[saver]) == listed(self.model)

    @rule(data=st.data(), saver=st.integers(0, 1), thread=st.sampled_from(THREADS), space=st.sampled_from(SPACES))
    def ancestry(self, data: st.DataObject, saver: int, thread: str, space: str) -> None:
        known = self.known(thread, space)
        if not known:
            return
        config = at(thread, space, data.draw(st.sampled_from(known)))
        found = self.savers[saver].get_delta_channel_history(config=config, channels=CHANNELS)
        assert found == self.model.get_delta_channel_history(config=config, channels=CHANNELS)


SMALL = settings(
    max_examples=40, stateful_step_count=50, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)
)


def test_a_saver_reads_as_in_memory() -> None:
    run_state_machine_as_test(Histories, settings=SMALL)


def test_a_saver_on_postgres_reads_as_in_memory() -> None:
    class Served(Histories):
        place = POSTGRES

    run_state_machine_as_test(Served, settings=settings(SMALL, max_examples=15))


def test_an_encrypted_saver_reads_as_in_memory() -> None:
    pytest.importorskip("Crypto")

    class Encrypted(Histories):
        serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")

    run_state_machine_as_test(Encrypted, settings=SMALL)


@pytest.mark.long
def test_a_saver_reads_as_in_memory_for_long() -> None:
    run_state_machine_as_test(Histories, settings=settings(SMALL, max_examples=600, stateful_step_count=60))
