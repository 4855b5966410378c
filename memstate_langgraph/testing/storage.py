"""The contract as classes, for pytest to collect where they are subclassed. What they ask is in `contract/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import ClassVar, TypeVar

import pytest

from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.testing.contract import checkpoints, commit, core, past, rollback, transaction
from memstate_langgraph.testing.places import Opener, Place, Unreliable, hook_over, opening

C = TypeVar("C", bound="type[Contract]")


class Contract:
    """Runs its tests on each of `places`: a storage, through one of its doors."""

    places: ClassVar[Sequence[Place]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        asked = metafunc.fixturenames
        if "place" in asked:
            chosen = [
                place
                for place in self.places
                if (place.durable or "reopen" not in asked) and (not place.awaited or "graphs_memory" not in asked)
            ]
            metafunc.parametrize("place", chosen, ids=[place.name for place in chosen])

    @pytest.fixture
    def open_store(self, place: Place, tmp_path: Path) -> Iterator[Opener]:
        yield from opening(place, tmp_path)

    @pytest.fixture
    def reopen(self, open_store: Opener) -> Opener:
        """The same where the place is durable: what one store keeps, the next one finds."""
        return open_store

    @pytest.fixture
    def memory(self, open_store: Opener) -> MemoryStore:
        return open_store()

    @pytest.fixture
    def graphs_memory(self, open_store: Opener) -> MemoryStore:
        """For graphs that are invoked: where the sync door is, with vectors."""
        return open_store(hook_over(Unreliable(), grace=0.0, late=0.0))

    @pytest.fixture
    def vectors(self) -> Unreliable:
        return Unreliable()


def holds(module: ModuleType) -> Callable[[C], C]:
    """Gives a class the tests of a module."""

    def given(contract: C) -> C:
        for name, test in vars(module).items():
            if name.startswith("test_"):
                setattr(contract, name, staticmethod(test))
        return contract

    return given


@holds(core)
class CoreContract(Contract):
    """Facts, constraints, log."""


@holds(commit)
class CommitContract(Contract):
    """Facts and vectors commit together, whatever fails."""


@holds(rollback)
class RollbackContract(Contract):
    """Rollback is exact, vectors included."""


@holds(transaction)
class TransactionContract(Contract):
    """Several changes as one."""


@holds(past)
class PastContract(Contract):
    """The past is read as it was; what a cause did is undone; a thread and its memories are rewound."""


@holds(checkpoints)
class CheckpointContract(Contract):
    """LangGraph's own conformance suite, and what a task writes."""


class StorageContract(
    CoreContract, CommitContract, RollbackContract, TransactionContract, PastContract, CheckpointContract
):
    """All of it."""
