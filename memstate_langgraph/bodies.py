"""Checkpoints' bodies and metadata as stored bytes: only the saver's serializer can read them."""

from __future__ import annotations

import json
import zlib
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointMetadata, get_checkpoint_metadata
from langgraph.checkpoint.serde.base import SerializerProtocol

from memstate_langgraph.checkpoint_ops import CheckpointRow, Place
from memstate_langgraph.errors import DamagedCheckpoint, ValidationFailed
from memstate_langgraph.packing import pack_typed, unpack_typed


def decoded(serde: SerializerProtocol, place: Place, kind: str, data: bytes) -> Any:
    try:
        return serde.loads_typed(unpack_typed(kind, data))
    except (zlib.error, ValueError) as error:
        raise DamagedCheckpoint(
            f"thread {place.thread_id!r}, namespace {place.checkpoint_ns!r}, checkpoint {place.checkpoint_id!r}: "
            f"its stored form cannot be read ({error})"
        ) from error


def encoded(serde: SerializerProtocol, value: object, where: str) -> tuple[str, bytes]:
    try:
        return pack_typed(*serde.dumps_typed(value))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationFailed(f"{where}: cannot be serialized ({error})") from error


def metadata_of(config: RunnableConfig, metadata: CheckpointMetadata) -> CheckpointMetadata:
    """A checkpoint's metadata with what LangGraph adds of its config."""
    given: Mapping[str, Any] = config.get("metadata") or {}
    if isinstance(given, ChainMap):  # of which each item takes several calls of Python
        flat: dict[str, Any] = {}
        for layer in reversed(given.maps):
            flat.update(layer)
        given = flat
    return get_checkpoint_metadata(
        {"metadata": _telling(given), "configurable": _telling(config.get("configurable") or {})}, metadata
    )


def _telling(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of a config may go into a checkpoint's metadata: mostly nothing."""
    return {key: given[key] for key in _telling_keys(tuple(given))}


@lru_cache
def _telling_keys(keys: tuple[str, ...]) -> tuple[str, ...]:
    """LangGraph's rule, asked once for the same names: most configs have the same ones."""
    return tuple(get_checkpoint_metadata({"metadata": dict.fromkeys(keys, "")}, {}))


def version_text(version: object) -> str:
    """A channel version as a key. Those of one channel are all numbers or all text."""
    return version if isinstance(version, str) else json.dumps(version)


@dataclass(slots=True)
class BodyLens:
    """Reads checkpoints' bodies with a serializer, each once."""

    serde: SerializerProtocol
    _bodies: dict[tuple[Place, bytes], dict[str, Any]] = field(default_factory=dict)
    _versions: dict[tuple[Place, bytes], dict[str, str]] = field(default_factory=dict)

    def body(self, row: CheckpointRow) -> dict[str, Any]:
        key = row.place, row.body  # a plan that begins again may find another one there
        if key not in self._bodies:
            self._bodies[key] = decoded(self.serde, row.place, row.kind, row.body)
        return self._bodies[key]

    def versions(self, row: CheckpointRow) -> dict[str, str]:
        key = row.place, row.body
        if key not in self._versions:
            self._versions[key] = self.texts(self.body(row).get("channel_versions") or {})
        return self._versions[key]

    def texts(self, versions: Mapping[str, Any]) -> dict[str, str]:
        if [*map(type, versions.values())].count(str) == len(versions):  # as those that we give are
            return dict(versions)
        return {channel: version_text(version) for channel, version in versions.items()}

    def stamp(self, row: CheckpointRow) -> str:
        return str(self.body(row).get("ts") or "")

    def deltas(self, row: CheckpointRow) -> frozenset[str]:
        about = decoded(self.serde, row.place, row.metadata_kind, row.metadata)
        return frozenset(about.get("counters_since_delta_snapshot") or ())
