"""Graphs that are killed at random moments and resumed remember each step exactly once; `killed_graph.py` says how."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.children import warm
from tests.graphs import DURABILITIES, Durability
from tests.killed_graph import Setting, kill_often, theirs
from tests.stores import SQLITE, Place, chosen, places

pytestmark = pytest.mark.forks


def look(folder: Path, setting: Setting, kills: int) -> None:
    warm()
    assert kill_often(folder, setting, kills, random.randrange(10**9)).problems == []


@pytest.mark.parametrize("durability", DURABILITIES)
@places(awaited=False, durable=True)
def test_a_graph_that_is_killed_and_resumed_remembers_each_step_once(
    tmp_path: Path, place: Place, durability: Durability
) -> None:
    look(tmp_path, Setting(durability, place, awaited=place is not SQLITE), 6)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_vectors_of_a_killed_graph_are_those_of_its_facts(tmp_path: Path, durability: Durability) -> None:
    look(tmp_path, Setting(durability, vectors=True), 3)


@pytest.mark.long
@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("place", chosen(awaited=False, durable=True), ids=lambda place: place.name)
@pytest.mark.parametrize("awaited", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("vectors", [False, True], ids=["facts", "vectors"])
def test_a_graph_that_is_killed_for_long(
    tmp_path: Path, durability: Durability, place: Place, awaited: bool, vectors: bool
) -> None:
    look(tmp_path, Setting(durability, place, awaited=awaited, vectors=vectors), 60)


def test_direct_writes_beside_another_saver_fail_this(tmp_path: Path) -> None:
    """So the test is known to bite."""
    told = kill_often(tmp_path, Setting("async", saver=theirs), 12, seed=1)
    assert told.violations > 0
    assert any("remembered but not in the history" in problem for problem in told.problems)
