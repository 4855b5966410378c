"""Work in forked processes, which may die.

A child costs a few milliseconds because its parent has imported everything already; threads and locks of the
vector store stay out of the parent, which never opens one.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import traceback
from collections.abc import Callable
from typing import IO, Any

Say = Callable[[Any], None]

PATIENCE = 120
"""Seconds after which what a test waits for is taken to hang; a child ends by a signal."""


def warm() -> None:
    """Import what Chroma imports at its first use, so that no child has to."""
    import langchain_chroma  # noqa: F401

    gc.collect()
    gc.freeze()


def fork(job: Callable[[Say], None]) -> tuple[int, IO[bytes]]:
    """Start a child that speaks in lines of JSON; its process id and what it says."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        os.close(reader)

        def say(what: Any) -> None:
            os.write(writer, json.dumps(what).encode() + b"\n")

        try:
            job(say)
        except BaseException:
            say({"error": traceback.format_exc()})
        os._exit(0)
    os.close(writer)
    return pid, os.fdopen(reader, "rb")


def in_child(job: Callable[[], Any]) -> tuple[int, Any]:
    """Run a job in a child; the signal that ended it or 0, and its answer."""
    pid, pipe = fork(lambda say: say(job()))
    with pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, json.loads(text) if text else None
