"""Storages by URL: the one place that knows which scheme is which backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlencode

from memstate_langgraph.errors import StorageError, ValidationFailed

if TYPE_CHECKING:
    from memstate_langgraph.run import Storage

Opener = Callable[[str, bool], "Storage"]
"""Opens the storage of a URL; with True only one that exists already."""

# Two letters at least: `C:\\state.db` is a path.
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")


def storage_from(url: str, *, must_exist: bool = False) -> Storage:
    """The storage of a URL (`sqlite:///state.db`), or of a bare path, which is a SQLite file.

    `sqlite:///` is followed by the path: relative, or with a fourth slash absolute. `must_exist` raises
    `StorageError` where opening would make a new, empty storage.
    """
    if not url:
        raise ValidationFailed("storage: must be a URL or a path, not empty")
    scheme = _SCHEME.match(url)
    if scheme is None or Path(url).exists():
        return _sqlite_file(url, must_exist)
    opener = OPENERS.get(scheme[1].lower())
    if opener is None:  # the URL may hold a password, so the message repeats its scheme only
        raise ValidationFailed(
            f"storage: no backend for {scheme[1]!r} URLs; known are {', '.join(sorted(OPENERS))}, and bare paths"
        )
    return opener(url, must_exist)


def _sqlite(url: str, must_exist: bool) -> Storage:
    path = re.match(r"sqlite:///(.+)", url, re.IGNORECASE | re.DOTALL)
    if path is None:
        raise ValidationFailed(
            f"storage: {url!r} names no file; write sqlite:///state.db, or for an absolute path sqlite:////data/state.db"
        )
    return _sqlite_file(unquote(path[1]), must_exist)


def _sqlite_file(path: str, must_exist: bool) -> Storage:
    from memstate_langgraph.backends.sqlite import MEMORY, SQLiteStorage

    if must_exist and path != MEMORY and not Path(path).is_file():
        raise StorageError(f"{path}: there is no such file")
    return SQLiteStorage(path)


def _redis(url: str, must_exist: bool) -> Storage:
    """`redis://host:6379/0`, with `?prefix=` for a store under other keys than the usual ones."""
    from memstate_langgraph.backends.redis import RedisStorage

    address, _, options = url.partition("?")
    given = dict(parse_qsl(options, keep_blank_values=True))
    prefix = given.pop("prefix", "memstate")
    if given:
        address += "?" + urlencode(given)
    return RedisStorage.existing(address, prefix=prefix) if must_exist else RedisStorage(address, prefix=prefix)


OPENERS: dict[str, Opener] = {"sqlite": _sqlite, "redis": _redis, "rediss": _redis, "unix": _redis}
"""By scheme. A new backend adds its line here, with an opener that imports its driver when it is called."""
