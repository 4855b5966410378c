"""Somebody's own backend is held to the contract by subclassing it: here the one of `examples/encrypted.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memstate_langgraph import MemoryStore, StorageBusy
from memstate_langgraph.testing import Place, StorageContract
from tests.models import note
from tests.test_examples import EXAMPLES, run

pytest.importorskip("sqlcipher3", reason="SQLCipher has no wheel for this machine")

from examples.encrypted import AsyncEncryptedStorage, EncryptedStorage

KEY = bytes(range(32))
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}


class TestEncrypted(StorageContract):
    places = (
        Place("sync", lambda folder: EncryptedStorage(folder / "data", KEY), durable=True),
        Place("async", lambda folder: AsyncEncryptedStorage(folder / "data", KEY), durable=True, awaited=True),
    )


def test_what_the_example_shows(tmp_path: Path) -> None:
    lines = run("encrypted.py", tmp_path).splitlines()
    assert lines == [
        "'4711' in the bytes on disk: False",
        "sqlite3 without the key: file is not a database",
        "another key: file is not a database",
        "with the key: the PIN is 4711",
        "verify(): facts, log and vectors: all agree",
    ]


def test_a_busy_file_is_told_as_of_any_sqlite(tmp_path: Path) -> None:
    """Its driver has errors of its own."""
    with MemoryStore(EncryptedStorage(tmp_path / "data", KEY, busy_timeout=0.3)) as memory:
        other = EncryptedStorage(tmp_path / "data", KEY)
        other.engine.writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageBusy):
            memory.commit(note("one"))
        other.close()
        memory.commit(note("one"))


def test_a_key_is_not_shown(tmp_path: Path) -> None:
    storage = EncryptedStorage(tmp_path / "data", KEY)
    assert KEY.hex() not in repr(vars(storage.engine))
    storage.close()


FAULTS = {
    "rollback counts the steps of all sessions": (
        "ops.Steps",
        "lambda op, d: right(replace(op, session_id=None), d)",
    ),
    "a fact that is gone still has its vector": ("ops.Retire", "lambda op, d: iter(())"),
    "the log shows what came before a position": ("ops.ReadLog", "lambda op, d: right(replace(op, after=None), d)"),
    "a task's first write is overwritten": (
        "checkpoint_ops.SaveWrites",
        "lambda op, d: right(replace(op, rows=tuple(row._replace(idx=-1) for row in op.rows)), d)",
    ),
    "a checkpoint is taken for one of another namespace": (
        "checkpoint_ops.FindCheckpoints",
        "lambda op, d: right(replace(op, checkpoint_ns=None), d)",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_notices_a_fault(fault: str, tmp_path: Path) -> None:
    op, wrong = FAULTS[fault]
    (tmp_path / "test_faulty.py").write_text(
        f"""
from dataclasses import replace
from memstate_langgraph import InMemoryStorage, checkpoint_ops, ops
from memstate_langgraph.backends.sql import ANSWERS
from memstate_langgraph.testing import Place, StorageContract

right = ANSWERS[{op}]
ANSWERS[{op}] = {wrong}

class TestFaulty(StorageContract):
    places = (Place("faulty", lambda _: InMemoryStorage()),)
""",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "test_faulty.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 failed" in done.stdout
