"""Several workers on one Redis: what they rely on, and whose turn it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memstate_langgraph import (
    MemoryStore,
    MemStateCheckpointer,
    StorageBusy,
)
from memstate_langgraph.backends.redis_engine import FEW, READS_BEFORE_TURN, Exchange
from memstate_langgraph.checkpoint_ops import (
    CheckpointRow,
    FindCheckpoints,
    JoinPool,
    Place,
    Pool,
    SaveCheckpoint,
    SaveWrites,
    WriteRow,
)
from memstate_langgraph.ops import Count, LastSeq, Plan, Work, reads, writes
from tests.models import note
from tests.redis.helpers import commits, open_store
from tests.servers import schema_of
from tests.stores import assert_in_step
from tests.wire import spy
from tests.workers import ask, wait_until


def test_a_reading_plan_sees_one_state(memory: MemoryStore) -> None:
    seen: list[int] = []

    def plan() -> Plan[tuple[int, int]]:
        seen.append((yield from LastSeq()))
        if len(seen) == 1:
            memory.commit(note("in between"))
        return seen[-1], (yield from Count()).entries

    assert memory.storage.run(Work(plan, write=False)) == (1, 1)
    assert seen == [0, 1]


def test_a_writing_plan_that_was_overtaken_begins_again(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    seen: list[bytes | None] = []

    def join(pool: bytes, before: Callable[[], None]) -> Plan[None]:
        held = yield from Pool("t")
        before()
        if held is None:
            yield from JoinPool("t", pool)

    def overtaken() -> None:
        seen.append(storage.run(reads(lambda: iter(Pool("t")))()))
        if len(seen) == 1:
            storage.run(writes(join)(b"theirs", lambda: None))

    storage.run(writes(join)(b"ours", overtaken))
    assert seen == [None, b"theirs"]


def test_a_plan_over_many_threads_sees_one_state(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    attempts: list[int] = []

    def join(thread: str) -> Plan[None]:
        yield from JoinPool(thread, b"pool")

    def plan() -> Plan[list[bytes | None]]:
        attempts.append(0)
        found = []
        for i in range(2 * FEW):
            if len(attempts) == 1 and i == 2 * FEW - 1:
                storage.run(writes(join)("t 0"))
            found.append((yield from Pool(f"t {i}")))
        return found

    assert storage.run(Work(plan, write=False)) == [b"pool"] + [None] * (2 * FEW - 1)
    assert len(attempts) == 2


def test_what_was_read_in_passing_is_read_anew_when_it_matters(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    row = CheckpointRow(Place("t", "", "1"), None, None, "kind", b"", "kind", b"")

    def plan() -> Plan[int]:
        yield from SaveCheckpoint(row)  # takes note of the log's position, and does not rely on it
        memory.commit(note("in between"))
        return 1 + (yield from LastSeq())

    assert storage.run(Work(plan, write=True)) == 2
    assert storage.run(Work(lambda: iter(FindCheckpoints("t")), write=False))[0].position == 0


def test_a_checkpoint_is_stored_by_who_sees_what_came_before_it(memory: MemoryStore) -> None:
    """What waits for a checkpoint is looked for after it was stored, so nobody may store a result unseen."""
    storage: Any = memory.storage
    row = CheckpointRow(Place("t", "", "1"), None, None, "kind", b"", "kind", b"", position=0)
    result = WriteRow(Place("t", "", "1"), "task", 0, "", "channel", "kind", b"")
    looked: list[int] = []

    def save() -> Plan[None]:
        yield from SaveWrites((result,))

    def plan() -> Plan[None]:
        yield from SaveCheckpoint(row)
        looked.append(len(results))
        if not results:
            storage.run(writes(save)())
            results.append(result)

    results: list[WriteRow] = []
    storage.run(Work(plan, write=True))
    assert looked == [0, 1]


def test_the_threads_of_a_list_are_relied_on(memory: MemoryStore) -> None:
    storage: Any = memory.storage
    saver = MemStateCheckpointer(memory=memory)
    ask(saver, "t", "hello")
    listed: list[int] = []

    def plan() -> Plan[bytes | None]:
        listed.append(len((yield from FindCheckpoints())))
        if len(listed) == 1:
            saver.delete_thread("t")
        return (yield from Pool("t"))

    assert storage.run(Work(plan, write=False)) is None
    assert listed == [2, 0], "never a checkpoint without what belongs to it"


def test_a_turn_taken_before_the_commit_holds_it_up(
    memory: MemoryStore, tmp_path: Path, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = f"{{{schema_of(tmp_path)}}}:turn:log"
    refused = 0

    def around(storage: Any, step: Exchange, go: Any) -> Any:
        nonlocal refused
        if commits(memory, step) and not refused:
            refused += 1
            admin.set(turn, "somebody else", px=200)
            answers = go()
            assert answers[-1][0] == b"taken"
            return answers
        return go()

    memory.commit(note("before"))  # now the server knows our scripts
    spy(memory, monkeypatch, around)
    memory.commit(note("x"))
    assert refused == 1
    assert admin.get(turn) is None
    assert len(memory.log()) == 2


def test_who_has_the_turn_goes_first(url: str, tmp_path: Path, admin: Any) -> None:
    turn = f"{{{schema_of(tmp_path)}}}:turn:log"
    with open_store(url, tmp_path, busy_timeout=0.4) as memory:
        admin.set(turn, "somebody else", px=200)
        memory.commit(note("after the turn had expired"))
        assert admin.get(turn) is None
        admin.set(turn, "somebody else", px=60_000)
        with pytest.raises(StorageBusy, match="nothing was written"):
            memory.commit(note("refused"))
        assert len(memory.query()) == 1, "readers do not wait"
        saver = MemStateCheckpointer(memory=memory)
        assert "__interrupt__" in ask(saver, "t", "hello"), "nor who changes something else"
        admin.delete(turn)
        memory.commit(note("x"))
        assert len(memory.log()) == 2


def test_a_long_reading_ends_while_others_write(url: str, tmp_path: Path) -> None:
    attempts: list[int] = []
    with open_store(url, tmp_path) as memory, open_store(url, tmp_path) as other:

        def plan() -> Plan[int]:
            attempts.append(0)
            for _ in range(20):
                yield from LastSeq()
                if len(attempts) < 3 * READS_BEFORE_TURN:
                    thread = threading.Thread(target=other.commit, args=(note("x"),))
                    thread.start()
                    thread.join(0.02)
                last = (yield from Count()).entries
            return last

        assert memory.storage.run(Work(plan, write=False)) > READS_BEFORE_TURN
        assert len(attempts) == READS_BEFORE_TURN + 2, "the last one had the turn"
        wait_until(lambda: len(other.query()) == READS_BEFORE_TURN + 1 + 20)
        assert_in_step(other)
