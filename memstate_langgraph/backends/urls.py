"""Storages by URL: the one place that knows which scheme is which backend."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote

from memstate_langgraph.errors import StorageError, ValidationFailed

if TYPE_CHECKING:
    from memstate_langgraph.run import Storage

Opener = Callable[[str, bool], "Storage"]
"""Opens the storage of a URL; with True only one that exists already."""

# Two letters at least: `C:\\state.db` is a path.
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")


def storage_from(url: str | Path, *, must_exist: bool = False) -> Storage:
    """The storage of a URL (`sqlite:///state.db`), or of a bare path, which is a SQLite file.

    `sqlite:///` is followed by the path: relative, or with a fourth slash absolute. `postgresql://` is PostgreSQL's
    own URL, which may also name the `schema` and `prefix` of the tables: `postgresql://host/db?schema=memstate`; in
    Redis's (`redis://`, `rediss://`, `unix://`) it is the `prefix` of the keys.
    `must_exist` raises `StorageError` where opening would make a new, empty storage.
    """
    if not isinstance(cast("object", url), str | Path) or not str(url):
        raise ValidationFailed(f"storage: must be a URL or a path, not {url!r}")
    url = str(url)
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


def _postgres(url: str, must_exist: bool) -> Storage:
    try:
        from memstate_langgraph.backends.postgres import PostgresStorage
    except ImportError as error:
        raise _needs("postgres", "PostgreSQL", error) from error
    server, ours = _parted(url, "schema", "prefix")
    return PostgresStorage(server, must_exist=must_exist, **ours)


def _redis(url: str, must_exist: bool) -> Storage:
    try:
        from memstate_langgraph.backends.redis import RedisStorage
    except ImportError as error:
        raise _needs("redis", "Redis", error) from error
    server, ours = _parted(url, "prefix")
    return RedisStorage(server, must_exist=must_exist, **ours)


def _needs(extra: str, name: str, error: ImportError) -> StorageError:
    return StorageError(f"storage: {name} needs the extra {extra} ({error}): pip install 'memstate-langgraph[{extra}]'")


def _parted(url: str, *names: str) -> tuple[str, dict[str, Any]]:
    """A URL without those of its parameters that are ours and not the driver's, and these."""
    server, _, query = url.partition("?")
    parts = [part.partition("=") for part in query.split("&") if part]
    ours = {name: unquote(value) for name, _, value in parts if name in names}
    theirs = "&".join("".join(part) for part in parts if part[0] not in ours)
    return f"{server}?{theirs}" if theirs else server, ours


OPENERS: dict[str, Opener] = {
    "postgres": _postgres,
    "postgresql": _postgres,
    "redis": _redis,
    "rediss": _redis,
    "sqlite": _sqlite,
    "unix": _redis,
}
"""By scheme. A new backend adds its line here, with an opener that imports its driver when it is called."""
