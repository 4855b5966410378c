"""What running LangGraph tasks have written to memory and nobody else may see yet.

A task's writes become visible in the SQL transaction that makes its result durable, so they live in the process
that runs it: if that dies, they never were. Their vectors are prepared in the meantime, as intents with a lease.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from memstate_langgraph.changes import Change
from memstate_langgraph.checkpoint_ops import Place
from memstate_langgraph.graph import Attempt, Level, Task
from memstate_langgraph.plans import Draft
from memstate_langgraph.vectors import Text

FORGOTTEN = 24 * 3600.0
"""Seconds after which what an ended run left behind is forgotten; it is invisible from its end on."""

KNOWN = 1000
"""Of so many tasks is known which attempt is the latest."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A vector that is in its vector store and not visible yet."""

    vector_id: str
    text: Text


@dataclass(frozen=True, slots=True)
class Unit:
    """Changes that will be one transaction of the log."""

    changes: Sequence[Change]
    new_draft: Callable[[], Draft]
    draft: Draft
    approved: list[Any] | None


class Proof(NamedTuple):
    """What must be stored for a task's result to be durable: a checkpoint, or, with a task, its writes to one."""

    place: Place
    task_id: str | None


@dataclass(eq=False)
class Stage:
    """What one attempt at a task wrote through one store."""

    task: Task
    owner: Any
    """The core of the store, which knows how to commit it."""
    units: list[Unit] = field(default_factory=list)
    prepared: dict[tuple[str, str], Prepared] = field(default_factory=dict)
    proofs: list[tuple[int, Proof]] = field(default_factory=list)
    """The levels at which the task's result is stored, though what it rests on is not yet, and how to see it.

    Each is noted while it is being stored, so it may never be; one that is suffices.
    """
    closed: bool = False
    """The run ended at the checkpoint that the task ran on: only its own result can land it now."""
    tried: bool = False
    """Whether a transaction began to land it, which may have succeeded."""
    over: bool = False
    """A later attempt has begun, or the task was given up: what is still added lands nowhere."""
    touched_at: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, unit: Unit, known: int) -> bool:
        """Add what was decided over so many units; False if another thread of the task came first."""
        with self._lock:
            if len(self.units) != known:
                return False
            self.units.append(unit)
            self.touched_at = time.monotonic()
            return True

    def prove(self, level: int, proof: Proof) -> None:
        if (level, proof) not in self.proofs:  # told again when its transaction begins again
            self.proofs.append((level, proof))

    def precedes(self, task: Task) -> bool:
        """Whether a task may see this: it is its own, or of an earlier step of its run."""
        if self.task.run is not task.run or (self.task.levels == task.levels and self.task.attempt != task.attempt):
            return False
        for ours, theirs in zip(self.task.levels, task.levels, strict=False):
            if ours.checkpoint_id != theirs.checkpoint_id:
                return ours.checkpoint_id < theirs.checkpoint_id
            if ours.task_id != theirs.task_id:
                return False  # a neighbour in the same step
        return True  # one called the other

    def places(self) -> list[Place]:
        return [Place(self.task.thread_id, level.checkpoint_ns, level.checkpoint_id) for level in self.task.levels]


def drafts_of(stages: Iterable[Stage]) -> list[Draft]:
    """What stages hold, in the order in which it was decided."""
    return [unit.draft for stage in stages for unit in stage.units]


class Stages:
    """All stages of this process, by storage and thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.by_thread: dict[tuple[Hashable, str], list[Stage]] = {}
        """Empty in most processes at most times, which is worth a look before asking more."""
        self._latest: OrderedDict[tuple[Level, ...], Attempt] = OrderedDict()

    def _is_latest(self, storage: Hashable, task: Task) -> bool:
        """Learn of an attempt at a task: those before it are over, and so is it if a later one is known.

        They failed, though some of their code may still run.
        """
        if task.attempt < self._latest.get(task.levels, task.attempt):
            return False
        self._latest[task.levels] = task.attempt
        self._latest.move_to_end(task.levels)
        if len(self._latest) > KNOWN:
            self._latest.popitem(last=False)
        for stage in self.by_thread.get((storage, task.thread_id), ()):
            if stage.task.levels == task.levels and stage.task.attempt < task.attempt:
                stage.over = True
        return True

    def of_thread(self, storage: Hashable, thread_id: str) -> list[Stage]:
        """In the order in which they were made."""
        if not self.by_thread:
            return []
        with self._lock:
            return list(self.by_thread.get((storage, thread_id), ()))

    def seen_by(self, storage: Hashable, task: Task) -> list[Stage]:
        """Those of its thread that a task may see."""
        with self._lock:
            self._is_latest(storage, task)
        return [stage for stage in self.of_thread(storage, task.thread_id) if stage.precedes(task)]

    def of_storage(self, storage: Hashable) -> list[Stage]:
        with self._lock:
            return [stage for (where, _), stages in self.by_thread.items() if where == storage for stage in stages]

    def open(self, storage: Hashable, task: Task, owner: Any) -> tuple[Stage, list[Stage]]:
        """The stage of a task, and those that a new attempt has replaced.

        That of an attempt after which another has come is over from the start.
        """
        with self._lock:
            stages = self.by_thread.get((storage, task.thread_id), [])
            mine = [stage for stage in stages if stage.owner is owner and stage.task.levels == task.levels]
            for stage in mine:
                if stage.task.run is task.run and stage.task.attempt == task.attempt:
                    return stage, []
            if not self._is_latest(storage, task):
                return Stage(task, owner, over=True), []
            late = time.monotonic() - FORGOTTEN
            replaced = [stage for stage in stages if stage in mine or stage.touched_at < late]
            opened = Stage(task, owner)
            kept = [stage for stage in stages if stage not in replaced]
            self.by_thread[storage, task.thread_id] = [*kept, opened]
            return opened, replaced

    def close(self, storage: Hashable, stage: Stage) -> None:
        """Forget a stage that landed or was given up."""
        with self._lock:
            key = (storage, stage.task.thread_id)
            stages = self.by_thread.get(key, [])
            if stage in stages:
                stages.remove(stage)
            if not stages:
                self.by_thread.pop(key, None)


STAGES = Stages()
