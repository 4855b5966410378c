"""MemStateCheckpointer: LangGraph's checkpoints in the storage that also holds the memories."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar, cast

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
)
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.serde.base import SerializerProtocol

from memstate_langgraph import checkpoints, landing
from memstate_langgraph.async_memory import AsyncMemoryStore
from memstate_langgraph.backends.urls import storage_from
from memstate_langgraph.bodies import BodyLens, decoded, encoded, metadata_of, version_text
from memstate_langgraph.changes import By, Rollback
from memstate_langgraph.checkpoint_ops import CheckpointRow, FindCheckpoints, Place, ValueKey, ValueRow, WriteRow
from memstate_langgraph.chunks import LARGE, Codec, Latest, Recent, Spot, Stored, pack_whole
from memstate_langgraph.configs import Listing, are_plain, config_of, given, named, thread_named, whereabouts
from memstate_langgraph.differences import Preview
from memstate_langgraph.errors import ConflictError, MemoryStoreError, ValidationFailed
from memstate_langgraph.graph import running_task
from memstate_langgraph.memory import MemoryStore
from memstate_langgraph.ops import Plan, Work
from memstate_langgraph.packing import pack_typed
from memstate_langgraph.pristine import Pristine
from memstate_langgraph.retention import Swept, sweep_threads
from memstate_langgraph.rules import check_count
from memstate_langgraph.run import (
    AsyncStorage,
    Flow,
    Hopeful,
    Progress,
    Storage,
    aperform,
    check_progress,
    in_event_loop,
    perform,
    tell,
)

R = TypeVar("R")

_random = random.Random()  # of our own: one that a program seeds would repeat itself
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)

Found = list[checkpoints.Loaded]


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
        self._is_async = isinstance(memory, AsyncMemoryStore)
        if isinstance(memory, MemoryStore):
            self._storage, self._async_storage = memory.storage, memory.storage.aio()
        else:
            self._storage, self._async_storage = memory.storage.sync(), memory.storage
        self._identity = self._storage.identity

    @classmethod
    def from_conn_string(cls, url: str | Path, *, serde: SerializerProtocol | None = None) -> Self:
        """A checkpointer of its own on the storage of a URL, or on a SQLite file.

        Close it, or use it in a `with` or `async with` block.
        """
        return cls(MemoryStore(storage_from(url)), serde=serde)

    @property
    def _codec(self) -> Codec:
        """For the serializer of now: LangGraph gives copies of a saver another one."""
        if self._last_codec.serde is not self.serde:
            self._last_codec = Codec(self.serde)
        return self._last_codec

    @property
    def identity(self) -> Hashable:
        """Of the storage: stores over the same one take part in the tasks of our graphs."""
        return self._identity

    # --- running plans through either door

    def _check_door(self) -> None:
        if in_event_loop():
            raise MemoryStoreError(
                "MemStateCheckpointer: a sync call inside a running event loop would block it; use ainvoke, "
                "astream and aget_state, or build the checkpointer on a MemoryStore"
            )

    def _run(self, work: Work[R]) -> R:
        if self._is_async:
            self._check_door()
        return self._storage.run(work)

    async def _arun(self, work: Work[R]) -> R:
        return await self._async_storage.run(work)

    def _perform(self, flow: Flow[R] | Hopeful[R] | Work[R]) -> R:
        if self._is_async:
            self._check_door()
        return perform(flow, self._storage)

    async def _aperform(self, flow: Flow[R] | Hopeful[R] | Work[R]) -> R:
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
        thread_id, checkpoint_ns, parent_id = whereabouts(config)
        codec = self._codec
        body = cast("dict[str, Any]", checkpoint.copy())
        held = body.pop("channel_values", {})
        whole, large = [], []
        for channel, version in new_versions.items():
            if channel in held:  # an empty channel has no value at its version
                spot = Spot(thread_id, checkpoint_ns or "", channel)
                kind, data = self._pristine.dumps(spot, codec.values, held[channel])
                key = ValueKey(channel, version_text(version))
                if codec.keeps_whole(data):
                    whole.append(ValueRow(key, kind, pack_whole(data)))
                else:
                    large.append(checkpoints.NewValue(key, kind, data))
        about = metadata_of(config, metadata)
        run_id = about.get("run_id")
        place = Place(thread_id, checkpoint_ns or "", named(checkpoint["id"], "the checkpoint's id"))
        row = CheckpointRow(
            place,
            parent_id,
            given(run_id, "run_id"),
            *encoded(self.serde, body, "the checkpoint"),
            *encoded(self.serde, about, "metadata"),
        )
        plan = partial(checkpoints.put, row, whole, large, self._recent, codec)
        event = landing.Saved(place, parent_id, config.get("configurable") or {})
        return _Put(row, dict(checkpoint["channel_versions"]), whole, self._landing(plan, event))

    def _landing(self, start: Callable[[], Plan[R]], event: landing.Event) -> Flow[R] | Hopeful[R]:
        return landing.land_with(start, event, self._identity)

    def _stored(self, made: _Put, values: list[Latest]) -> RunnableConfig:
        self._recent.keep(made.row, made.versions, values, made.whole)
        return config_of(made.row.place)

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
    ) -> Flow[None] | Hopeful[None] | Work[None]:
        thread_id, checkpoint_ns, checkpoint_id = whereabouts(config)
        if checkpoint_id is None:
            raise ValidationFailed("put_writes: config['configurable'] has no checkpoint_id to store writes for")
        place = Place(thread_id, checkpoint_ns or "", checkpoint_id)
        codec = self._codec
        channels = [channel for channel, _ in writes]
        if not are_plain(task_id, task_path, *channels):
            for name, text in (("task_id", task_id), ("task_path", task_path), *(("channel", one) for one in channels)):
                named(text, f"put_writes: {name}")
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
        plan = partial(checkpoints.put_writes, rows, large, self._recent, codec)
        configurable = config.get("configurable") or {}
        if landing.is_result(channels):
            return self._landing(plan, landing.Result(place, task_id, configurable))
        work = Work(plan, write=True)
        return self._of_failed(work, place, task_id, configurable) if landing.failed(channels) else work

    def _of_failed(self, work: Work[None], place: Place, task_id: str, configurable: Mapping[str, Any]) -> Flow[None]:
        yield work
        yield from landing.drop(self.identity, place.thread_id, task_id, configurable)

    # --- reading

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._one(config, self._run(self._find_one(config)))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        return self._one(config, await self._arun(self._find_one(config)))

    def _find_one(self, config: RunnableConfig) -> Work[Found]:
        thread_id, checkpoint_ns, checkpoint_id = whereabouts(config)
        question = FindCheckpoints(thread_id, checkpoint_ns or "", checkpoint_id, limit=1)
        return self._find(question)

    def _find(self, question: FindCheckpoints) -> Work[Found]:
        return checkpoints.find(question, BodyLens(self.serde), self._recent, self._codec)

    def _one(self, config: RunnableConfig, found: Found) -> CheckpointTuple | None:
        if not found:
            return None
        loaded = found[0]
        made = self._tuple(loaded)
        if loaded.fresh is not None:
            self._recent.keep(loaded.row, loaded.versions, loaded.fresh, loaded.small(), pending=bool(loaded.writes))
        # an asked checkpoint comes back under the config that asked for it, as LangGraph's own savers do
        return made._replace(config=config) if get_checkpoint_id(config) else made

    def _tuple(self, loaded: checkpoints.Loaded) -> CheckpointTuple:
        row, codec = loaded.row, self._codec
        return CheckpointTuple(
            config=config_of(row.place),
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
            parent_config=None if row.parent_id is None else config_of(row.place._replace(checkpoint_id=row.parent_id)),
            pending_writes=[self._pending(write, loaded.large) for write in loaded.writes],
        )

    def _metadata(self, row: CheckpointRow) -> Any:
        about = decoded(self.serde, row.place, row.metadata_kind, row.metadata)
        counters = about.get("counters_since_delta_snapshot")
        if counters:  # pairs, which the serializer gives back as lists
            about["counters_since_delta_snapshot"] = {channel: tuple(pair) for channel, pair in counters.items()}
        return about

    def _pending(self, write: WriteRow, large: Mapping[bytes, bytes]) -> tuple[str, str, Any]:
        if write.pieces is not None:
            value = self._codec.loads(write.kind, large[write.pieces])
        else:
            value = decoded(self.serde, write.place, write.kind, write.value)
        return write.task_id, write.channel, value

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 -- the name is LangGraph's
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        listing = Listing.of(config, filter, before, limit)
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
        listing = Listing.of(config, filter, before, limit)
        while (question := listing.next_page()) is not None:
            for found in listing.accept(self._page(await self._arun(self._find(question)), listing)):
                yield found

    def _page(self, loaded: Found, listing: Listing) -> Iterator[CheckpointTuple | None]:
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
        thread_id, checkpoint_ns, checkpoint_id = whereabouts(config)
        if checkpoint_id is not None:
            return Place(thread_id, checkpoint_ns or "", checkpoint_id)
        found: Sequence[checkpoints.Loaded] = latest()
        return found[0].row.place if found else None

    def _ancestry(self, place: Place, channels: Sequence[str]) -> Work[Found]:
        return checkpoints.ancestry(place, channels, BodyLens(self.serde), self._recent, self._codec)

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

    def rewind(self, config: RunnableConfig, *, expected: Preview | None = None) -> RunnableConfig:
        """Make an earlier checkpoint the head of its thread, and undo what the thread has put into memory since.

        One transaction, vectors included. The checkpoints after it stay in the history; the new head, whose
        config is returned, has its values. Facts that the thread's tasks committed, running on this checkpoint
        or a later one, get back what they were; raises `ConflictError`, having changed nothing, if another
        session has changed one of them since, if facts would get back anything else than what is `expected`, or
        from inside a running task of the thread: its run goes on from where it is, so that the thread would keep
        what its memory has lost.
        """
        return self._perform(self._rewind(config, expected))

    async def arewind(self, config: RunnableConfig, *, expected: Preview | None = None) -> RunnableConfig:
        """See `rewind`."""
        return await self._aperform(self._rewind(config, expected))

    def would_rewind(self, config: RunnableConfig) -> Preview:
        """What `rewind` would change in the memory now; its `expected=` takes it."""
        return self._perform(self._would_rewind(config))

    async def awould_rewind(self, config: RunnableConfig) -> Preview:
        """See `would_rewind`."""
        return await self._aperform(self._would_rewind(config))

    def _would_rewind(self, config: RunnableConfig) -> Flow[Preview]:
        row = yield from self._goal(config)
        return (yield from self.memory._core.would_undo(_undoing(row.place), None))

    def _goal(self, config: RunnableConfig) -> Flow[CheckpointRow]:
        """The checkpoint to rewind to."""
        thread_id, checkpoint_ns, checkpoint_id = whereabouts(config)
        if checkpoint_ns:
            raise ValidationFailed("rewind: goes to a checkpoint of the outermost graph, not of a subgraph")
        row: CheckpointRow | None = None
        if checkpoint_id is not None:
            row = yield checkpoints.row_at(Place(thread_id, "", checkpoint_id))
        if row is None:
            raise ValidationFailed(
                f"rewind: there is no checkpoint {checkpoint_id!r} of thread {thread_id!r}; "
                "pass the config of one from get_state_history"
            )
        return row

    def _rewind(self, config: RunnableConfig, expected: Preview | None) -> Flow[RunnableConfig]:
        row = yield from self._goal(config)
        running = running_task()
        if running is not None and running.thread_id == row.place.thread_id:
            raise ConflictError(
                f"rewind: thread {running.thread_id!r} is running the task that asks for it, and its run would go on "
                "from where it is; rewind when the run has ended, or take back only memory with "
                "RollbackNode(revert=...) or memory.revert"
            )
        metadata = self._metadata(row)
        fresh = str(uuid6())
        body = {**BodyLens(self.serde).body(row), "id": fresh, "ts": datetime.now(UTC).isoformat()}
        about = {**metadata, "source": "fork", "step": metadata.get("step", -1) + 1}
        packed = encoded(self.serde, body, "the checkpoint"), encoded(self.serde, about, "metadata")
        rollback = _undoing(row.place, expected)
        _, head = yield from self.memory._core.rewind(rollback, lambda: checkpoints.rewound(row.place, fresh, *packed))
        return config_of(head)

    # --- removing and copying

    def delete_thread(self, thread_id: str) -> None:
        self._run(checkpoints.delete_thread(thread_named(thread_id)))

    async def adelete_thread(self, thread_id: str) -> None:
        await self._arun(checkpoints.delete_thread(thread_named(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        self._run(checkpoints.delete_runs(tuple(map(str, run_ids)), BodyLens(self.serde)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        await self._arun(checkpoints.delete_runs(tuple(map(str, run_ids)), BodyLens(self.serde)))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread's history; values are shared, not stored again.

        Raises `ConflictError` if the target already has checkpoints.
        """
        self._run(checkpoints.copy_thread(thread_named(source_thread_id), thread_named(target_thread_id)))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """See `copy_thread`."""
        await self._arun(checkpoints.copy_thread(thread_named(source_thread_id), thread_named(target_thread_id)))

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
        threads = [thread_named(thread_id) for thread_id in thread_ids]
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
        return [checkpoints.prune(thread, keep, BodyLens(self.serde)) for thread in threads]

    def sweep(
        self,
        *,
        idle: float | timedelta | None = None,
        keep_last: int | None = None,
        progress: Progress | None = None,
    ) -> Swept:
        """`memory.sweep()`, and what is old of the threads: for a job that runs now and then.

        Deletes threads with checkpoints to which nothing was added for `idle` (seconds or a timedelta), and of every
        other all but the last `keep_last` checkpoints per namespace, as `prune` does. Without either, threads stay.
        """
        return self._perform(sweep_threads(self.memory._core, BodyLens(self.serde), idle, keep_last, progress))

    async def asweep(
        self,
        *,
        idle: float | timedelta | None = None,
        keep_last: int | None = None,
        progress: Progress | None = None,
    ) -> Swept:
        """See `sweep`."""
        return await self._aperform(sweep_threads(self.memory._core, BodyLens(self.serde), idle, keep_last, progress))

    # --- versions, closing

    def get_next_version(self, current: str | None, channel: None) -> str:  # noqa: ARG002 -- LangGraph's signature
        """Rising strings that differ between forks of one checkpoint."""
        number = 0 if current is None else int(str(current).split(".", maxsplit=1)[0])
        return f"{number + 1:010}.{_random.getrandbits(32):08x}"

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


class _Put(NamedTuple):
    row: CheckpointRow
    versions: Mapping[str, Any]
    whole: Sequence[ValueRow]
    flow: Flow[list[Latest]] | Hopeful[list[Latest]]


def _undoing(place: Place, expected: Preview | None = None) -> Rollback:
    """What rewinding to this checkpoint takes back."""
    by = By(reason=f"rewound to checkpoint {place.checkpoint_id}")
    causes = (("thread_id", place.thread_id),)
    return Rollback(None, None, by, causes=causes, ran_on=place.checkpoint_id, expected=expected)
