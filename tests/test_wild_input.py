"""Ten thousand bad inputs: each is stored as it is or refused by a named error that leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from memstate_langgraph import Constraint, Fact, InMemoryStorage, MemoryStore, MemoryStoreError, MemStateCheckpointer
from tests.models import note, register
from tests.stores import Unreliable, assert_in_step, hook_over
from tests.test_bad_input import Loose, jsonable, plain
from tests.wild import Wild

INPUTS = {"commit": 3000, "update": 1000, "query": 3500, "search": 2000, "put": 1000, "list": 1500}


def store() -> MemoryStore:
    memory = MemoryStore(InMemoryStorage(), [hook_over(Unreliable())])
    register(memory)
    memory.register_schema("loose", Loose, Constraint(singleton_key="key"))
    memory.commit(note("as it was", "known"))
    return memory


class Trace:
    """Whatever a refused call leaves: the end of the log, the facts, the checkpoints."""

    def __init__(self, memory: MemoryStore, saver: MemStateCheckpointer) -> None:
        self.memory, self.saver = memory, saver

    def __call__(self) -> Any:
        (rows,) = self.memory.storage.engine.writer.execute("SELECT count(*) FROM checkpoints")  # type: ignore[attr-defined]
        return self.memory.log(limit=1), rows


def committed(memory: MemoryStore, wild: Wild) -> None:
    typename = wild.dice.choice(["free", "free", "preference", "loose"])
    payload = wild.payload()
    namespace: Any = wild.dice.choice([(), (), ("n",), (wild.text(),)])
    fact_id = memory.commit(
        Fact(type=typename, payload=payload, namespace=namespace), session_id=wild.dice.choice(["s", None])
    )
    stored = memory.get(fact_id)
    assert stored is not None
    if typename == "free":
        assert jsonable(payload)
        assert stored.payload == plain(payload)
    memory.rollback(1)
    assert len(memory.query(limit=3)) <= 2


def updated(memory: MemoryStore, wild: Wild) -> None:
    patch = wild.payload()
    memory.update("known", patch)
    memory.rollback(1)


def queried(memory: MemoryStore, wild: Wild) -> None:
    assert len(memory.query(wild.dice.choice([None, "note"]), filters=wild.filters())) <= 1


def searched(memory: MemoryStore, wild: Wild) -> None:
    query = wild.text() if wild.dice.random() < 0.5 else "anything"
    assert len(memory.search(query, limit=None, filters=wild.filters())) <= 1


def where(wild: Wild) -> Any:
    parts = {"thread_id": "t", "checkpoint_ns": "", "checkpoint_id": "c"}
    for name in wild.dice.sample(sorted(parts), wild.dice.randrange(1, 3)):
        parts[name] = wild.text() if wild.dice.random() < 0.8 else wild.value(4)
    return {"configurable": parts}


def put(saver: MemStateCheckpointer, wild: Wild) -> None:
    config, body = (
        where(wild),
        {"v": 4, "id": "c2", "ts": "", "channel_values": {}, "channel_versions": {}, "versions_seen": {}},
    )
    metadata: Any = {"source": "input", wild.text(): wild.text()}
    stored = saver.put(config, body, metadata, {})  # type: ignore[arg-type]
    found = saver.get_tuple(stored)
    assert found is not None
    assert found.checkpoint["id"] == "c2"
    saver.delete_thread(stored["configurable"]["thread_id"])


def listed(saver: MemStateCheckpointer, wild: Wild) -> None:
    filters: Any = {wild.key(): wild.value(3) for _ in range(wild.dice.randrange(1, 3))}
    config = where(wild) if wild.dice.random() < 0.5 else None
    before = where(wild) if wild.dice.random() < 0.3 else None
    assert list(saver.list(config, filter=filters, before=before, limit=wild.dice.choice([None, 1, 0]))) == []


@pytest.mark.parametrize("kind", INPUTS)
def test_ten_thousand_wild_inputs(kind: str) -> None:
    seed = random.randrange(10**6)
    memory = store()
    saver = MemStateCheckpointer(memory)
    trace = Trace(memory, saver)
    known = memory.get("known")
    calls: dict[str, Callable[[Wild], None]] = {
        "commit": lambda wild: committed(memory, wild),
        "update": lambda wild: updated(memory, wild),
        "query": lambda wild: queried(memory, wild),
        "search": lambda wild: searched(memory, wild),
        "put": lambda wild: put(saver, wild),
        "list": lambda wild: listed(saver, wild),
    }
    refused = 0
    for i in range(INPUTS[kind]):
        before = trace()
        try:
            calls[kind](Wild(seed + i))
        except MemoryStoreError as error:
            refused += bool(str(error))
        except Exception as error:
            raise AssertionError(f"seed {seed + i}: {type(error).__name__} is not a named error") from error
        else:
            continue
        assert trace() == before, f"seed {seed + i}"
    assert 0 < refused < INPUTS[kind], "some are bad and some are not"
    now = memory.get("known")
    assert known is not None
    assert now is not None
    assert now.payload == known.payload
    assert_in_step(memory)


def test_the_inputs_are_ten_thousand() -> None:
    assert sum(INPUTS.values()) >= 10_000
