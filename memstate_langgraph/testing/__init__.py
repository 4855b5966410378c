"""Hold a storage of your own to the contract that ours are held to: subclass `StorageContract` in a test module.

    class TestMine(StorageContract):
        places = (Place("mine", lambda folder: MyStorage(folder / "data"), durable=True),)

It needs the extra `testing`.
"""

from __future__ import annotations

try:
    import pytest
except ImportError as error:
    raise ImportError(
        f"memstate_langgraph.testing needs pytest ({error}): install memstate-langgraph with its extra 'testing'"
    ) from error

pytest.register_assert_rewrite("memstate_langgraph.testing.places", "memstate_langgraph.testing.contract")

from memstate_langgraph.testing.places import Opener, Place  # noqa: E402 -- after what makes its asserts talk
from memstate_langgraph.testing.storage import (  # noqa: E402
    CheckpointContract,
    CommitContract,
    Contract,
    CoreContract,
    PastContract,
    RollbackContract,
    StorageContract,
    TransactionContract,
)

__all__ = [
    "CheckpointContract",
    "CommitContract",
    "Contract",
    "CoreContract",
    "Opener",
    "PastContract",
    "Place",
    "RollbackContract",
    "StorageContract",
    "TransactionContract",
]
