"""The command `memstate` as its users run it: in a shell, and through typer's runner where many cases are tried."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from langchain_chroma import Chroma
from typer.testing import CliRunner

from memstate_langgraph import LocalEmbeddings, MemoryStore, SQLiteStorage, VectorStoreSyncHook
from memstate_langgraph.cli.app import app

VECTORS = ["--chroma", "chroma", "--collection", "memory", "--text-field", "content"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}


def store(*, vectors: bool = False) -> MemoryStore:
    hooks = [hook()] if vectors else []
    return MemoryStore(SQLiteStorage("state.db"), hooks)


def chroma(collection: str = "memory") -> Chroma:
    return Chroma(collection, LocalEmbeddings(), persist_directory=str(Path("chroma").resolve()))


def hook() -> VectorStoreSyncHook:
    return VectorStoreSyncHook(chroma(), text_field="content")


def run(*arguments: str, code: int = 0, answer: str | None = None) -> Any:
    result = CliRunner().invoke(app, list(arguments), input=answer)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def as_json(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


def python(*arguments: str, more: Mapping[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """A process of its own, with `more` in its environment."""
    command, environment = [sys.executable, *arguments], {**ENVIRONMENT, **(more or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)


def shell(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    return python("-m", "memstate_langgraph.cli", *arguments, **options)
