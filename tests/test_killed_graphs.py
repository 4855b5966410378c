"""Graphs that are killed at random moments and resumed remember each step exactly once; `killed_graph.py` says how."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import killed_graph
from tests.killed_graph import DURABILITIES, Durability


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_graph_that_is_killed_and_resumed_remembers_each_step_once(tmp_path: Path, durability: Durability) -> None:
    kills_at_every_stage(tmp_path, durability, 12)


@pytest.mark.long
@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_graph_that_is_killed_and_resumed_for_long(tmp_path: Path, durability: Durability) -> None:
    kills_at_every_stage(tmp_path, durability, 110)


def kills_at_every_stage(folder: Path, durability: Durability, wanted: int) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    clean = killed_graph.in_child(lambda: killed_graph.run(folder, durability, killed_graph.ours, 0))
    assert clean is not None
    assert "error" not in clean, clean
    kills = trials = 0
    while kills < wanted:
        trials += 1
        more, wrong = killed_graph.trial(folder / str(trials), durability, killed_graph.ours, chance, clean["steps"])
        assert wrong is None, f"seed {seed}, trial {trials}, after {more} kills: {wrong}"
        kills += more


def test_direct_writes_beside_another_saver_fail_this(tmp_path: Path) -> None:
    """So the test is known to bite."""
    chance = random.Random(1)
    for i in range(40):
        _, wrong = killed_graph.trial(tmp_path / str(i), "async", killed_graph.theirs, chance, 60)
        if wrong is not None:
            assert "remembered but not in the history" in wrong
            return
    pytest.fail("forty trials, and every memory was right")
