"""One process per folder, for embedded vector stores that several processes would damage."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from weakref import WeakValueDictionary

from filelock import BaseFileLock, FileLock, Timeout

from memstate_langgraph.errors import VectorStoreInUse

logger = logging.getLogger("memstate_langgraph")

LOCK_FILE = "memstate.lock"

_held: WeakValueDictionary[Path, BaseFileLock] = WeakValueDictionary()
_holding = threading.Lock()


def hold(folder: Path) -> BaseFileLock | None:
    """Keep other processes out of a folder for as long as the answer, or an equal one, is referred to.

    The operating system lets go when the process ends, however it ends. A forked child is another process.
    """
    with _holding:
        lock = _held.get(folder)
        if lock is not None and lock.is_locked:  # a forked child inherits the entry, not the lock
            return lock
        lock = FileLock(folder / LOCK_FILE, blocking=False, thread_local=False)
        try:
            lock.acquire()
        except Timeout as error:
            raise VectorStoreInUse(
                f"{folder}: another process uses this Chroma folder, and Chroma's PersistentClient is for one "
                f"process; run `chroma run --path {folder}` and pass chromadb.HttpClient() in each of them"
            ) from error
        except (OSError, NotImplementedError) as error:
            # a file system without locks is no reason to refuse the work of the one process that is there
            logger.warning("%s: cannot be locked against a second process (%s)", folder, error)
            return None
        _held[folder] = lock
        return lock
