"""Fixtures: a store to test, on every storage and through both doors."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from memstate_langgraph import MemoryStore, flows
from memstate_langgraph.staging import STAGES
from memstate_langgraph.testing.places import Opener as Opener, opening
from tests.models import register
from tests.stores import PLACES, Place, Unreliable, chosen, hook_over

os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")

settings.register_profile(
    "default",
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "unshrunk", settings.get_profile("default"), phases=set(Phase) - {Phase.shrink, Phase.explain}
)
settings.load_profile("default")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chroma's threads do not survive a fork, and a child that counts on them hangs."""
    forking = [item for item in items if item.get_closest_marker("forks")]
    for item in forking:
        item.add_marker(pytest.mark.xdist_group("forks"))  # all in the process that begins with them
    items[:] = [*forking, *(item for item in items if item not in set(forking))]


class Clock:
    """The time that stores are told, in minutes from a start."""

    def __init__(self) -> None:
        self.start = datetime(2030, 1, 1, tzinfo=UTC)
        self.minutes = 0.0

    def __call__(self) -> datetime:
        return self.start + timedelta(minutes=self.minutes)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(flows, "utcnow", clock)
    return clock


@pytest.fixture(params=PLACES, ids=[place.name for place in PLACES])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Makes a store on each of the storages in turn."""
    yield from opening(request.param, tmp_path)


DURABLE = [place for place in PLACES if place.durable]


@pytest.fixture(params=DURABLE, ids=[place.name for place in DURABLE])
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Makes stores that all have the same facts."""
    yield from opening(request.param, tmp_path)


@pytest.fixture
def memory(open_store: Opener) -> MemoryStore:
    return open_store()


@pytest.fixture
def vectors() -> Unreliable:
    return Unreliable()


@pytest.fixture(params=chosen(awaited=False, durable=True), ids=lambda place: place.name)
def durable(request: pytest.FixtureRequest) -> Place:
    """Each storage that can be opened again, through its sync door."""
    place: Place = request.param
    return place


@pytest.fixture
def graphs_memory(durable: Place, tmp_path: Path, vectors: Unreliable) -> Iterator[MemoryStore]:
    """A store for the nodes of graphs, with vectors."""
    with durable.open(tmp_path, [hook_over(vectors, grace=0.0, late=0.0)]) as memory:
        register(memory)
        yield memory
    assert not STAGES.by_thread, "nothing stays on a stage"


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of Chroma's own server."""
    import chromadb

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    folder = tmp_path_factory.mktemp("server")
    command = [str(Path(sys.executable).parent / "chroma"), "run", "--port", str(port), "--path", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        try:
            chromadb.HttpClient(port=port).heartbeat()
            break
        except Exception:
            time.sleep(0.1)
    yield port
    server.terminate()
    server.wait(10)
