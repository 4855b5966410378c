"""Every operation with a fault at every point of it; `tests/matrix.py` says what must hold.

All kills, but of a rebuild, and a few of the other faults run in `make test`, all of the matrix in `make torture`.
"""

from __future__ import annotations

import itertools

import pytest

from tests.children import warm
from tests.faults import FAULTS
from tests.matrix import DOORS, OPERATIONS, Matrix

pytestmark = pytest.mark.forks

ONLY_SYNC = {"interrupt", "late", "locked", "locked for long"}
"""Interrupts end an event loop; the others concern what both doors share."""

QUICK = {
    ("update", "sync", "late"),
    ("update", "sync", "locked"),
    ("delete", "async", "cancel"),
    ("put", "async", "cancel"),
}
"""What `make test` tries beside kills through the sync door."""


def combinations() -> list[tuple[str, str, str]]:
    return [
        (operation, door, fault)
        for operation, door, fault in itertools.product(OPERATIONS, DOORS, FAULTS)
        if not (door == "async" and fault in ONLY_SYNC) and not (door == "sync" and fault == "cancel")
    ]


def is_long(operation: str, door: str, fault: str) -> bool:
    if (operation, door, fault) == ("rebuild", "sync", "kill"):
        return True  # its points are those of a repair
    return (door, fault) != ("sync", "kill") and (operation, door, fault) not in QUICK


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    warm()
    return Matrix(tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize(
    ("operation", "door", "fault"),
    [pytest.param(*each, marks=pytest.mark.long if is_long(*each) else ()) for each in combinations()],
)
def test_a_fault_at_every_point(operation: str, door: str, fault: str, matrix: Matrix) -> None:
    cases = list(matrix.cases(operation, door, fault))
    assert cases or (operation != "transaction" and fault in ONLY_SYNC), "a point is where the fault can happen"
    for case in cases:
        assert matrix.trial(case) == []


def test_the_matrix_has_its_points(matrix: Matrix) -> None:
    """Enough kills, and none of the kinds of points missing."""
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
