"""kill -9 at random moments, and histories of four processes; `tests/soak.py` and `tests/histories.py` say how."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from memstate_langgraph import HookError
from tests import histories, soak
from tests.children import in_child, warm
from tests.models import note
from tests.soak import kill_and_look
from tests.stores import POSTGRES, REDIS, SQLITE, Place

pytestmark = pytest.mark.forks


def test_thirty_kills(tmp_path: Path) -> None:
    warm()
    seed = random.randrange(10**6)
    assert kill_and_look(tmp_path, 30, seed) > 30, f"seed {seed}: too little happened to prove anything"


@pytest.mark.long
@pytest.mark.parametrize("place", [SQLITE, POSTGRES, REDIS], ids=lambda place: place.name)
@pytest.mark.parametrize("seed", range(10))
def test_hundreds_of_kills(tmp_path: Path, place: Place, seed: int) -> None:
    kill_and_look(tmp_path, 50, seed, place=place)


@pytest.mark.parametrize("place", [POSTGRES, REDIS], ids=lambda place: place.name)
def test_kills_of_clients_of_a_server(tmp_path: Path, place: Place) -> None:
    warm()
    seed = random.randrange(10**6)
    assert kill_and_look(tmp_path, 5, seed, 1.5, place) > 5, f"seed {seed}: too little happened to prove anything"


@pytest.mark.parametrize("place", [histories.IN_A_HURRY, POSTGRES, REDIS], ids=lambda place: place.name)
@pytest.mark.parametrize("killing", [False, True])
def test_a_history_of_four_processes(tmp_path: Path, place: Place, killing: bool) -> None:
    seed = random.randrange(10**6)
    history = histories.record(tmp_path, seed, killing=killing, place=place)
    assert history.anomalies() == [], f"seed {seed}"
    assert history.acknowledged > 100, f"seed {seed}"


def test_the_checker_finds_what_is_wrong(tmp_path: Path) -> None:
    """A checker that never fails proves nothing: each kind of anomaly, written into a true history."""
    history = histories.record(tmp_path, 1)
    assert history.anomalies() == []
    for damage, name in histories.DAMAGES:
        damaged = history.copy()
        damage(damaged)
        assert any(name in found for found in damaged.anomalies()), name


def test_what_chroma_tore_is_embedded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it writes its index, Chroma cannot open the collection any more."""
    warm()

    def fill() -> None:
        with soak.open_store(SQLITE, tmp_path) as memory:
            for i in range(60):
                memory.commit(note(f"words {i}", f"f{i % 8}"))

    assert in_child(fill) == (0, None)
    (index,) = (tmp_path / "chroma").rglob("index_metadata.pickle")
    index.write_bytes(b"")

    def refused() -> str:
        with soak.open_store(SQLITE, tmp_path) as memory, pytest.raises(HookError) as caught:
            memory.search("words")
        return str(caught.value)

    said = in_child(refused)[1]
    assert f"remove {(tmp_path / 'chroma').resolve()} while no process has it open, and call repair()" in said
    mended: list[Path] = []
    embed_again = soak.embed_again

    def noted(place: Place, folder: Path) -> None:
        mended.append(folder)
        embed_again(place, folder)

    monkeypatch.setattr(soak, "embed_again", noted)
    kill_and_look(tmp_path, 2, seed=7)
    assert mended == [tmp_path]
