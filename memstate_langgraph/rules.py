"""What may be stored: types, constraints, payloads, filters. Pure functions of their arguments."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from memstate_langgraph.errors import ConflictError, MemoryStoreError, UpcastFailed, ValidationFailed
from memstate_langgraph.facts import Fact, Namespace, Query, altered
from memstate_langgraph.schemas import Schema, Upcast, seconds_of, steps_of

RESERVED = "langgraph."
"""Types that only the checkpointer and the LangGraph store write."""
CHECKPOINT_TYPE = "langgraph.checkpoint"
WRITE_TYPE = "langgraph.write"
ITEM_TYPE = "langgraph.item"

MAX_DEPTH = 100
MAX_NAME = 512
MAX_PAYLOAD = 16 * 1024 * 1024
MAX_COUNT = 2**63 - 1  # what databases can count to


@dataclass(frozen=True, slots=True)
class Constraint:
    """What holds for all facts of a type.

    `singleton_key` names a payload field: one live fact per type, namespace and value of that field; a
    second commit updates it and keeps its id. `immutable` refuses changes with `ConflictError`.
    """

    singleton_key: str | None = None
    immutable: bool = False


NO_CONSTRAINT = Constraint()


class Rules:
    """The registered types of a store."""

    def __init__(self, *, strict: bool = False) -> None:
        self.strict = strict
        self._schemas: dict[str, Schema] = {}
        self._names: dict[type[BaseModel], str] = {}

    def register(
        self,
        typename: str,
        model: type[BaseModel],
        constraint: Constraint | None,
        version: int = 1,
        upcast: Upcast | None = None,
        ttl: float | timedelta | None = None,
    ) -> None:
        check_typename(typename)
        if not (isinstance(cast("object", model), type) and issubclass(model, BaseModel)):
            raise ValidationFailed(f"type {typename!r}: model must be a pydantic BaseModel class, not {model!r}")
        constraint = NO_CONSTRAINT if constraint is None else constraint
        if not isinstance(cast("object", constraint), Constraint):
            raise ValidationFailed(f"type {typename!r}: constraint must be a Constraint, not {constraint!r}")
        key = constraint.singleton_key
        if key is not None and not (isinstance(cast("object", key), str) and key in model.model_fields):
            fields = ", ".join(model.model_fields)
            raise ValidationFailed(
                f"type {typename!r}: singleton_key {key!r} is no field of {model.__name__} (it has: {fields})"
            )
        steps = steps_of(typename, version, upcast)
        seconds = seconds_of(ttl, f"type {typename!r}: ttl")
        self._schemas[typename] = Schema(typename, model, constraint, version, steps, seconds)
        self._names[model] = typename

    def __contains__(self, typename: object) -> bool:
        return typename in self._schemas

    def __iter__(self) -> Iterator[Schema]:
        return iter(self._schemas.values())

    def schema(self, typename: str) -> Schema | None:
        return self._schemas.get(typename)

    def typename_of(self, model: BaseModel) -> str:
        try:
            return self._names[type(model)]
        except KeyError:
            name = type(model).__name__
            raise MemoryStoreError(
                f"model class {name!r} is not registered: call register_schema('a_type_name', {name}) first"
            ) from None

    def constraint(self, typename: str) -> Constraint:
        schema = self._schemas.get(typename)
        return schema.constraint if schema else NO_CONSTRAINT

    def admit(self, fact: Fact) -> Fact:
        """The fact as it may be stored: payload validated and in plain JSON, singleton key filled in."""
        check_typename(fact.type)
        check_text(fact.id, "id")
        check_namespace(fact.namespace)
        for name, text in (("session_id", fact.session_id), ("source", fact.source)):
            if text is not None:
                check_text(text, name)
        schema = self._schemas.get(fact.type)
        if schema is None and self.strict:
            known = ", ".join(sorted(self._schemas)) or "none"
            raise ValidationFailed(f"type {fact.type!r} is not registered (registered: {known}); this store is strict")
        if not isinstance(cast("object", fact.ts), datetime):
            raise ValidationFailed(f"ts: must be a datetime, not {fact.ts!r}")
        payload = fact.payload
        if not isinstance(cast("object", payload), Mapping):
            raise ValidationFailed(f"type {fact.type!r}: the payload must be a dict, not {type(payload).__name__}")
        if schema is not None:
            try:
                payload = dumped(fact.type, schema.model.model_validate(payload))
            except ValidationError as error:
                raise ValidationFailed(explain(fact.type, error)) from error
            except RecursionError as error:
                raise ValidationFailed(f"type {fact.type!r}: the payload is nested too deeply") from error
        payload = plain_json(payload, f"type {fact.type!r}: payload")
        key = self.constraint(fact.type).singleton_key
        singleton = _singleton(key, payload)
        if singleton is not None and len(singleton) > MAX_NAME:
            raise ValidationFailed(f"type {fact.type!r}: singleton key {key!r} is longer than {MAX_NAME} characters")
        given: dict[str, Any] = {"payload": payload, "singleton": singleton, "ttl": seconds_of(fact.ttl)}
        if schema is not None:
            given["schema_version"] = schema.version
            given["ttl"] = given["ttl"] or schema.ttl
        return altered(fact, **given)

    def is_old(self, fact: Fact) -> bool:
        """Whether its payload follows an earlier version of its type's schema."""
        schema = self._schemas.get(fact.type)
        return schema is not None and fact.schema_version < schema.version

    def unreadable(self, fact: Fact) -> str | None:
        """Why its upcast, if it needs one, cannot read it."""
        try:
            self.current(fact)
        except UpcastFailed as error:
            return str(error)
        return None

    def evolved(self, typename: str | None) -> bool:
        """Whether facts of this type, or of any, may be of an earlier version."""
        schemas = self._schemas.values() if typename is None else filter(None, [self._schemas.get(typename)])
        return any(schema.version > 1 for schema in schemas)

    def current(self, fact: Fact) -> Fact:
        """A stored fact as its type is now: the only place where an upcast is applied.

        Raises `UpcastFailed`. Its singleton key stays as stored, since storage finds it by that.
        """
        schema = self._schemas.get(fact.type)
        if schema is None or fact.schema_version >= schema.version:
            return fact
        try:
            given = plain_json(fact.payload, "payload")  # a copy: an upcast may change what it is given
            model = schema.model.model_validate(schema.upcast(given, fact.schema_version))
            payload = plain_json(dumped(fact.type, model), "payload")
            key = schema.constraint.singleton_key
            if fact.singleton is not None and key is not None and _singleton(key, payload) != fact.singleton:
                raise ValueError(f"it changes the singleton key {key!r} from {fact.singleton} to {payload.get(key)!r}")
        except Exception as error:
            problem = (
                explain(fact.type, error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
            )
            raise UpcastFailed(
                f"fact {fact.id} of type {fact.type!r}, version {fact.version}: its payload cannot be read through the "
                f"upcast from schema version {fact.schema_version} to {schema.version}: {problem}"
            ) from error
        return altered(fact, payload=payload, schema_version=schema.version)

    def refuse_change(self, fact: Fact) -> None:
        """Raise `ConflictError` if facts of this type may not change, or if this one is newer than the type here."""
        schema = self._schemas.get(fact.type)
        if schema is not None and fact.schema_version > schema.version:
            raise ConflictError(
                f"fact {fact.id} of type {fact.type!r} was written at schema version {fact.schema_version}, but this "
                f"program has registered version {schema.version}; update the program before it changes the fact"
            )
        if self.constraint(fact.type).immutable:
            raise ConflictError(
                f"Immutable constraint violation: fact {fact.id} of type {fact.type!r} cannot be changed or deleted"
            )


def _singleton(key: str | None, payload: Mapping[str, Any]) -> str | None:
    value = None if key is None else payload.get(key)
    return None if value is None else canonical(value)


def dumped(typename: str, model: BaseModel, *, only_given: bool = False) -> dict[str, Any]:
    """A model as JSON; a number that JSON lacks is an error here, where pydantic would write null."""
    try:
        payload = model.model_dump(mode="json", exclude_unset=only_given)
        if _has_null(payload.values()):  # which may have been a number
            path = _not_finite(model.model_dump(exclude_unset=only_given))
            if path is not None:
                raise ValidationFailed(f"type {typename!r}: field {path}: is not a JSON number")
        return payload
    except (ValueError, RecursionError) as error:  # pydantic's own error, or a plain one for what is too deep
        raise ValidationFailed(f"type {typename!r}: the payload cannot be written as JSON ({error})") from error


def _has_null(values: Iterable[Any]) -> bool:
    for value in values:
        if value is None:
            return True
        if isinstance(value, dict | list) and _has_null(value.values() if isinstance(value, dict) else value):
            return True
    return False


def _not_finite(value: Any, path: str = "") -> str | None:
    """The path of the first NaN or infinity in nested containers."""
    if isinstance(value, float):
        return None if math.isfinite(value) else path
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    inner = (_not_finite(item, f"{path}.{key}" if path else str(key)) for key, item in items)
    return next((found for found in inner if found is not None), None)


def explain(typename: str, error: ValidationError) -> str:
    """Pydantic's findings in one line a person or a model can act on."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [f"field {'.'.join(str(p) for p in found['loc']) or '(whole)'}: {found['msg']}" for found in problems]
    return f"type {typename!r}: " + "; ".join(parts)


def canonical(value: Any) -> str:
    """JSON in which equal values have equal texts."""
    return _encode(value)


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


@lru_cache(4096)  # of most facts it is the same
def namespace_text(namespace: Namespace) -> str:
    return canonical(list(namespace))


def plain_json(value: Any, where: str) -> Any:
    """A copy made of dict, list, str, int, float, bool and None, the same in every storage.

    Raises `ValidationFailed` with the path of the first part that JSON or a storage cannot carry.
    """
    return _plain(value, where, 0, [MAX_PAYLOAD])


def _plain(value: Any, where: str, depth: int, room: list[int]) -> Any:
    if depth > MAX_DEPTH:
        raise ValidationFailed(f"{where}: nested more than {MAX_DEPTH} levels deep")
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        check_characters(value, where)
        room[0] -= len(value)
        if room[0] < 0:
            raise ValidationFailed(f"{where}: the payload is larger than {MAX_PAYLOAD} characters")
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > 1024:
            raise ValidationFailed(f"{where}: an integer of {value.bit_length()} bits is too large")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValidationFailed(f"{where}: {value} is not a JSON number")
        return float(value)
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValidationFailed(f"{where}: the key {key!r} is not a string")
            check_characters(key, where)
            result[key] = _plain(item, f"{where}.{key}", depth + 1, room)
        return result
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", depth + 1, room) for i, item in enumerate(value)]
    raise ValidationFailed(f"{where}: {type(value).__name__} is not JSON; register a pydantic model for the type")


def check_characters(text: str, where: str) -> None:
    if "\x00" in text:
        raise ValidationFailed(f"{where}: contains a NUL character, which databases cannot store")
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValidationFailed(f"{where}: contains a lone surrogate, which is not text") from error


def check_text(text: object, where: str) -> None:
    if not isinstance(text, str) or not text:
        raise ValidationFailed(f"{where}: must be a non-empty string, not {text!r}")
    if len(text) > MAX_NAME:
        raise ValidationFailed(f"{where}: is longer than {MAX_NAME} characters")
    check_characters(text, where)


def check_typename(typename: object) -> None:
    check_text(typename, "type")
    if str(typename).startswith(RESERVED):
        raise ValidationFailed(
            f"type {typename!r}: names that begin with {RESERVED!r} belong to the checkpointer and the store"
        )


def check_namespace(namespace: Namespace) -> None:
    if not isinstance(namespace, tuple):
        raise ValidationFailed(f"namespace: must be a tuple of strings, not {namespace!r}")
    for part in namespace:
        check_text(part, "namespace")


def check_count(value: object, where: str, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_COUNT:
        raise ValidationFailed(f"{where}: must be a whole number from {least} to {MAX_COUNT}, not {value!r}")


def check_flag(value: object, where: str) -> None:
    if not isinstance(value, bool):
        raise ValidationFailed(f"{where}: must be True or False, not {value!r}")


# --- filters

MISSING = object()
"""The value of a field that is not there."""
FIELDS = ("id", "type", "session_id", "source", "version", "ephemeral", "ts", "namespace")


def check_filters(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Filters as the matcher takes them.

    Keys are fields of a fact or paths into its payload (`payload.address.city`); values are equal to, or
    operators: `$eq $ne $gt $gte $lt $lte $in $nin $exists`.
    """
    if filters is None:
        return {}
    if not isinstance(filters, Mapping):
        raise ValidationFailed(f"filters: must be a dict, not {filters!r}")
    for key, wanted in filters.items():
        if not isinstance(cast("object", key), str) or not (key in FIELDS or key.startswith("payload.")):
            raise ValidationFailed(f"filters: {key!r} is neither 'payload.<field>' nor one of {', '.join(FIELDS)}")
        if isinstance(wanted, str):
            check_characters(wanted, f"filters: {key!r}")
        if _is_operators(wanted):
            check_operators(wanted, key)
    return dict(filters)


def check_operators(operators: Mapping[str, Any], key: str) -> None:
    for name, operand in operators.items():
        if name not in _OPERATORS:
            raise ValidationFailed(f"filters: unknown operator {name!r} for {key!r}")
        if name in ("$in", "$nin") and (isinstance(operand, str) or not isinstance(operand, Sequence)):
            raise ValidationFailed(f"filters: {name} for {key!r} takes a list")


def check_query(query: Query) -> Query:
    for name, text in (("typename", query.type), ("session_id", query.session_id)):
        if text is not None:
            check_text(text, name)
    if query.limit is not None:
        check_count(query.limit, "limit")
    if query.namespace is not None:
        check_namespace(query.namespace)
    if query.prefix is not None:
        check_namespace(query.prefix)
    return replace(query, filters=check_filters(query.filters))


def answers(fact: Fact, query: Query) -> bool:
    """Whether a fact is one that the query asks for; what `Find` decides in storage."""
    return (
        (query.type is None or fact.type == query.type)
        and (query.namespace is None or fact.namespace == query.namespace)
        and (query.session_id is None or fact.session_id == query.session_id)
        and (query.ephemeral is None or fact.ephemeral == query.ephemeral)
        and fits(fact, query)
    )


def fits(fact: Fact, query: Query) -> bool:
    """What of a query no database decides: that is the same everywhere only in Python."""
    return (
        (query.prefix is None or fact.namespace[: len(query.prefix)] == query.prefix)
        and matches(fact, query.filters)
        and (query.where is None or query.where(fact))
    )


def matches(fact: Fact, filters: Mapping[str, Any]) -> bool:
    for key, wanted in filters.items():
        value = _value(fact, key)
        if _is_operators(wanted):
            if not satisfies(value, wanted):
                return False
        elif not same(value, wanted):
            return False
    return True


def satisfies(value: Any, operators: Mapping[str, Any]) -> bool:
    return all(_OPERATORS[name](value, operand) for name, operand in operators.items())


def _is_operators(wanted: object) -> bool:
    return (
        isinstance(wanted, Mapping) and bool(wanted) and all(isinstance(k, str) and k.startswith("$") for k in wanted)
    )


def _value(fact: Fact, key: str) -> Any:
    head, *path = key.split(".")
    value: Any = getattr(fact, head)
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def same(value: Any, wanted: Any) -> bool:
    if value is MISSING or value is None:
        return wanted is None
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, tuple):
        return isinstance(wanted, list | tuple) and list(value) == list(wanted)
    return bool(value == wanted)


def _compare(value: Any, operand: Any) -> int | None:
    numbers = isinstance(value, int | float) and isinstance(operand, int | float)
    if isinstance(value, bool) or isinstance(operand, bool):
        return None
    if not numbers and (type(value) is not type(operand) or value is MISSING):
        return None
    try:
        return int(value > operand) - int(value < operand)
    except TypeError:
        return None


_OPERATORS: dict[str, Any] = {
    "$eq": same,
    "$ne": lambda v, o: not same(v, o),
    "$gt": lambda v, o: _compare(v, o) == 1,
    "$gte": lambda v, o: _compare(v, o) in (0, 1),
    "$lt": lambda v, o: _compare(v, o) == -1,
    "$lte": lambda v, o: _compare(v, o) in (0, -1),
    "$in": lambda v, o: any(same(v, item) for item in o),
    "$nin": lambda v, o: not any(same(v, item) for item in o),
    "$exists": lambda v, o: (v is not MISSING) is bool(o),
}
