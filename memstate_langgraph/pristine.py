"""Decoding that costs what changed: values are kept frozen, and thawed for each reader.

What is kept never leaves, so no two runs share a mutable object. Frozen is what can be copied exactly and
cheaply: plain containers, and LangChain's messages as their fields.

A serializer decodes a message by calling its class, which validates what was valid when it was stored; that is
most of what reading a long chat costs. So the first message of each shape (class, names and types of its fields
at any depth) is decoded both ways; if both are the same, later ones of that shape are only put together. All
else is left to the serializer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import ormsgpack
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
from langgraph.checkpoint.serde.jsonplus import EXT_PYDANTIC_V2, JsonPlusSerializer

from memstate_langgraph.chunks import Spot

_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})
_MESSAGES = {
    (kind.__module__, kind.__name__): kind
    for kind in (AIMessage, AIMessageChunk, HumanMessage, HumanMessageChunk, SystemMessage, ToolMessage)
}
_KINDS = frozenset(_MESSAGES.values())
_MOST_SHAPES = 1000
"""Arguments of tools may have ever new shapes; beyond this many, new ones go to the serializer."""
_SHORTEST = 64
"""Bytes below which a value is not worth keeping."""

_UNKNOWN: list[str] = []
_set = object.__setattr__
_new = object.__new__


class Unfreezable(Exception):
    """The value holds something that only decoding makes right."""


# --- frozen values


class Frozen:
    """A message as its fields."""

    __slots__ = ("containers", "extra", "fields", "kind")

    def __init__(
        self, kind: type[BaseMessage], fields: dict[str, Any], extra: dict[str, Any] | None, containers: list[str]
    ) -> None:
        self.kind, self.fields, self.extra, self.containers = kind, fields, extra, containers

    def thaw(self) -> BaseMessage:
        fields = self.fields.copy()
        for name in self.containers:
            value = fields[name]
            fields[name] = thawed(value) if value else value.copy()  # most containers of a message are empty
        message: BaseMessage = _new(self.kind)
        _set(message, "__dict__", fields)
        _set(message, "__pydantic_fields_set__", set(fields))
        _set(message, "__pydantic_extra__", None if self.extra is None else thawed(self.extra))
        _set(message, "__pydantic_private__", None)
        return message


def _containers(fields: dict[str, Any]) -> list[str]:
    return [name for name, value in fields.items() if type(value) not in _ATOMS]


def thawed(value: Any) -> Any:
    """A copy of a frozen value as its readers know it."""
    kind = type(value)
    if kind is Frozen:
        return value.thaw()
    if kind is list:
        return [item.thaw() if type(item) is Frozen else thawed(item) for item in value]
    if kind is dict:
        return {key: item if type(item) in _ATOMS else thawed(item) for key, item in value.items()}
    return value


def frozen(value: Any) -> Any:
    """The value, made of nothing but what `thawed` copies exactly; raises `Unfreezable`."""
    kind = type(value)
    if kind in _ATOMS or kind is Frozen:
        return value
    if kind is dict and _ATOMS.issuperset(map(type, value)):
        return {key: frozen(item) for key, item in value.items()}
    if kind is list:
        return [frozen(item) for item in value]
    if kind in _KINDS and value.__pydantic_private__ is None and value.__pydantic_fields_set__ == value.__dict__.keys():
        fields = frozen(value.__dict__)
        return Frozen(kind, fields, frozen(value.__pydantic_extra__), _containers(fields))
    raise Unfreezable(kind.__name__)


# --- decoding to frozen values


def _shape(value: Any) -> Any:
    """What of a decoded value may decide how a message is validated: everything but the atoms' values."""
    kind = type(value)
    if kind is dict:
        return (kind, *((key, _shape(item)) for key, item in value.items()))
    if kind is list:
        return (kind, *map(_shape, value))
    return kind


class Thawer:
    """Decodes what one serializer encoded to frozen values. Safe from several threads."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self._serde = serde
        self._shapes: dict[Any, list[str] | None] = {}  # the fields that hold containers, where building is right

    def decode(self, data: bytes) -> Any:
        return ormsgpack.unpackb(data, ext_hook=self._ext, option=ormsgpack.OPT_NON_STR_KEYS)

    def _ext(self, code: int, data: bytes) -> Any:
        if code == EXT_PYDANTIC_V2:
            try:
                # what an extension within it holds is nobody's atom or container, so its shape is unknown here
                module, name, fields, _ = ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS)
            except (ValueError, TypeError):
                return self._by_serializer(code, data)
            if (module, name) in _MESSAGES and isinstance(fields, dict):
                return self._message(module, name, fields, data)
        return self._by_serializer(code, data)

    def _message(self, module: str, name: str, fields: dict[str, Any], data: bytes) -> Any:
        deep = [(key, _shape(value)) for key, value in fields.items() if value and type(value) not in _ATOMS]
        shape = (module, name, *fields, *map(type, fields.values()), *deep)
        containers = self._shapes.get(shape, _UNKNOWN)
        if containers is None or "tool_calls" in (fields.get("additional_kwargs") or ()):  # AIMessage reads those
            return self._by_serializer(EXT_PYDANTIC_V2, data)
        if containers is not _UNKNOWN:
            return Frozen(_MESSAGES[module, name], fields, {}, containers)
        decoded = self._by_serializer(EXT_PYDANTIC_V2, data)
        if len(self._shapes) < _MOST_SHAPES:
            by_hand = Frozen(_MESSAGES[module, name], fields, {}, _containers(fields))
            self._shapes[shape] = by_hand.containers if _same(by_hand, decoded) else None
        return decoded

    def _by_serializer(self, code: int, data: bytes) -> Any:
        return self._serde.loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(code, data))))


def _same(by_hand: Frozen, decoded: Any) -> bool:
    try:
        known = frozen(decoded)
    except Unfreezable:
        return False
    return (
        type(known) is Frozen
        and known.kind is by_hand.kind
        and known.extra == {}
        and known.fields == by_hand.fields
        and _shape(known.fields) == _shape(by_hand.fields)
    )


# --- what is kept


@dataclass(frozen=True, slots=True)
class _Kept:
    serde: SerializerProtocol
    body: bytes
    value: Any
    count: int | None


class Pristine:
    """The values of channels read lately, frozen, bounded in the bytes they were made of. Safe from several threads."""

    def __init__(self, bound: int = 32 * 1024 * 1024) -> None:
        self._bound = bound
        self._size = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Spot, _Kept] = OrderedDict()
        self._thawers: WeakKeyDictionary[SerializerProtocol, Thawer] = WeakKeyDictionary()

    def loads(self, spot: Spot, serde: SerializerProtocol, kind: str, data: bytes) -> Any:
        """What the serializer would decode; what was decoded before is copied."""
        # a serializer of one's own may mean anything by its bytes
        if kind != "msgpack" or type(serde) is not JsonPlusSerializer or len(data) < _SHORTEST:
            return serde.loads_typed((kind, data))
        with self._lock:
            kept = self._kept.get(spot)
            thawer = self._thawers.get(serde) or self._thawers.setdefault(serde, Thawer(serde))
        count, start = _array(data)
        body = data[start:]
        value: Any = None
        if kept is not None and kept.serde is serde:
            if (count is None) is (kept.count is None) and (count or 0) <= (kept.count or 0):
                # the same, or an earlier version of a list: the first of the items we have
                if kept.body == body:
                    return thawed(kept.value)
                if count is not None and kept.body.startswith(body):
                    return thawed(kept.value[:count])
            elif count is not None and kept.count is not None and body.startswith(kept.body):
                # a later version of a list: decode what was appended
                value = kept.value + thawer.decode(_header(count - kept.count) + body[len(kept.body) :])
        if value is None:
            value = thawer.decode(data)
        try:
            value = frozen(value)
        except Unfreezable:
            return thawed(value)  # what could not be copied has just been made, for this reader
        self._keep(spot, _Kept(serde, body, value, count))
        return thawed(value)

    def _keep(self, spot: Spot, kept: _Kept) -> None:
        with self._lock:
            known = self._kept.pop(spot, None)
            self._size += len(kept.body) - (len(known.body) if known else 0)
            self._kept[spot] = kept
            while self._size > self._bound and self._kept:
                _, dropped = self._kept.popitem(last=False)
                self._size -= len(dropped.body)


def _array(data: bytes) -> tuple[int | None, int]:
    """How many items a msgpack array has and where they begin; (None, 0) if it is something else."""
    first = data[0]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, 1
    if first == 0xDC:
        return int.from_bytes(data[1:3]), 3
    if first == 0xDD:
        return int.from_bytes(data[1:5]), 5
    return None, 0


def _header(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4)
