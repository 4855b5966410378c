"""`memstate` as a process: pipes, signals, terminals, faults."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

from memstate_langgraph import Fact
from tests.command.helpers import ENVIRONMENT, VECTORS, python, shell, store


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    with store(vectors=True) as memory:
        memory.commit_many([Fact(type="log", payload={"n": "x" * 20_000}) for _ in range(300)])
    process = subprocess.Popen(
        [sys.executable, "-m", "memstate_langgraph.cli", "query", "state.db", "--json"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"[\n"
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")
    process.stderr.close()


def test_a_broken_pipe_is_no_error_wherever_it_shows(folder: Path) -> None:
    """Raised by hand, since not every system tells a writer that its reader has gone."""
    Path("broken.py").write_text(
        "from memstate_langgraph.cli import main, reading\n\ndef gone(_):\n    raise BrokenPipeError\n\n"
        "reading.print_json = gone\nimport sys; sys.argv = ['memstate', 'query', 'state.db', '--json']; main()\n",
        encoding="utf-8",
    )
    done = python("broken.py", cwd=folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_interrupt_ends_with_130(folder: Path) -> None:
    Path("slow.py").write_text(
        "import signal, os, time\nfrom tests.command.helpers import hook as make\n\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it\n\n"
        "def search(*_):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(9)\n\n"
        "def hook():\n    made = make()\n    made.search = search\n    return made\n",
        encoding="utf-8",
    )
    done = shell("search", "state.db", "dinner", "--hook", "slow:hook", cwd=folder)
    assert done.returncode == 130, (done.stdout, done.stderr)
    assert "interrupted" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_another_process_has_open_is_told(folder: Path) -> None:
    with store(vectors=True):
        done = shell("search", "state.db", "dinner", *VECTORS, cwd=folder)
    assert done.returncode == 4
    assert done.stderr.startswith("memstate: ")
    assert len(done.stderr.splitlines()) == 1


def test_looking_loads_no_vector_store(folder: Path) -> None:
    code = "import sys\nfrom memstate_langgraph.cli.app import app\napp(['log', 'state.db'], standalone_mode=False)\n"
    code += "assert 'chromadb' not in sys.modules and 'langchain_chroma' not in sys.modules\n"
    done = python("-c", code, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_a_fault_of_ours_has_an_exit_code_of_its_own(folder: Path) -> None:
    Path("faulty.py").write_text(
        "from memstate_langgraph.cli import main, reading\nreading.opened = None\n"
        "import sys; sys.argv = ['memstate', 'log', 'state.db']; main()\n",
        encoding="utf-8",
    )
    done = python("faulty.py", cwd=folder)
    assert done.returncode == 70
    assert "TypeError" in done.stderr


def test_a_terminal_gets_colours(folder: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "memstate_langgraph.cli", "log", "state.db"],
        stdout=theirs,
        env={**ENVIRONMENT, "TERM": "xterm-256color"},
    )
    assert done.wait(60) == 0
    os.set_blocking(ours, False)
    assert b"\x1b[33mUPDATE" in os.read(ours, 100_000)
    os.close(ours)
    os.close(theirs)


def test_the_shell_completes_commands(folder: Path) -> None:
    asked = {"_MEMSTATE_COMPLETE": "complete_bash", "COMP_WORDS": "memstate rol", "COMP_CWORD": "1"}
    done = shell(more=asked)
    assert done.stdout.split() == ["rollback"]
