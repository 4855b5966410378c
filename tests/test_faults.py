"""Every operation with a fault at every point of it; `tests/matrix.py` says what must hold.

All kills, but of a rebuild, and a few of the other faults run in `make test`, all of the matrix in `make torture`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.children import warm
from tests.faults import FAULTS
from tests.matrix import DOORS, IN_A_FILE, OF_FILES, OPERATIONS, Matrix
from tests.stores import POSTGRES, REDIS, Place

pytestmark = pytest.mark.forks

ONLY_SYNC = {"interrupt", "late", "locked", "locked for long"}
"""Interrupts end an event loop; the others concern what both doors share."""

PLACES = [IN_A_FILE, POSTGRES, REDIS]

QUICK = {
    ("update", "sync", "late"),
    ("update", "sync", "locked"),
    ("delete", "async", "cancel"),
    ("put", "async", "cancel"),
}
"""What `make test` tries in a file beside kills through the sync door."""

QUICK_ON_SERVERS = {("put", "sync", "kill")}
"""And there; what is seeded anew for each trial takes its time."""


def combinations() -> Iterator[Any]:
    for each in itertools.product(PLACES, OPERATIONS, DOORS, FAULTS):
        if is_possible(*each):
            place, *words = each
            yield pytest.param(*each, marks=[pytest.mark.long] * is_long(*each), id="-".join([place.name, *words]))


def is_possible(place: Place, operation: str, door: str, fault: str) -> bool:
    if place is not IN_A_FILE and fault in OF_FILES:
        return False
    return fault not in ONLY_SYNC if door == "async" else fault != "cancel"


def is_long(place: Place, operation: str, door: str, fault: str) -> bool:
    each = (operation, door, fault)
    if place is not IN_A_FILE:
        return each not in QUICK_ON_SERVERS
    if each == ("rebuild", "sync", "kill"):
        return True  # its points are those of a repair
    return (door, fault) != ("sync", "kill") and each not in QUICK


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Matrix]:
    warm()
    return {place.name: Matrix(tmp_path_factory.mktemp(place.name), place) for place in PLACES}


@pytest.mark.parametrize(("place", "operation", "door", "fault"), list(combinations()))
def test_a_fault_at_every_point(
    place: Place, operation: str, door: str, fault: str, matrices: dict[str, Matrix]
) -> None:
    matrix = matrices[place.name]
    cases = list(matrix.cases(operation, door, fault))
    assert cases or (operation != "transaction" and fault in ONLY_SYNC), "a point is where the fault can happen"
    for case in cases:
        assert matrix.trial(case) == []


def test_the_matrix_has_its_points(matrices: dict[str, Matrix]) -> None:
    """Enough kills, and none of the kinds of points missing."""
    matrix = matrices[IN_A_FILE.name]
    kills = [case for operation in OPERATIONS for case in matrix.cases(operation, "sync", "kill")]
    assert len(kills) >= 300
    labels = {label for operation in OPERATIONS for label in matrix.expected(operation, "sync").labels}
    assert labels >= {
        "before an upsert",
        "in the middle of a batch",
        "after an upsert that was applied",
        "inside, at Intend",
        "inside, at Append",
        "inside, at Activate",
        "inside, before COMMIT",
        "after a write, before it is acknowledged",
        "before a removal",
        "after a removal",
    }
