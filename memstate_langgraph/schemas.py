"""Types as they are registered: model, constraint, version, and how long their facts live."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from memstate_langgraph.errors import ValidationFailed

if TYPE_CHECKING:
    from memstate_langgraph.rules import Constraint

Step = Callable[[dict[str, Any]], Mapping[str, Any]]
"""Makes a payload of one version of a schema one of the next."""

Upcast = Step | Mapping[int, Step]
"""A step, from version 1 to 2; or, for each earlier version, the step to the next."""

MAX_VERSION = 1_000_000
LONGEST_TTL = 1000 * 365 * 24 * 3600.0  # what a datetime can hold


@dataclass(frozen=True, slots=True)
class Schema:
    typename: str
    model: type[BaseModel]
    constraint: Constraint
    version: int = 1
    steps: Mapping[int, Step] = field(default_factory=dict)
    ttl: float | None = None

    def upcast(self, payload: dict[str, Any], version: int) -> dict[str, Any]:
        """A payload of an earlier version as one of this; raises what its steps raise."""
        for earlier in range(version, self.version):
            changed: object = self.steps[earlier](payload)
            if not isinstance(changed, Mapping):
                raise TypeError(f"the step from version {earlier} gave {type(changed).__name__}, not a dict")
            payload = dict(changed)
        return payload


def steps_of(typename: str, version: int, upcast: Upcast | None) -> Mapping[int, Step]:
    """The steps of an upcast, one for each earlier version."""
    if (
        isinstance(cast("object", version), bool)
        or not isinstance(cast("object", version), int)
        or not (1 <= version <= MAX_VERSION)
    ):
        raise ValidationFailed(f"type {typename!r}: version must be a whole number from 1, not {version!r}")
    if upcast is None:
        steps: Mapping[int, Step] = {}
    elif isinstance(upcast, Mapping):
        steps = dict(upcast)
    else:
        steps = {1: upcast}
    wanted = set(range(1, version))
    if steps.keys() != wanted or not all(callable(step) for step in steps.values()):
        told = f"{{{', '.join(f'{earlier}: ...' for earlier in sorted(wanted))}}}" if len(wanted) < 10 else "a dict"
        raise ValidationFailed(
            f"type {typename!r}: version {version} needs upcast={told}, which has for each earlier version a function "
            f"that makes of its payload one of the next; it has {sorted(map(str, steps)) or 'none'}"
        )
    return steps


def seconds_of(ttl: float | timedelta | None, where: str = "ttl") -> float | None:
    """A time to live in seconds."""
    seconds = ttl.total_seconds() if isinstance(ttl, timedelta) else ttl
    if seconds is None:
        return None
    if (
        isinstance(cast("object", seconds), bool)
        or not isinstance(cast("object", seconds), int | float)
        or math.isnan(seconds)
        or not 0 < seconds <= LONGEST_TTL
    ):
        raise ValidationFailed(f"{where}: must be seconds or a timedelta, more than 0, not {ttl!r}")
    return float(seconds)
