"""Encoding and decoding that cost what changed: values are kept frozen, and thawed for each reader.

What is kept never leaves, so no two runs share a mutable object. Frozen is what can be copied exactly and
cheaply: plain containers, and LangChain's messages as their fields. Messages that are still what was frozen are
not encoded again: their bytes are known.

A serializer decodes a message by calling its class, which validates what was valid when it was stored; that is
most of what reading a long chat costs. So the first message of each shape (class, names and types of its fields
at any depth) is decoded both ways; if both are the same, later ones of that shape are only put together. All
else is left to the serializer.
"""

from __future__ import annotations

import gc
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
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
from pydantic import BaseModel

from memstate_langgraph.chunks import Spot

_ATOMS = frozenset({str, int, float, bool, bytes, type(None)})
_KINDS = frozenset({AIMessage, AIMessageChunk, HumanMessage, HumanMessageChunk, SystemMessage, ToolMessage})
_BY_HAND = {(kind.__module__, kind.__name__): kind for kind in (AIMessage, HumanMessage, SystemMessage, ToolMessage)}
_MOST_SHAPES = 1000
"""Arguments of tools may have ever new shapes; beyond this many, new ones go to the serializer."""
_SHORTEST = 64
"""Bytes below which a value is not worth keeping."""

_UNKNOWN: Any = object()
_NEVER: Any = object()
"""In the place of a value that cannot be frozen."""
_new = object.__new__
# where a message keeps its parts; pydantic guards them against being set by their names
_put_fields, _put_names, _put_extra, _put_private = (
    vars(BaseModel)[slot].__set__
    for slot in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


class Unfreezable(Exception):
    """The value holds something that only decoding makes right."""


# --- frozen values


class Frozen:
    """A message as its fields. `containers` names those that are no atoms, `filled` those that hold something."""

    __slots__ = ("containers", "extra", "fields", "filled", "kind")

    def __init__(
        self,
        kind: type[BaseMessage],
        fields: dict[str, Any],
        extra: dict[str, Any] | None,
        containers: list[str] | None = None,
    ) -> None:
        self.kind, self.fields, self.extra = kind, fields, extra
        self.containers = _containers_of(fields) if containers is None else containers
        self.filled = [name for name in self.containers if fields[name]]

    def thaw(self) -> BaseMessage:
        fields = self.fields.copy()
        for name in self.containers:
            fields[name] = fields[name].copy()  # most containers of a message are empty
        for name in self.filled:
            fields[name] = thawed(fields[name])
        extra = None if self.extra is None else thawed(self.extra) if self.extra else {}
        return _message_of(self.kind, fields, extra)


def _containers_of(fields: dict[str, Any]) -> list[str]:
    return [name for name, value in fields.items() if type(value) not in _ATOMS]


def count_unchanged(messages: list[Any], before: list[Any]) -> int:
    """How many messages at the head would be encoded as those that were frozen before."""
    low, high = 0, min(len(messages), len(before))
    step = high  # mostly all of them
    while low < high:
        if _are_still(messages[low : low + step], before[low : low + step]):
            low += step
        else:
            high = low + step - 1
        step = (high - low + 1) // 2
    return low


def _are_still(messages: list[Any], before: list[Any]) -> bool:
    packed = _packed(messages)
    return packed is not None and packed == _packed_before(before) and _are_like(messages, before)


def _are_like(messages: list[Any], before: list[Any]) -> bool:
    """Whether messages are what was frozen, but for their fields."""
    if not _all_frozen(before) or [*map(type, messages)] != [*map(_kind_of, before)]:
        return False
    extras = [*map(_extra_of, before)], [*map(_extra_now, messages)]
    return not (any(extras[0]) or any(extras[1])) or all(map(_agree, *extras))


def _packed(messages: list[Any]) -> bytes | None:
    """The fields of messages as bytes, each behind the other; None if some are nothing that is frozen.

    What is as bytes the same is encoded as the same. Packing takes no step of Python message by message, since most
    histories are long and most of their messages stay.
    """
    try:
        return _pack([*map(_fields_now, messages)])
    except (TypeError, AttributeError):
        return None


def _packed_before(before: list[Any]) -> bytes | None:
    return _pack([*map(_fields_of, before)]) if _all_frozen(before) else None


def _pack(fields: list[dict[str, Any]]) -> bytes:
    data = ormsgpack.packb(fields, None, _EXACTLY)
    return data[_array(data)[1] :]


_EXACTLY = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_TUPLE
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
"""Nothing is packed as something else, such as a tuple as a list: rather it is refused."""
_kind_of, _fields_of, _extra_of = attrgetter("kind"), attrgetter("fields"), attrgetter("extra")
_fields_now, _extra_now = attrgetter("__dict__"), attrgetter("__pydantic_extra__")


def _agree(one: Any, other: Any) -> bool:
    """Of extras; there are none in None and {}."""
    return not (one or other) or _identical(one, other)


def _message_of(
    kind: type[BaseMessage], fields: dict[str, Any], extra: dict[str, Any] | None, _: list[str] | None = None
) -> BaseMessage:
    """A message of fields that were valid once and are now its own; as `Frozen` is made."""
    message: BaseMessage = _new(kind)
    _put_fields(message, fields)
    _put_names(message, set(fields))
    _put_extra(message, extra)
    _put_private(message, None)
    return message


def _identical(one: Any, other: Any) -> bool:
    """Equal to the types and the order of keys: 1 is not True, and 0.0 not -0.0."""
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return len(one) == len(other) and all(
            _identical(key, key_of_other) and _identical(item, item_of_other)
            for (key, item), (key_of_other, item_of_other) in zip(one.items(), other.items(), strict=True)
        )
    if kind is list:
        return len(one) == len(other) and all(map(_identical, one, other))
    return bool(repr(one) == repr(other) if kind is float else one == other)


def thawed(value: Any) -> Any:
    """A copy of a frozen value as its readers know it."""
    kind = type(value)
    if kind is Frozen:
        return value.thaw()
    if kind is list:
        return [*map(Frozen.thaw, value)] if _all_frozen(value) else [*map(thawed, value)]
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
        return Frozen(kind, frozen(value.__dict__), frozen(value.__pydantic_extra__))
    raise Unfreezable(kind.__name__)


# --- decoding to frozen values


def _shape(value: Any) -> Any:
    """What of a decoded value may decide how a message is validated: everything but the atoms' values, except where one
    says of what type its mapping is.
    """
    kind = type(value)
    if kind is dict:
        return (
            kind,
            *[(key, item if key == "type" and type(item) is str else _shape(item)) for key, item in value.items()],
        )
    if kind is list:
        return (kind, *map(_shape, value))
    return kind


def _outline(kind: type[BaseMessage], fields: dict[str, Any]) -> Any:
    """What of a message's shape is seen without looking into its containers."""
    return (kind, *fields, *map(type, fields.values()))


class _Shapes:
    """Of messages of one outline: which fields are containers, and whether building by hand is right, by what is in
    these.
    """

    __slots__ = ("by_hand", "containers")

    def __init__(self, fields: dict[str, Any]) -> None:
        self.containers = _containers_of(fields)
        self.by_hand: dict[Any, bool] = {}


class Thawer:
    """Decodes what one serializer encoded. Safe from several threads."""

    def __init__(self, serde: SerializerProtocol) -> None:
        self.serde = serde
        self._shapes: dict[Any, _Shapes] = {}  # by outline
        self._count = 0  # of shapes
        # by outline, of messages that come back as they were encoded if their containers are empty; None of others
        self._encoded: dict[Any, list[str] | None] = {}

    def frozen(self, messages: list[Any], encoded: bytes) -> list[Any]:
        """Messages as decoding what they were encoded as would freeze them; raises `Unfreezable`.

        It is not decoded if one of each shape was, and came back as it had been.
        """
        if (quickly := self._frozen_like(messages)) is not None:
            return quickly
        decoded = _frozen_items(self.decode(encoded))
        for message, made in zip(messages, decoded, strict=True):
            if type(message) in _KINDS and type(made) is Frozen and not made.filled:
                as_it_was = made.kind is type(message) and _identical(made.fields, message.__dict__) and not made.extra
                if len(self._encoded) < _MOST_SHAPES:
                    self._encoded[_outline(type(message), message.__dict__)] = made.containers if as_it_was else None
        return decoded

    def _frozen_like(self, messages: list[Any]) -> list[Frozen] | None:
        made = []
        for message in messages:
            if type(message) not in _KINDS or message.__pydantic_extra__:
                return None
            kind, fields = type(message), message.__dict__.copy()
            containers = self._encoded.get(_outline(kind, fields))
            if containers is None:
                return None
            for name in containers:
                if fields[name]:
                    return None
                fields[name] = fields[name].copy()
            made.append(Frozen(kind, fields, {}, containers))
        return made

    def decode(self, data: bytes) -> Any:
        """The value, its messages frozen where they can be."""
        return ormsgpack.unpackb(data, ext_hook=partial(self._ext, Frozen), option=ormsgpack.OPT_NON_STR_KEYS)

    def decode_for_reader(self, data: bytes) -> Any:
        return ormsgpack.unpackb(data, ext_hook=partial(self._ext, _message_of), option=ormsgpack.OPT_NON_STR_KEYS)

    def _ext(self, make: Callable[..., Any], code: int, data: bytes) -> Any:
        if code == EXT_PYDANTIC_V2:
            try:
                # what an extension within it holds is nobody's atom or container, so its shape is unknown here
                module, name, fields, _ = ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS)
            except (ValueError, TypeError):
                return self._by_serializer(code, data)
            kind = _BY_HAND.get((module, name))
            if kind is not None and type(fields) is dict:
                return self._message(make, kind, fields, data)
        return self._by_serializer(code, data)

    def _message(self, make: Callable[..., Any], kind: type[BaseMessage], fields: dict[str, Any], data: bytes) -> Any:
        outline = _outline(kind, fields)
        shapes = self._shapes.get(outline) or _Shapes(fields)
        filled = [name for name in shapes.containers if fields[name]]
        deep = tuple([(name, _shape(fields[name])) for name in filled]) if filled else ()
        by_hand = shapes.by_hand.get(deep)
        if "additional_kwargs" in filled and "tool_calls" in fields["additional_kwargs"]:
            by_hand = False  # AIMessage reads the tool calls there
        if by_hand:
            return make(kind, fields, {}, shapes.containers)
        decoded = self._by_serializer(EXT_PYDANTIC_V2, data)
        if by_hand is None and self._count < _MOST_SHAPES:
            self._count += 1
            right = _same(Frozen(kind, fields, {}, shapes.containers), decoded)
            self._shapes.setdefault(outline, shapes).by_hand[deep] = right
        return decoded

    def _by_serializer(self, code: int, data: bytes) -> Any:
        return self.serde.loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(code, data))))


def _frozen_items(decoded: list[Any]) -> list[Any]:
    return decoded if _all_frozen(decoded) else [frozen(item) for item in decoded]


def _all_frozen(items: list[Any]) -> bool:
    return [*map(type, items)].count(Frozen) == len(items)


def _same(by_hand: Frozen, decoded: Any) -> bool:
    try:
        known = frozen(decoded)
    except Unfreezable:
        return False
    return (
        type(known) is Frozen
        and known.kind is by_hand.kind
        and _identical(known.extra, by_hand.extra)
        and _identical(known.fields, by_hand.fields)
    )


# --- what is kept


@dataclass(slots=True)
class _Kept:
    """A value's bytes, of a list without their header; the value once it is needed."""

    serde: SerializerProtocol
    body: bytes
    value: Any
    count: int | None
    packed: bytes | None = None
    """The fields of its messages, as `_packed` gives them."""

    @property
    def size(self) -> int:
        return 2 * len(self.body)  # about as much again is in what was made of it

    def frozen(self, thawer: Thawer) -> Any:
        """The value, frozen; raises `Unfreezable`."""
        if self.value is _UNKNOWN:
            header = b"" if self.count is None else _header(self.count)
            try:
                self.value = frozen(thawer.decode(header + self.body))
            except Unfreezable:
                self.value = _NEVER
        if self.value is _NEVER:
            raise Unfreezable
        return self.value


class _CollectingLater:
    """Put the garbage collector off while a value is put together.

    All of its thousands of new objects live on, so that looking through them again and again finds nothing; for a
    long chat it would take longer than making them.
    """

    __slots__ = ("_was_on",)

    def __enter__(self) -> None:
        self._was_on = gc.isenabled()
        gc.disable()

    def __exit__(self, *_: object) -> None:
        if self._was_on:
            gc.enable()


class Pristine:
    """The values of channels that were read or stored lately, frozen. Safe from several threads.

    `bound` is in bytes.
    """

    def __init__(self, bound: int = 64 * 1024 * 1024) -> None:
        self._bound = bound
        self._size = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Spot, _Kept] = OrderedDict()
        self._thawers: WeakKeyDictionary[SerializerProtocol, Thawer] = WeakKeyDictionary()
        self._last: Thawer | None = None

    def _known(self, spot: Spot, serde: SerializerProtocol) -> tuple[_Kept | None, Thawer]:
        with self._lock:
            kept = self._kept.get(spot) or next((self._kept[one] for one in spot.lineage() if one in self._kept), None)
            thawer = self._last
            if thawer is None or thawer.serde is not serde:
                thawer = self._thawers.get(serde) or self._thawers.setdefault(serde, Thawer(serde))
                self._last = thawer
        return (kept if kept is not None and kept.serde is serde else None), thawer

    def loads(self, spot: Spot, serde: SerializerProtocol, kind: str, data: bytes) -> Any:
        """What the serializer would decode; what was decoded before is copied."""
        # a serializer of one's own may mean anything by its bytes
        if kind != "msgpack" or type(serde) is not JsonPlusSerializer or len(data) < _SHORTEST:
            return serde.loads_typed((kind, data))
        with _CollectingLater():
            return self._loads(spot, serde, data)

    def _loads(self, spot: Spot, serde: SerializerProtocol, data: bytes) -> Any:
        kept, thawer = self._known(spot, serde)
        count, start = _array(data)
        body, value = data[start:], _UNKNOWN
        if kept is not None and (count is None) is (kept.count is None):
            try:
                if kept.body == body:
                    return thawed(kept.frozen(thawer))
                if count is not None and kept.count is not None:
                    if kept.body.startswith(body):  # an earlier version: the first of the items we have
                        return thawed(kept.frozen(thawer)[:count])
                    if body.startswith(kept.body):  # a later one: decode what was appended
                        more = _header(count - kept.count) + body[len(kept.body) :]
                        value = kept.frozen(thawer) + _frozen_items(thawer.decode(more))
                        self._keep(spot, _Kept(serde, body, value, count))
                        return thawed(value)
            except Unfreezable:
                value = _NEVER
        # Most are read once: it is made for this reader, and frozen when there is another.
        self._keep(spot, _Kept(serde, body, value, count))
        return thawer.decode_for_reader(data)

    def dumps(self, spot: Spot, serde: SerializerProtocol, value: Any) -> tuple[str, bytes]:
        """What the serializer would encode; messages at the head of a list that are still what they were are not."""
        if (
            type(serde) is not JsonPlusSerializer
            or type(value) is not list
            or not value
            or type(value[0]) not in _KINDS
        ):
            return serde.dumps_typed(value)
        kept, thawer = self._known(spot, serde)
        packed = _packed(value)
        same, head = (list[Any](), b"") if kept is None else self._unchanged(kept, thawer, value, packed)
        new = value[len(same) :]
        kind, tail = serde.dumps_typed(new)
        if kind != "msgpack":
            return serde.dumps_typed(value)
        body = head + tail[_array(tail)[1] :]
        data = _header(len(value)) + body
        try:
            fresh = thawer.frozen(new, tail)
        except Unfreezable:
            return kind, data
        self._keep(spot, _Kept(serde, body, same + fresh, len(value), packed))
        return kind, data

    def _unchanged(
        self, kept: _Kept, thawer: Thawer, messages: list[Any], packed: bytes | None
    ) -> tuple[list[Any], bytes]:
        """The messages at the head that are still what was kept, frozen, and their bytes."""
        if kept.count is None:
            return [], b""
        before = kept.value if type(kept.value) is list else self._frozen_list(kept, thawer)
        if kept.packed is None:
            kept.packed = _packed_before(before)
        if packed and kept.packed and packed.startswith(kept.packed) and _are_like(messages[: kept.count], before):
            return before, kept.body
        same = count_unchanged(messages, before)
        ends = _ends(kept.body, same)
        return (before[:same], kept.body[: ends[-1]]) if ends else ([], b"")

    def _frozen_list(self, kept: _Kept, thawer: Thawer) -> list[Any]:
        try:
            if kept.value is _UNKNOWN:
                with _CollectingLater():
                    kept.frozen(thawer)
            found: list[Any] = kept.frozen(thawer)
            return found
        except Unfreezable:
            return []

    def _keep(self, spot: Spot, kept: _Kept) -> None:
        with self._lock:
            known = self._kept.pop(spot, None)
            self._size += kept.size - (known.size if known else 0)
            self._kept[spot] = kept
            while self._size > self._bound and self._kept:
                _, dropped = self._kept.popitem(last=False)
                self._size -= dropped.size


# --- msgpack


def _array(data: bytes) -> tuple[int | None, int]:
    """How many items an array has and where they begin; (None, 0) if it is something else."""
    first = data[0]
    if 0x90 <= first <= 0x9F:
        return first & 0x0F, 1
    if first == 0xDC:
        return int.from_bytes(data[1:3]), 3
    if first == 0xDD:
        return int.from_bytes(data[1:5]), 5
    return None, 0


def _header(count: int) -> bytes:
    """The shortest header of an array, as serializers write it."""
    if count < 0x10:
        return bytes((0x90 | count,))
    return b"\xdc" + count.to_bytes(2) if count < 0x10000 else b"\xdd" + count.to_bytes(4)


def _ends(body: bytes, count: int) -> list[int] | None:
    """Where each item of an array ends; None if one is no extension, which is what messages are."""
    ends, at = [], 0
    for _ in range(count):
        first = body[at]
        if first == 0xC7:
            at += 3 + body[at + 1]
        elif first == 0xC8:
            at += 4 + int.from_bytes(body[at + 1 : at + 3])
        elif first == 0xC9:
            at += 6 + int.from_bytes(body[at + 1 : at + 5])
        elif 0xD4 <= first <= 0xD8:
            at += 2 + (1 << (first - 0xD4))
        else:
            return None
        ends.append(at)
    return ends
