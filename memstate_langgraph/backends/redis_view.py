"""What a plan sees of a Redis store: hashes and sorted sets as they were, and over them what the plan wrote.

Nothing is written while a plan runs. Its changes gather here, its questions are answered through them, and what
is left of them in the end is one list of commands. Reading says which commands to send, and is sent their answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

R = TypeVar("R")

Command = tuple[bytes | str | int, ...]
Asking = Generator[list[Command], list[Any], R]
"""Yields commands to be sent at once, is sent what each answered."""

AT_ONCE = 1000
"""So many arguments go into one command: a script cannot pass on more than some thousands."""


def text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def blob(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def joined(*parts: str) -> bytes:
    """Texts as one name: in the order of the texts, and what they were can be told from it."""
    return "\0".join(parts).encode()


def parted(name: bytes) -> list[str]:
    return name.decode().split("\0")


def packed(commands: Iterable[Command]) -> bytes:
    """Commands for a script, in the part of MessagePack that every server knows: arrays of raw bytes."""
    lists = [_array([_raw(_argument(part)) for part in command]) for command in commands]
    return _array(lists)


def _array(items: list[bytes]) -> bytes:
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def _raw(data: bytes) -> bytes:
    return b"\xdb" + len(data).to_bytes(4, "big") + data


def _argument(part: bytes | str | int) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()


def number(value: float) -> str:
    """A score as Redis reads it, to the last digit."""
    if math.isinf(value):
        return "+inf" if value > 0 else "-inf"
    return str(int(value)) if value == int(value) else repr(value)


@dataclass(frozen=True, slots=True)
class ByScore:
    """Members of a sorted set with scores from `low` to `high`."""

    key: str
    low: float = -math.inf
    high: float = math.inf
    newest: bool = False
    limit: int | None = None

    def holds(self, pair: tuple[float, bytes]) -> bool:
        return self.low <= pair[0] <= self.high

    def arguments(self, limit: int | None) -> Command:
        low, high = number(self.low), number(self.high)
        return (self.key, *_ordered(low, high, "BYSCORE", self.newest), *_cut(limit), "WITHSCORES")

    def answered(self, members: list[bytes]) -> list[tuple[float, bytes]]:
        return [(float(members[i + 1]), members[i]) for i in range(0, len(members), 2)]


@dataclass(frozen=True, slots=True)
class ByName:
    """Members of a sorted set from `low` (or behind it, if `behind`) to below `high`, byte by byte."""

    key: str
    low: bytes = b""
    high: bytes | None = None
    newest: bool = False
    limit: int | None = None
    behind: bool = False

    def holds(self, pair: tuple[float, bytes]) -> bool:
        member = pair[1]
        return (member > self.low if self.behind else member >= self.low) and (self.high is None or member < self.high)

    def arguments(self, limit: int | None) -> Command:
        low = (b"(" if self.behind else b"[") + self.low
        high = b"+" if self.high is None else b"(" + self.high
        return (self.key, *_ordered(low, high, "BYLEX", self.newest), *_cut(limit))

    def answered(self, members: list[bytes]) -> list[tuple[float, bytes]]:
        return [(0.0, member) for member in members]


Range = ByScore | ByName


def _ordered(low: bytes | str, high: bytes | str, by: str, newest: bool) -> Command:
    return (high, low, by, "REV") if newest else (low, high, by)


def _cut(limit: int | None) -> Command:
    return () if limit is None else ("LIMIT", 0, limit)


def beginning(key: str, prefix: bytes, **options: Any) -> ByName:
    """The members that begin with this."""
    return ByName(key, prefix, prefix + b"\xff", **options)  # no byte of UTF-8 is as high


@dataclass(slots=True)
class _Hash:
    read: dict[bytes, bytes | None] = field(default_factory=dict)
    wrote: dict[bytes, bytes | None] = field(default_factory=dict)
    first: dict[bytes, bytes] = field(default_factory=dict)
    """Written only where the store has nothing yet."""
    cleared: bool = False

    def knows(self, name: bytes) -> bool:
        return name in self.wrote or name in self.read or self.cleared

    def get(self, name: bytes) -> bytes | None:
        if name in self.wrote:
            return self.wrote[name]
        held = None if self.cleared else self.read.get(name)
        return self.first.get(name) if held is None else held


@dataclass(slots=True)
class _Index:
    wrote: dict[bytes, float | None] = field(default_factory=dict)
    cleared: bool = False


@dataclass(slots=True)
class View:
    base: str
    """What every key begins with."""
    hashes: dict[str, _Hash] = field(default_factory=dict)
    indexes: dict[str, _Index] = field(default_factory=dict)
    blind: list[Command] = field(default_factory=list)
    """Commands that are right whatever the store holds, and that this plan does not read back."""
    position: int | None = None
    """Of the log, as the store last said."""
    relied: set[str] = field(default_factory=set)
    """Scopes beyond those of the question that its answer turned out to rely on."""

    def key(self, name: str, *parts: str) -> str:
        return self.base + name + (":" + "\0".join(parts) if parts else "")

    def _hash(self, key: str) -> _Hash:
        return self.hashes.setdefault(key, _Hash())

    def _index(self, key: str) -> _Index:
        return self.indexes.setdefault(key, _Index())

    # --- reading

    def fields(self, *wanted: tuple[str, Sequence[bytes]]) -> Asking[list[list[bytes | None]]]:
        """Fields of hashes, all of one instant."""
        asked: list[tuple[str, list[bytes]]] = []
        for key, names in wanted:
            known = self._hash(key)
            unknown = [name for name in dict.fromkeys(names) if not known.knows(name)]
            asked += [(key, unknown[i : i + AT_ONCE]) for i in range(0, len(unknown), AT_ONCE)]
        if asked:
            answers = yield [("HMGET", key, *names) for key, names in asked]
            for (key, names), values in zip(asked, answers, strict=True):
                self._hash(key).read.update(zip(names, values, strict=True))
        return [[self._hash(key).get(name) for name in names] for key, names in wanted]

    def one(self, key: str, name: str) -> Asking[bytes | None]:
        ((value,),) = yield from self.fields((key, [blob(name)]))
        return value

    def everything(self, *keys: str) -> Asking[list[dict[bytes, bytes]]]:
        """Whole hashes, all of one instant."""
        stale = [key for key in keys if not self._hash(key).cleared]
        answers = (yield [("HGETALL", key) for key in stale]) if stale else []
        held: dict[str, dict[bytes, bytes]] = {}
        for key, flat in zip(stale, answers, strict=True):
            held[key] = dict(zip(flat[::2], flat[1::2], strict=True))
        found: list[dict[bytes, bytes]] = []
        for key in keys:
            known = self._hash(key)
            merged: dict[bytes, bytes | None] = {**known.first, **held.get(key, {}), **known.wrote}
            found.append({name: value for name, value in merged.items() if value is not None})
        return found

    def ranges(self, *wanted: Range, rows: str | None = None) -> Asking[list[list[tuple[float, bytes]]]]:
        """Members of sorted sets with their scores, all of one instant, and the rows that a hash has of them."""
        if not wanted:
            return []
        commands: list[Command] = []
        for span in wanted:
            # of as many as we changed, members may turn out to be gone
            limit = None if span.limit is None else span.limit + len(self._index(span.key).wrote)
            commands.append(("ROWS", rows or "", *span.arguments(limit)))
        answers = yield commands
        found: list[list[tuple[float, bytes]]] = []
        for span, (members, values) in zip(wanted, answers, strict=True):
            held = span.answered(members)
            if rows is not None:
                known = self._hash(rows).read
                for (_, member), value in zip(held, values, strict=True):
                    known.setdefault(member, value)
            index = self._index(span.key)
            if index.cleared or index.wrote:
                held = [] if index.cleared else [pair for pair in held if pair[1] not in index.wrote]
                wrote = [(score, member) for member, score in index.wrote.items() if score is not None]
                held += [pair for pair in wrote if span.holds(pair)]
                held.sort(reverse=span.newest)
            found.append(held if span.limit is None else held[: span.limit])
        return found

    def members(self, span: Range) -> Asking[list[bytes]]:
        (found,) = yield from self.ranges(span)
        return [member for _, member in found]

    def rows(self, span: Range, key: str) -> Asking[list[tuple[bytes, bytes]]]:
        """Members of a sorted set with the fields of that name, in order; members without one are left out."""
        (found,) = yield from self.ranges(span, rows=key)
        names = [member for _, member in found]
        (values,) = yield from self.fields((key, names))
        return [(name, value) for name, value in zip(names, values, strict=True) if value is not None]

    def chosen(
        self, span: Range, key: str, fits: Callable[[bytes], R | None], limit: int | None, page: int
    ) -> Asking[list[R]]:
        """What `fits` makes of the rows of a range, in order, until there are enough."""
        found: list[R] = []
        while limit is None or len(found) < limit:
            (members,) = yield from self.ranges(replace(span, limit=page), rows=key)
            (values,) = yield from self.fields((key, [member for _, member in members]))
            found += [made for row in values if row is not None and (made := fits(row)) is not None]
            if len(members) < page:
                break
            span, page = _beyond(span, *members[-1]), min(page * 4, 10 * AT_ONCE)
        return found if limit is None else found[:limit]

    def written(self, key: str, name: bytes) -> bytes | None:
        """What this plan wrote there itself."""
        return self._hash(key).wrote.get(name)

    def remember(self, key: str, name: bytes, value: bytes | None) -> None:
        """What the store was found to hold."""
        self._hash(key).read[name] = value

    def reread(self) -> None:
        """What was read before a scope was relied on need not be what it is under that."""
        for known in self.hashes.values():
            known.read.clear()

    # --- writing

    def put(self, key: str, name: bytes | str, value: bytes) -> None:
        self._hash(key).wrote[blob(name)] = value

    def put_first(self, key: str, name: bytes | str, value: bytes) -> None:
        """Keep what is there already, without asking."""
        known, name = self._hash(key), blob(name)
        if known.cleared or name in known.wrote:
            if known.wrote.get(name) is None:
                known.wrote[name] = value
        else:
            known.first.setdefault(name, value)

    def drop(self, key: str, *names: bytes | str) -> None:
        for name in map(blob, names):
            self._hash(key).wrote[name] = None
            self._hash(key).first.pop(name, None)

    def clear(self, key: str) -> None:
        """Drop a whole hash or sorted set."""
        self.hashes[key] = _Hash(cleared=True)
        self.indexes[key] = _Index(cleared=True)

    def add(self, key: str, member: bytes | str, score: float = 0) -> None:
        self._index(key).wrote[blob(member)] = score

    def remove(self, key: str, *members: bytes | str) -> None:
        self._index(key).wrote.update(dict.fromkeys(map(blob, members)))

    def commands(self) -> Iterator[Command]:
        """What makes the store as this plan sees it; removals first."""
        for key in sorted({*self.hashes, *self.indexes}):
            known, index = self.hashes.get(key, _Hash()), self.indexes.get(key, _Index())
            if known.cleared or index.cleared:
                yield ("DEL", key)
            yield from _parts("HDEL", key, [[name] for name, value in known.wrote.items() if value is None])
            yield from _parts("ZREM", key, [[member] for member, score in index.wrote.items() if score is None])
        for key, known in self.hashes.items():
            yield from _parts("HSET", key, [[name, value] for name, value in known.wrote.items() if value is not None])
            for name, value in known.first.items():
                yield ("HSETNX", key, name, value)
        for key, index in self.indexes.items():
            yield from _parts(
                "ZADD", key, [(number(score), member) for member, score in index.wrote.items() if score is not None]
            )
        yield from self.blind


def _parts(command: str, key: str, groups: Sequence[Sequence[bytes | str]]) -> Iterator[Command]:
    for i in range(0, len(groups), AT_ONCE):
        yield (command, key, *(part for group in groups[i : i + AT_ONCE] for part in group))


def _beyond(span: Range, score: float, member: bytes) -> Range:
    """What is left of a range after one of its members; a score has one member, or paging would miss some."""
    if isinstance(span, ByScore):
        return replace(span, high=score - 1) if span.newest else replace(span, low=score + 1)
    return replace(span, high=member) if span.newest else replace(span, low=member, behind=True)
