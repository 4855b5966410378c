"""Test runs that need not import the world: a process that has imported all but our package forks one for each.

What a run finds imported is nobody's of ours, so it tests the copy of the package that it is given, as a process that
was started anew would, some seconds sooner.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ANCESTORS = (
    "aiosqlite", "hypothesis", "langchain.agents", "langchain_chroma", "langgraph.checkpoint.sqlite", "langgraph.func",
    "langgraph.prebuilt", "numpy", "psycopg_pool", "redis.asyncio", "rich.table", "typer",
)  # fmt: skip
OURS = ("memstate_langgraph", "tests")


class Nursery:
    """Ends with the process that made it. Not for several threads.

    A run ends without ceremony: what it should leave behind for nobody is in its folder, and a server that it should
    use is named in `environment`.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )

    def run(self, folder: Path, arguments: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """The exit code of pytest in a folder, None if it took longer, and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        output = folder / "output"
        self._process.stdin.write(json.dumps([str(folder), [*arguments], seconds, str(output)]).encode() + b"\n")
        self._process.stdin.flush()
        code = json.loads(self._process.stdout.readline())
        return code, output.read_text(encoding="utf-8", errors="replace")


def born(folder: str, arguments: list[str], output: str) -> int:
    """The process of one test run."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    printed = os.open(output, os.O_CREAT | os.O_WRONLY)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(folder)
    os.environ["PYTHONPATH"] = folder
    sys.path.insert(0, folder)
    files = Path(folder) / "tmp"
    files.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(files)
    code = 3
    try:
        code = int(pytest.main(arguments))
    finally:
        sys.stdout.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        late = time.monotonic() > deadline
        if found or late:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what it has left running
        if found:
            return os.waitstatus_to_exitcode(status)
        if late:
            os.waitpid(pid, 0)
            return None
        time.sleep(0.02)


def main() -> None:
    sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).parent]
    for name in ANCESTORS:
        importlib.import_module(name)
    assert not [name for name in sys.modules if name.partition(".")[0] in OURS]
    for line in sys.stdin:
        folder, arguments, seconds, output = json.loads(line)
        print(json.dumps(ended(born(folder, arguments, output), seconds)), flush=True)


if __name__ == "__main__":
    main()
