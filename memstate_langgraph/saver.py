"""MemStateCheckpointer: LangGraph's checkpoints in the storage that also holds the memories."""

from __future__ import annotations

import json
import secrets
import zlib
from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
    get_checkpoint_id,
    get_checkpoint_metadata,
)
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.base import SerializerProtocol

from memstate_langgraph import checkpoints, landing
from memstate_langgraph.checkpoint_ops import CheckpointRow, FindCheckpoints, Place, ValueKey, WriteRow
from memstate_langgraph.chunks import LARGE, Codec, Recent, Spot, Stored
from memstate_langgraph.errors import DamagedCheckpoint, MemoryStoreError, ValidationFailed
from memstate_langgraph.memory import AsyncMemoryStore, MemoryStore
from memstate_langgraph.ops import Work
from memstate_langgraph.packing import pack_typed, unpack_typed
from memstate_langgraph.plans import By, Rollback
from memstate_langgraph.pristine import Pristine
from memstate_langgraph.rules import check_characters, check_count
from memstate_langgraph.run import (
    AsyncStorage,
    Flow,
    Progress,
    Storage,
    aperform,
    check_progress,
    in_event_loop,
    perform,
    tell,
)

R = TypeVar("R")

Found = list[checkpoints.Loaded]

PAGE = 32
"""How many checkpoints `list` reads in one transaction."""


class MemStateCheckpointer(BaseCheckpointSaver[str]):
    """A LangGraph checkpointer on the storage of a memory store.

    One object serves `invoke` and `ainvoke`, from any thread, whichever door the store has. Channel values
    are stored as what changed since their last version, so a checkpoint costs what is new in it.
    Checkpoints and pending writes can be queried as facts of the types `langgraph.checkpoint` and
    `langgraph.write`; rollback does not count them. `serde` is LangGraph's serializer (encryption and
    allowlists work); the default decodes nothing with pickle.
    """

    def __init__(self, memory: MemoryStore | AsyncMemoryStore, *, serde: SerializerProtocol | None = None) -> None:
        if not isinstance(cast("object", memory), MemoryStore | AsyncMemoryStore):
            raise ValidationFailed(
                f"MemStateCheckpointer: memory must be a MemoryStore or AsyncMemoryStore: {memory!r}"
            )
        super().__init__(serde=serde)
        self.memory = memory
        self._recent = Recent()
        self._pristine = Pristine()
        self._last_codec = Codec(self.serde)
        self._storage: Storage
        self._async_storage: AsyncStorage
        if isinstance(memory, MemoryStore):
            self._storage, self._async_storage = memory.storage, memory.storage.aio()
        else:
            self._storage, self._async_storage = memory.storage.sync(), memory.storage

    @classmethod
    def from_conn_string(cls, path: str, *, serde: SerializerProtocol | None = None) -> Self:
        """A checkpointer of its own on a SQLite file, or on the storage of a URL.

        Close it, or use it in a `with` or `async with` block.
        """
        if isinstance(cast("object", path), str) and path.startswith(("postgresql://", "postgres://")):
            from memstate_langgraph.backends.postgres import PostgresStorage

            return cls(MemoryStore(PostgresStorage(path)), serde=serde)
        if isinstance(cast("object", path), str) and "://" in path:
            from memstate_langgraph.backends.urls import storage_from

            return cls(MemoryStore(storage_from(path)), serde=serde)
        from memstate_langgraph.backends.sqlite import SQLiteStorage

        return cls(MemoryStore(SQLiteStorage(path)), serde=serde)

    @property
    def _codec(self) -> Codec:
        """For the serializer of now: LangGraph gives copies of a saver another one."""
        if self._last_codec.serde is not self.serde:
            self._last_codec = Codec(self.serde)
        return self._last_codec

    @property
    def identity(self) -> Hashable:
        """Of the storage: stores over the same one take part in the tasks of our graphs."""
        return self._storage.identity

    # --- running plans through either door

    def _check_door(self) -> None:
        if isinstance(self.memory, AsyncMemoryStore) and in_event_loop():
            raise MemoryStoreError(
                "MemStateCheckpointer: a sync call inside a running event loop would block it; use ainvoke, "
                "astream and aget_state, or build the checkpointer on a MemoryStore"
            )

    def _run(self, work: Work[R]) -> R:
        self._check_door()
        return self._storage.run(work)

    async def _arun(self, work: Work[R]) -> R:
        return await self._async_storage.run(work)

    def _perform(self, flow: Flow[R]) -> R:
        self._check_door()
        return perform(flow, self._storage)

    async def _aperform(self, flow: Flow[R]) -> R:
        return await aperform(flow, self._async_storage)

    # --- writing

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        made = self._put(config, checkpoint, metadata, new_versions)
        return self._stored(made, self._perform(made.flow))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        made = self._put(config, checkpoint, metadata, new_versions)
        return self._stored(made, await self._aperform(made.flow))

    def _put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> _Put:
        thread_id, checkpoint_ns, parent_id = _where(config)
        codec = self._codec
        body = cast("dict[str, Any]", checkpoint.copy())
        held = body.pop("channel_values", {})
        values = []
        for channel, version in new_versions.items():
            spot = Spot(thread_id, checkpoint_ns or "", channel)
            kind, data = self._pristine.dumps(spot, codec.values, held[channel]) if channel in held else ("", b"")
            values.append(checkpoints.NewValue(ValueKey(channel, _version(version)), kind, data))
        about = get_checkpoint_metadata(config, metadata)
        run_id = about.get("run_id")
        place = Place(thread_id, checkpoint_ns or "", _name(checkpoint["id"], "the checkpoint's id"))
        row = CheckpointRow(
            place,
            parent_id,
            _given(run_id, "run_id"),
            *pack_typed(*self.serde.dumps_typed(body)),
            *pack_typed(*_dumped(self.serde, about, "metadata")),
        )
        work = checkpoints.put(row, values, self._recent, codec, checkpoints.new_pool())
        event = landing.saved(place, parent_id, config.get("configurable") or {})
        return _Put(place, self._landing(work, event))

    def _landing(self, work: Work[R], event: landing.Event) -> Flow[R]:
        return (yield from landing.land_with(work.start, event, self.identity))

    def _stored(self, made: _Put, values: dict[ValueKey, Stored]) -> RunnableConfig:
        checkpoints.remember(self._recent, made.place, values)
        return _config(made.place)

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        self._perform(self._put_writes(config, writes, task_id, task_path))

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        await self._aperform(self._put_writes(config, writes, task_id, task_path))

    def _put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str
    ) -> Flow[None]:
        thread_id, checkpoint_ns, checkpoint_id = _where(config)
        if checkpoint_id is None:
            raise ValidationFailed("put_writes: config['configurable'] has no checkpoint_id to store writes for")
        place = Place(thread_id, checkpoint_ns or "", checkpoint_id)
        codec = self._codec
        for name, where in ((task_id, "task_id"), (task_path, "task_path"), *((name, "channel") for name, _ in writes)):
            _name(name, f"put_writes: {where}")
        rows, large = [], {}
        for index, (channel, value) in enumerate(writes):
            kind, data = codec.dumps(value)
            if len(data) >= LARGE:
                large[index] = checkpoints.NewValue(ValueKey(channel, ""), kind, data)
                data = b""
            elif codec.encrypts:
                kind, data = self.serde.dumps_typed(value)
            else:
                kind, data = pack_typed(kind, data)
            rows.append(WriteRow(place, task_id, WRITES_IDX_MAP.get(channel, index), task_path, channel, kind, data))
        work = checkpoints.put_writes(rows, large, self._recent, codec, checkpoints.new_pool())
        channels = [channel for channel, _ in writes]
        if landing.is_result(channels):
            yield from self._landing(work, landing.Result(place, task_id))
        else:
            yield work
        if landing.failed(channels):
            yield from landing.drop(self.identity, thread_id, task_id)

    # --- reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._one(config, self._run(self._find_one(config)))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._one(config, await self._arun(self._find_one(config)))

    def _find_one(self, config: RunnableConfig) -> Work[Found]:
        thread_id, checkpoint_ns, checkpoint_id = _where(config)
        question = FindCheckpoints(thread_id, checkpoint_ns or "", checkpoint_id, limit=1)
        return self._find(question)

    def _find(self, question: FindCheckpoints) -> Work[Found]:
        return checkpoints.find(question, _Lens(self.serde), self._recent, self._codec)

    def _one(self, config: RunnableConfig, found: Found) -> CheckpointTuple | None:
        if not found:
            return None
        made = self._tuple(found[0])
        self._keep(found[0])
        # an asked checkpoint comes back under the config that asked for it, as LangGraph's own savers do
        return made._replace(config=config) if get_checkpoint_id(config) else made

    def _keep(self, loaded: checkpoints.Loaded) -> None:
        values = {ValueKey(channel, loaded.versions[channel]): value for channel, value in loaded.values.items()}
        checkpoints.remember(self._recent, loaded.row.place, values)

    def _tuple(self, loaded: checkpoints.Loaded) -> CheckpointTuple:
        row, codec = loaded.row, self._codec
        return CheckpointTuple(
            config=_config(row.place),
            checkpoint={
                **loaded.body,  # type: ignore[typeddict-item]  # a checkpoint but for its values
                "channel_values": {
                    channel: self._pristine.loads(
                        Spot(row.place.thread_id, row.place.checkpoint_ns, channel),
                        codec.values,
                        value.kind,
                        value.data,
                    )
                    for channel, value in loaded.values.items()
                },
            },
            metadata=self._metadata(row),
            parent_config=None if row.parent_id is None else _config(row.place._replace(checkpoint_id=row.parent_id)),
            pending_writes=[self._pending(write, loaded.large) for write in loaded.writes],
        )

    def _metadata(self, row: CheckpointRow) -> Any:
        about = _read(self.serde, row.place, row.metadata_kind, row.metadata)
        counters = about.get("counters_since_delta_snapshot")
        if counters:  # pairs, which the serializer gives back as lists
            about["counters_since_delta_snapshot"] = {channel: tuple(pair) for channel, pair in counters.items()}
        return about

    def _pending(self, write: WriteRow, large: Mapping[bytes, bytes]) -> tuple[str, str, Any]:
        if write.pieces is not None:
            value = self._codec.loads(write.kind, large[write.pieces])
        else:
            value = _read(self.serde, write.place, write.kind, write.value)
        return write.task_id, write.channel, value

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 -- the name is LangGraph's
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        listing = _Listing.of(config, filter, before, limit)
        while (question := listing.next_page()) is not None:
            yield from listing.accept(self._page(self._run(self._find(question)), listing))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 -- the name is LangGraph's
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        listing = _Listing.of(config, filter, before, limit)
        while (question := listing.next_page()) is not None:
            for found in listing.accept(self._page(await self._arun(self._find(question)), listing)):
                yield found

    def _page(self, loaded: Found, listing: _Listing) -> Iterator[CheckpointTuple | None]:
        """The tuples that match, and None in the place of the others."""
        for one in loaded:
            listing.after = one.row.place
            yield self._tuple(one) if listing.matches(self._metadata(one.row)) else None

    # --- delta channels

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        if not channels:
            return {}
        place = self._target(config, lambda: self._run(self._find_one(config)))
        return self._history(channels, [] if place is None else self._run(self._ancestry(place, channels)))

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        if not channels:
            return {}
        found = [] if get_checkpoint_id(config) else await self._arun(self._find_one(config))
        place = self._target(config, lambda: found)
        return self._history(channels, [] if place is None else await self._arun(self._ancestry(place, channels)))

    def _target(self, config: RunnableConfig, latest: Any) -> Place | None:
        thread_id, checkpoint_ns, checkpoint_id = _where(config)
        if checkpoint_id is not None:
            return Place(thread_id, checkpoint_ns or "", checkpoint_id)
        found: Sequence[checkpoints.Loaded] = latest()
        return found[0].row.place if found else None

    def _ancestry(self, place: Place, channels: Sequence[str]) -> Work[Found]:
        return checkpoints.ancestry(place, channels, _Lens(self.serde), self._recent, self._codec)

    def _history(self, channels: Sequence[str], line: Found) -> Mapping[str, DeltaChannelHistory]:
        codec = self._codec
        history: dict[str, DeltaChannelHistory] = {}
        for channel in channels:
            collected: list[tuple[str, str, Any]] = []
            seed: Stored | None = None
            for ancestor in line:  # nearest first
                its = [self._pending(write, ancestor.large) for write in ancestor.writes if write.channel == channel]
                collected = its + collected
                seed = ancestor.values.get(channel)
                if seed is not None:
                    break
            entry = DeltaChannelHistory(writes=collected)
            if seed is not None:
                entry["seed"] = codec.loads(seed.kind, seed.data)
            history[channel] = entry
        return history

    # --- rewinding

    def rewind(self, config: RunnableConfig) -> RunnableConfig:
        """Make an earlier checkpoint the head of its thread, and undo what the thread has put into memory since.

        One transaction, vectors included. The checkpoints after it stay in the history; the new head, whose
        config is returned, has its values. Facts that the thread's tasks committed, running on this checkpoint
        or a later one, get back what they were; raises `ConflictError`, having changed nothing, if another
        session has changed one of them since.
        """
        found = self._run(self._find_one(config))
        return self._perform(self._rewind(config, found))

    async def arewind(self, config: RunnableConfig) -> RunnableConfig:
        """See `rewind`."""
        found = await self._arun(self._find_one(config))
        return await self._aperform(self._rewind(config, found))

    def _rewind(self, config: RunnableConfig, found: Found) -> Flow[RunnableConfig]:
        thread_id, checkpoint_ns, checkpoint_id = _where(config)
        if checkpoint_id is None or not found:
            raise ValidationFailed(
                f"rewind: there is no checkpoint {checkpoint_id!r} of thread {thread_id!r}; "
                "pass the config of one from get_state_history"
            )
        if checkpoint_ns:
            raise ValidationFailed("rewind: goes to a checkpoint of the outermost graph, not of a subgraph")
        row, metadata = found[0].row, self._metadata(found[0].row)
        fresh = str(uuid6())
        body = {**found[0].body, "id": fresh, "ts": datetime.now(UTC).isoformat()}
        about = {**metadata, "source": "fork", "step": metadata.get("step", -1) + 1}
        rollback = Rollback(
            None,
            None,
            By(reason=f"rewound to checkpoint {checkpoint_id}"),
            causes=(("thread_id", thread_id),),
            ran_on=checkpoint_id,
        )
        packed = (pack_typed(*self.serde.dumps_typed(body)), pack_typed(*self.serde.dumps_typed(about)))
        _, head = yield from self.memory._core.rewind(rollback, lambda: checkpoints.rewound(row.place, fresh, *packed))
        return _config(head)

    # --- removing and copying

    def delete_thread(self, thread_id: str) -> None:
        self._run(checkpoints.delete_thread(_thread(thread_id)))

    async def adelete_thread(self, thread_id: str) -> None:
        await self._arun(checkpoints.delete_thread(_thread(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._run(checkpoints.delete_runs(tuple(map(str, run_ids)), _Lens(self.serde)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._arun(checkpoints.delete_runs(tuple(map(str, run_ids)), _Lens(self.serde)))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread's history; values are shared, not stored again.

        Raises `ConflictError` if the target already has checkpoints.
        """
        self._run(checkpoints.copy_thread(_thread(source_thread_id), _thread(target_thread_id)))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See `copy_thread`."""
        await self._arun(checkpoints.copy_thread(_thread(source_thread_id), _thread(target_thread_id)))

    def prune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
        max_age: timedelta | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Delete checkpoints of these threads, per namespace.

        `keep_latest` keeps the newest, `keep_last` the newest `keep_last`, `max_age` those younger than
        `max_age` and always the newest, `delete` none. What a delta channel of a kept checkpoint needs
        stays as well. Each thread is a transaction of its own; after each, `progress(stage, done, total)`
        is called. The space is used again; `memory.vacuum()` gives it back to the file system.
        """
        works = self._prune(thread_ids, strategy, keep_last, max_age, progress)
        for done, work in enumerate(works, 1):
            self._run(work)
            tell(progress, "pruning threads", done, len(works))

    async def aprune(
        self,
        thread_ids: Sequence[str],
        *,
        strategy: str = "keep_latest",
        keep_last: int = 1,
        max_age: timedelta | None = None,
        progress: Progress | None = None,
    ) -> None:
        """See `prune`."""
        works = self._prune(thread_ids, strategy, keep_last, max_age, progress)
        for done, work in enumerate(works, 1):
            await self._arun(work)
            tell(progress, "pruning threads", done, len(works))

    def _prune(
        self,
        thread_ids: Sequence[str],
        strategy: str,
        keep_last: int,
        max_age: timedelta | None,
        progress: Progress | None,
    ) -> Sequence[Work[Any]]:
        check_progress(progress)
        if isinstance(thread_ids, str):
            raise ValidationFailed("prune: thread_ids is a list of thread ids, not one string")
        threads = [_thread(thread_id) for thread_id in thread_ids]
        if strategy == "delete":
            return [checkpoints.delete_thread(thread) for thread in threads]
        if strategy == "keep_latest":
            keep = checkpoints.Keep(1)
        elif strategy == "keep_last":
            check_count(keep_last, "keep_last", 1)
            keep = checkpoints.Keep(keep_last)
        elif strategy == "max_age" and max_age is not None:
            keep = checkpoints.Keep(1, (datetime.now(UTC) - max_age).isoformat())
        else:
            raise ValidationFailed(
                f"prune: strategy {strategy!r} is none of keep_latest, keep_last, max_age (with max_age=) and delete"
            )
        return [checkpoints.prune(thread, keep, _Lens(self.serde)) for thread in threads]

    # --- versions, closing

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002 -- LangGraph's signature
        """Rising strings that differ between forks of one checkpoint."""
        number = 0 if current is None else int(str(current).split(".", maxsplit=1)[0])
        return f"{number + 1:010}.{secrets.token_hex(4)}"

    def close(self) -> None:
        self._storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._async_storage.close()


@dataclass(frozen=True, slots=True)
class _Put:
    place: Place
    flow: Flow[dict[ValueKey, Stored]]


@dataclass(slots=True)
class _Lens:
    """Reads checkpoints' bodies with a serializer, each once."""

    serde: SerializerProtocol
    _bodies: dict[Place, dict[str, Any]] = field(default_factory=dict)

    def body(self, row: CheckpointRow) -> dict[str, Any]:
        if row.place not in self._bodies:
            self._bodies[row.place] = _read(self.serde, row.place, row.kind, row.body)
        return self._bodies[row.place]

    def versions(self, row: CheckpointRow) -> dict[str, str]:
        versions = self.body(row).get("channel_versions") or {}
        return {channel: _version(version) for channel, version in versions.items()}

    def stamp(self, row: CheckpointRow) -> str:
        return str(self.body(row).get("ts") or "")

    def deltas(self, row: CheckpointRow) -> frozenset[str]:
        about = _read(self.serde, row.place, row.metadata_kind, row.metadata)
        return frozenset(about.get("counters_since_delta_snapshot") or ())


@dataclass(slots=True)
class _Listing:
    """Pages of `list`: newest first, filtered by metadata, until there are enough."""

    thread_id: str | None
    checkpoint_ns: str | None
    checkpoint_id: str | None
    filter: Mapping[str, Any]
    before: str | None
    left: int | None
    after: Place | None = None
    done: bool = False

    @classmethod
    def of(
        cls,
        config: RunnableConfig | None,
        filter_: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> _Listing:
        thread_id, checkpoint_ns, checkpoint_id = (None, None, None) if config is None else _where(config)
        before_id = None if before is None else _given(get_checkpoint_id(before), "before: checkpoint_id")
        return cls(thread_id, checkpoint_ns, checkpoint_id, filter_ or {}, before_id, limit)

    def next_page(self) -> FindCheckpoints | None:
        if self.done or (self.left is not None and self.left <= 0):
            return None
        size = PAGE if self.left is None or self.filter else min(PAGE, self.left)
        return FindCheckpoints(self.thread_id, self.checkpoint_ns, self.checkpoint_id, self.before, self.after, size)

    def accept(self, page: Iterator[CheckpointTuple | None]) -> Iterator[CheckpointTuple]:
        count = 0
        for found in page:
            count += 1
            if found is None:
                continue
            yield found
            if self.left is not None:
                self.left -= 1
                if self.left <= 0:
                    return
        self.done = count < PAGE

    def matches(self, metadata: Mapping[str, Any]) -> bool:
        return all(metadata.get(key) == wanted for key, wanted in self.filter.items())


def _where(config: RunnableConfig) -> tuple[str, str | None, str | None]:
    configurable = config.get("configurable") or {}
    if configurable.get("thread_id") in (None, ""):
        raise ValidationFailed(
            "the config has no thread_id: pass {'configurable': {'thread_id': '...'}} to say which conversation this is"
        )
    return (
        _thread(configurable["thread_id"]),
        _given(configurable.get("checkpoint_ns"), "checkpoint_ns"),
        _given(get_checkpoint_id(config), "checkpoint_id"),
    )


def _thread(thread_id: object) -> str:
    return _name(thread_id, "thread_id")


def _given(value: object, where: str) -> str | None:
    return None if value is None else _name(value, where)


def _name(value: object, where: str) -> str:
    try:
        text = str(value)
    except (RecursionError, ValueError) as error:
        raise ValidationFailed(f"{where}: must be a string ({error})") from error
    check_characters(text, where)
    return text


def _read(serde: SerializerProtocol, place: Place, kind: str, data: bytes) -> Any:
    try:
        return serde.loads_typed(unpack_typed(kind, data))
    except (zlib.error, ValueError) as error:
        raise DamagedCheckpoint(
            f"thread {place.thread_id!r}, namespace {place.checkpoint_ns!r}, checkpoint {place.checkpoint_id!r}: "
            f"its stored form cannot be read ({error})"
        ) from error


def _dumped(serde: SerializerProtocol, value: object, where: str) -> tuple[str, bytes]:
    try:
        return serde.dumps_typed(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValidationFailed(f"{where}: cannot be serialized ({error})") from error


def _config(place: Place) -> RunnableConfig:
    return {"configurable": place._asdict()}


def _version(version: object) -> str:
    """A channel version as a key: 1 and "1" differ."""
    return version if isinstance(version, str) else json.dumps(version)
