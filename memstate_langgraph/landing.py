"""When what a task wrote to memory becomes visible: with the task's result, in one transaction.

A result is durable when LangGraph has stored the task's writes, or the next checkpoint, which contains them; but
only if the checkpoints that the task ran on are stored as well, its own and those of the graphs around it. Under
`async` durability these arrive in any order, so whichever is last lands what waited for it. Under `exit` only the
last checkpoint is stored: it lands all that led to it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from langgraph.checkpoint.base import WRITES_IDX_MAP
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT

from memstate_langgraph.checkpoint_ops import FindCheckpoints, Place, WroteTo
from memstate_langgraph.errors import MemoryStoreError
from memstate_langgraph.flows import Unprepared
from memstate_langgraph.graph import exits, run_of
from memstate_langgraph.ops import Plan, Work, unchanging
from memstate_langgraph.protocol import ATTEMPTS, contended
from memstate_langgraph.run import Flow, Hopeful
from memstate_langgraph.staging import STAGES, Proof, Stage

R = TypeVar("R")

_ENDS_ATTEMPT = frozenset({ERROR, INTERRUPT})


@unchanging
class Result:
    """A task's result is being stored."""

    place: Place
    task_id: str
    configurable: Mapping[str, Any]

    def concerns(self, stage: Stage) -> bool:
        return of_run(stage, run_of(self.configurable)) and any(
            level.task_id == self.task_id for level in stage.task.levels
        )

    def contains(self, stage: Stage) -> bool:  # noqa: ARG002 -- as `Saved` has it
        # Landing first, neighbours take turns from their first question on, not after each has stored its writes,
        # where each would wait for the others.
        return True

    def lands(self, stage: Stage) -> Plan[bool]:
        at = next(i for i, level in enumerate(stage.task.levels) if level.task_id == self.task_id)
        # under `exit`, the checkpoints inside a subgraph are never stored
        if (yield from _stored(stage.places()[: 1 if stage.task.exits else at + 1])):
            return True
        stage.prove(at, Proof(self.place, self.task_id))
        return False


@unchanging
class Saved:
    """A checkpoint is being stored, made of the results of the tasks that ran on its parent."""

    place: Place
    parent_id: str | None
    configurable: Mapping[str, Any]

    @property
    def exits(self) -> bool:
        return exits(self.configurable)

    def concerns(self, stage: Stage) -> bool:
        return (bool(stage.proofs) and self.place in stage.places()) or self._level(stage) is not None

    def contains(self, stage: Stage) -> bool:
        return self._level(stage) is not None and self.place not in stage.places()

    def _level(self, stage: Stage) -> int | None:
        """Which of the stage's graphs the checkpoint is of, if it contains the task's result."""
        for i, level in enumerate(stage.task.levels if stage.task.run is run_of(self.configurable) else ()):
            if level.checkpoint_ns == self.place.checkpoint_ns and (
                self.exits or level.checkpoint_id == self.parent_id
            ):
                return i
        return None

    def lands(self, stage: Stage) -> Plan[bool]:
        if (yield from self._waited(stage)):
            return True
        at = self._level(stage)
        if at is None:
            return False
        if self.exits:
            return self._ends(stage, at)
        if (yield from _stored(stage.places()[: at + 1])):
            return True
        stage.prove(at, Proof(self.place, None))
        return False

    def _waited(self, stage: Stage) -> Plan[bool]:
        for at, proof in stage.proofs:
            places = stage.places()[: 1 if stage.task.exits else at + 1]
            if self.place in places and (yield from _stored(places)) and (yield from _holds(proof)):
                return True
        return False

    def _ends(self, stage: Stage, at: int) -> bool:
        """The last checkpoint of a run: of an inner graph that failed, or of the outermost."""
        rests_on = stage.task.levels[at].checkpoint_id
        if stage.closed or (rests_on == self.place.checkpoint_id and not stage.proofs):
            stage.closed = True  # its step was not completed: its own result may follow
            return False
        if at > 0:
            stage.prove(at, Proof(self.place, None))
            return False
        return True


Event = Result | Saved


def _stored(places: Iterable[Place]) -> Plan[bool]:
    for place in places:
        if not (yield from FindCheckpoints(*place, limit=1)):
            return False
    return True


def _holds(proof: Proof) -> Plan[bool]:
    if proof.task_id is None:
        return (yield from _stored([proof.place]))
    return is_result((yield from WroteTo(proof.place, proof.task_id)))


def of_run(stage: Stage, run: object) -> bool:
    """Whether what a run stores may concern a stage.

    What a run that was cancelled still stores comes when the next one may be at the same task.
    """
    return run is None or stage.task.run is run


def failed(channels: Iterable[str]) -> bool:
    """Whether these are the writes of a task that will run again from its start."""
    return not _ENDS_ATTEMPT.isdisjoint(channels) and not is_result(channels)


def is_result(channels: Iterable[str]) -> bool:
    """Whether a task with these writes is done.

    It is also with an error beside its result: of a task that was cancelled when it had only to say that it is done.
    """
    return not WRITES_IDX_MAP.keys() >= set(channels)


def concerned(identity: Hashable, event: Event, *, over: bool = False) -> list[Stage]:
    """The stages that an event may land; or those that it finds to be over."""
    stages = STAGES.of_thread(identity, event.place.thread_id)
    return [stage for stage in stages if stage.over == over and event.concerns(stage)]


def land_with(start: Callable[[], Plan[R]], event: Event, identity: Hashable) -> Flow[R] | Hopeful[R]:
    """Run a plan that stores checkpoints or writes, and land what they make durable, as one transaction."""
    if STAGES.by_thread:
        return _land_with(start, event, identity)
    # in most processes at most times nothing waits
    work = Work(partial(_alone, start, event, identity), write=True)
    return Hopeful(work, _NotAlone, partial(_land_with, start, event, identity))


class _NotAlone(Exception):
    """Something began to wait for an event meanwhile."""


def _alone(start: Callable[[], Plan[R]], event: Event, identity: Hashable) -> Plan[R]:
    """A plan of an event for which nothing waits; raises `_NotAlone`."""
    result = yield from start()
    if STAGES.by_thread and (concerned(identity, event) or concerned(identity, event, over=True)):
        raise _NotAlone
    return result


def _land_with(start: Callable[[], Plan[R]], event: Event, identity: Hashable) -> Flow[R]:
    landed: list[Stage] = []
    landing: list[Stage] = []

    def land(stages: Sequence[Stage]) -> Plan[None]:
        for stage in stages:
            if (yield from event.lands(stage)):
                landing[:] = [stage]
                yield from stage.owner.land(stage)
                landed.append(stage)
        landing.clear()

    def plan() -> Plan[R]:
        landed.clear()
        landing.clear()
        # What a checkpoint is made of comes before it in the log, what waited for it after it.
        if STAGES.by_thread and (stages := concerned(identity, event)):
            yield from land([stage for stage in stages if event.contains(stage)])
        result = yield from start()
        # Looked for again where writers take turns, which a transaction may do from its first write on only: of a
        # task's writes and its checkpoint, the second sees the first.
        if STAGES.by_thread and (stages := concerned(identity, event)):
            yield from land([stage for stage in stages if stage not in landed])
        return result

    try:
        for _ in range(ATTEMPTS):
            try:
                result: R = yield Work(plan, write=True)
            except Unprepared as missing:
                yield from missing.stage.owner.prepare_again(missing.stage)
                continue
            for stage in landed:
                yield from stage.owner.landed(stage)
            for stage in concerned(identity, event, over=True) if STAGES.by_thread else ():
                yield from stage.owner.give_up(stage)
            return result
        raise contended()
    except MemoryStoreError:
        for stage in landing:  # it cannot land: the run ends with this error, and the task may run again
            yield from stage.owner.give_up(stage)
        raise


def drop(identity: Hashable, thread_id: str, task_id: str, configurable: Mapping[str, Any]) -> Flow[None]:
    """Give up what a task wrote that failed, or was interrupted: it will run again.

    Not what was finished inside it: a subgraph goes on where it stopped, and of a `@task` that it called the
    result may still be on its way.
    """
    run = run_of(configurable)
    for stage in STAGES.of_thread(identity, thread_id):
        own = stage.task.levels[-1]
        for level in stage.task.levels:
            called = level is not own and level.checkpoint_id == own.checkpoint_id
            if of_run(stage, run) and level.task_id == task_id and not stage.proofs and not called:
                yield from stage.owner.give_up(stage)
