"""What must hold for any storage, on ours, through both doors. It is stated in `memstate_langgraph.testing`."""

from __future__ import annotations

from memstate_langgraph.testing import (
    CheckpointContract,
    CommitContract,
    CoreContract,
    PastContract,
    RollbackContract,
    TransactionContract,
)
from tests.stores import PLACES


class TestCore(CoreContract):
    places = PLACES


class TestCommit(CommitContract):
    places = PLACES


class TestRollback(RollbackContract):
    places = PLACES


class TestTransaction(TransactionContract):
    places = PLACES


class TestPast(PastContract):
    places = PLACES


class TestCheckpoints(CheckpointContract):
    places = PLACES
