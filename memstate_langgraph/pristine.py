"""Decoding that costs what changed: values decoded before are copied, not decoded again.

What is kept never leaves: every reader gets a copy of its own, so no two runs share a mutable object. Only values
made of plain containers and LangChain's messages are kept, because how to copy those exactly is known; everything
else is decoded each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from memstate_langgraph.chunks import Spot

_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})
_MESSAGES = frozenset({AIMessage, AIMessageChunk, HumanMessage, HumanMessageChunk, SystemMessage, ToolMessage})


class Uncopyable(Exception):
    """The value holds something that only decoding makes right."""


def copied(value: Any) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is dict:
        return {key if type(key) in _ATOMS else _refuse(key): copied(item) for key, item in value.items()}
    if kind is list:
        return [copied(item) for item in value]
    if kind in _MESSAGES:
        return _copied_message(value)
    return _refuse(value)


def _refuse(value: Any) -> Any:
    raise Uncopyable(type(value).__name__)


def _copied_message(message: BaseMessage) -> BaseMessage:
    made = object.__new__(type(message))
    fields = message.__dict__.copy()
    for name, value in message.__dict__.items():
        kind = type(value)
        if kind not in _ATOMS:
            # most containers of a message are empty, and this is the place where a long chat spends its time
            fields[name] = copied(value) if value or (kind is not dict and kind is not list) else kind()
    object.__setattr__(made, "__dict__", fields)
    object.__setattr__(made, "__pydantic_fields_set__", set(message.__pydantic_fields_set__))
    extra, private = message.__pydantic_extra__, message.__pydantic_private__
    object.__setattr__(made, "__pydantic_extra__", None if extra is None else copied(extra))
    object.__setattr__(made, "__pydantic_private__", None if private is None else copied(private))
    return made


@dataclass(frozen=True, slots=True)
class _Kept:
    serde: SerializerProtocol
    body: bytes
    items: list[Any]


class Pristine:
    """The decoded items of lists read lately, by channel, bounded in bytes. Safe from several threads."""

    def __init__(self, bound: int = 32 * 1024 * 1024) -> None:
        self._bound = bound
        self._size = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Spot, _Kept] = OrderedDict()

    def loads(
        self, spot: Spot, serde: SerializerProtocol, loads: Callable[[bytes], Any], kind: str, data: bytes
    ) -> Any:
        """What `loads(data)` gives; items whose bytes were decoded before are copied."""
        count, start = _array(data) if kind == "msgpack" else (0, 0)
        if count < 4:
            return loads(data)
        body = data[start:]
        with self._lock:
            kept = self._kept.get(spot)
        items: list[Any] | None = None
        if kept is not None and kept.serde is serde:
            if kept.body.startswith(body):  # an earlier version: the first of the items we have
                return copied(kept.items[:count])
            if body.startswith(kept.body):  # a later one: decode what was appended
                new = count - len(kept.items)
                items = kept.items + loads(_header(new) + body[len(kept.body) :])
        if items is None or len(items) != count:
            items = loads(data)
        try:
            handed_out = copied(items)
        except Uncopyable:
            return items
        self._keep(spot, _Kept(serde, body, items))
        return handed_out

    def _keep(self, spot: Spot, kept: _Kept) -> None:
        with self._lock:
            known = self._kept.pop(spot, None)
            self._size += len(kept.body) - (len(known.body) if known else 0)
            self._kept[spot] = kept
            while self._size > self._bound and self._kept:
                _, dropped = self._kept.popitem(last=False)
                self._size -= len(dropped.body)


def _array(data: bytes) -> tuple[int, int]:
    """How many items a msgpack array has and where they begin; (0, 0) if it is something else."""
    if not data:
        return 0, 0
    first = data[0]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, 1
    if first == 0xDC:
        return int.from_bytes(data[1:3]), 3
    if first == 0xDD:
        return int.from_bytes(data[1:5]), 5
    return 0, 0


def _header(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4)
