"""What a task wrote lands once and whole, in whatever order its result and the checkpoints under it are stored."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from memstate_langgraph import ConflictError, Fact, HookError, MemoryStore, MemStateCheckpointer, StorageError
from memstate_langgraph.checkpoint_ops import Pool
from memstate_langgraph.flows import Core
from memstate_langgraph.landing import Event, Result, concerned
from memstate_langgraph.ops import Plan, Work
from memstate_langgraph.run import Flow, perform
from memstate_langgraph.staging import STAGES, Stage
from tests.children import PATIENCE
from tests.graphs import CONFIG, DURABILITIES, Durability, State, contents, line, nested, outside, say
from tests.models import note, register
from tests.stores import REDIS, Unreliable, assert_in_step


@pytest.fixture
def memory(graphs_memory: MemoryStore) -> MemoryStore:
    return graphs_memory


class Ordered(MemStateCheckpointer):
    """A checkpointer whose calls wait for each other as a test wants it.

    `before` and `after` are called around each with its name: `result` for that of a task that has written to memory,
    else `outer 1`, `outer 2`, `inner 1` for the checkpoints of the outermost graph and those in it as they come.
    """

    def __init__(self, memory: MemoryStore) -> None:
        super().__init__(memory)
        self._counts: Counter[str] = Counter()
        self.before: Callable[[str], object] = lambda _: None
        self.after: Callable[[str], object] = lambda _: None
        self.inside: Callable[[str], object] = lambda _: None
        """Called in the transaction, before it has asked anything."""
        self.at_the_end: Callable[[str], object] = lambda _: None

    def _name(self, event: Event) -> str:
        if isinstance(event, Result):
            return "result" if concerned(self.identity, event) else "a result"
        graph = "inner" if event.place.checkpoint_ns else "outer"
        self._counts[graph] += 1
        return f"{graph} {self._counts[graph]}"

    def _landing(self, start: Callable[[], Plan[Any]], event: Event) -> Flow[Any]:
        name = self._name(event)
        self.before(name)

        def plan() -> Plan[Any]:
            self.inside(name)
            result = yield from start()
            self.at_the_end(name)
            return result

        result = yield from super()._landing(plan, event)
        self.after(name)
        return result


def happened(events: dict[str, threading.Event], name: str) -> None:
    assert events[name].wait(PATIENCE), f"{name} never came"


def signals(*names: str) -> dict[str, threading.Event]:
    return {name: threading.Event() for name in names}


def test_a_result_waits_for_the_checkpoint_that_it_rests_on(memory: MemoryStore) -> None:
    saver, done, seen = Ordered(memory), signals("result"), {}

    def after(name: str) -> None:
        seen[name] = outside(lambda: contents(memory))
        if name in done:
            done[name].set()

    saver.before = lambda name: happened(done, "result") if name == "outer 2" else None
    saver.after = after
    app = line(memory, lambda state: {"said": [say(memory, "late")]}, saver=saver)
    said = app.invoke({}, CONFIG, durability="async")["said"]
    assert seen["result"] == []
    assert seen["outer 2"] == said
    assert contents(memory) == said
    ran_on = list(app.get_state_history(CONFIG))[1]
    assert contents(memory, as_of=ran_on.config) == [], "what a step did follows what it ran on"
    assert_in_step(memory)


def test_a_result_that_is_being_stored_does_not_hide_one_that_is(tmp_path: Path) -> None:
    """Where writers hold no locks: the next checkpoint inside has noted that it has the result, and stands still."""
    memory = REDIS.open(tmp_path)
    register(memory)
    saver, done, seen = Ordered(memory), signals("result", "inner 3", "outer 2"), {}

    def before(name: str) -> None:
        if name in (waits := {"inner 3": "result", "outer 2": "inner 3"}):
            happened(done, waits[name])

    def at_the_end(name: str) -> None:
        if name == "inner 3" and not done[name].is_set():
            done[name].set()
            happened(done, "outer 2")

    def after(name: str) -> None:
        if name == "outer 2":
            seen["outside"] = outside(lambda: contents(memory))
        if name in done:
            done[name].set()

    saver.before, saver.at_the_end, saver.after = before, at_the_end, after
    inner = line(memory, lambda state: {"said": [say(memory, "inner")]})
    said = nested(inner.builder, saver).invoke({}, CONFIG, durability="async")["said"]
    assert seen["outside"] == said, "else it would be lost if the process died now"
    assert contents(memory) == said
    assert_in_step(memory)
    memory.close()


def test_a_result_waits_for_the_checkpoints_of_the_graphs_around_it(memory: MemoryStore) -> None:
    saver, done, seen = Ordered(memory), signals("result", "inner 2"), {}

    def before(name: str) -> None:
        if name == "outer 2":
            for each in done:
                happened(done, each)
            seen["inside"] = outside(lambda: contents(memory))

    def after(name: str) -> None:
        if name in done:
            done[name].set()
        if name == "outer 2":
            seen["outside"] = outside(lambda: contents(memory))

    saver.before, saver.after = before, after
    inner = line(memory, lambda state: {"said": [say(memory, "inner")]})
    said = nested(inner.builder, saver).invoke({}, CONFIG, durability="async")["said"]
    assert seen == {"inside": [], "outside": said}
    assert contents(memory) == said


def test_a_result_that_could_not_be_stored_lands_nothing(memory: MemoryStore) -> None:
    saver, done, seen = Ordered(memory), signals("result"), {}

    def fails(name: str) -> None:
        if name == "result":
            done["result"].set()
            raise StorageError("the disk is full")

    def after(name: str) -> None:
        seen[name] = outside(lambda: contents(memory))

    saver.before = lambda name: happened(done, "result") if name == "outer 2" else None
    saver.at_the_end, saver.after = fails, after
    app = line(memory, lambda state: {"said": [say(memory, "lost")]}, saver=saver)
    with pytest.raises(StorageError, match="full"):
        app.invoke({}, CONFIG, durability="async")
    assert seen["outer 2"] == [], "the checkpoint that it ran on does not contain it"
    assert contents(memory) == app.get_state(CONFIG).values["said"], "the next one does, if it was stored"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["it alone waits", "something waits elsewhere"])
def test_a_result_is_seen_by_a_checkpoint_that_began_before_it(memory: MemoryStore, elsewhere: bool) -> None:
    """Writers take turns from their first question or write on only."""
    saver, done, came_first, seen = Ordered(memory), signals("outer 2", "result"), [], {}

    def inside(name: str) -> None:
        if name == "outer 2":
            done["outer 2"].set()
            came_first.append(done["result"].wait(1))

    def after(name: str) -> None:
        if name == "result":
            done["result"].set()
        seen[name] = outside(lambda: contents(memory))

    def writes(state: State) -> State:
        happened(done, "outer 2")
        return {"said": [say(memory, "x")]}

    saver.inside, saver.after = inside, after
    app = line(memory, writes, saver=saver)
    if elsewhere:
        STAGES.by_thread["another storage", "t"] = []
    try:
        said = app.invoke({}, CONFIG, durability="async")["said"]
    finally:
        STAGES.by_thread.pop(("another storage", "t"), None)
    assert contents(memory) == said
    assert came_first[0]
    assert seen["outer 2"] == said


def test_a_result_and_the_next_checkpoint_land_it_once(memory: MemoryStore) -> None:
    """Both are on their way: the second one finds what the first one landed still on its stage."""
    saver = Ordered(memory)

    def writes(state: State) -> State:
        return {"said": [say(memory, "once")]}

    def during(name: str) -> None:
        if name == "result":
            stages = stages_of(memory)
            for stage in stages:  # what the other one does, before this one has told anybody that it landed
                perform(landing_again(stage), memory.storage)

    def landing_again(stage: Any) -> Flow[None]:
        def plan() -> Plan[None]:
            yield from Pool("t")  # takes its turn
            yield from stage.owner.land(stage)

        yield Work(plan, write=True)

    saver.before = during
    said = line(memory, writes, saver=saver).invoke({}, CONFIG, durability="sync")["said"]
    assert contents(memory) == said
    assert len(memory.log()) == 1


def stages_of(memory: MemoryStore) -> Sequence[Stage]:
    return STAGES.of_thread(memory.storage.identity, "t")


def test_a_result_with_an_error_beside_it_lands(memory: MemoryStore) -> None:
    """So LangGraph stores it when a run is cancelled as the task returns; it does not run that task again."""

    class Cancelled(MemStateCheckpointer):
        def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            beside = [*writes, ("__error__", "cancelled")] if "said" in dict(writes) else writes
            super().put_writes(config, beside, task_id, task_path)

    app = line(memory, lambda state: {"said": [say(memory, "x")]}, saver=Cancelled(memory))
    app.invoke({}, CONFIG, durability="sync", interrupt_after=["n0"])
    assert len(contents(memory)) == 1
    assert not stages_of(memory)


def test_what_a_cancelled_run_still_stores_concerns_only_its_own(memory: MemoryStore) -> None:
    """The next run may be at the same task by then."""
    late: list[Callable[[], None]] = []

    class Late(MemStateCheckpointer):
        def put_writes(self, config: Any, writes: Any, task_id: str, task_path: str = "") -> None:
            def call() -> None:
                super(Late, self).put_writes(config, writes, task_id, task_path)

            if late or "__error__" not in dict(writes):
                call()
            else:
                late.append(call)

    def writes(state: State) -> State:
        content = say(memory, "x")
        if not late:
            raise RuntimeError("boom")
        outside(late[0])
        return {"said": [content]}

    app = line(memory, writes, saver=Late(memory))
    with pytest.raises(RuntimeError):
        app.invoke({}, CONFIG, durability="sync")
    said = app.invoke(None, CONFIG, durability="sync")["said"]
    assert contents(memory) == said


# --- neighbours


@pytest.mark.parametrize("durability", DURABILITIES)
def test_neighbours_land_side_by_side_and_do_not_see_each_other(memory: MemoryStore, durability: Durability) -> None:
    all_said = threading.Barrier(4)

    def work(state: Any) -> State:
        before = contents(memory)
        content = say(memory, f"{state['number']}")
        all_said.wait(PATIENCE)
        seen = contents(memory)
        all_said.wait(PATIENCE)
        return {"said": [content], "seen": [seen == [*before, content]]}

    graph = StateGraph(State)
    graph.add_node("work", work)
    graph.add_conditional_edges(START, lambda _: [Send("work", {"number": i}) for i in range(4)], ["work"])
    app = graph.compile(checkpointer=MemStateCheckpointer(memory))
    for turn in range(1, 4):
        end = app.invoke({}, CONFIG, durability=durability)
        assert end["seen"] == [True] * 4 * turn
        assert sorted(contents(memory)) == sorted(end["said"])
    assert_in_step(memory)


@pytest.mark.parametrize("durability", DURABILITIES)
def test_a_failing_neighbour_in_a_subgraph_takes_nothing(memory: MemoryStore, durability: Durability) -> None:
    broken, done = True, threading.Event()

    def good(state: State) -> State:
        content = say(memory, "good")
        done.set()
        return {"said": [content]}

    def bad(state: State) -> State:
        content = say(memory, "bad")
        if broken:
            done.wait(PATIENCE)
            raise RuntimeError("boom")
        return {"said": [content]}

    inner = StateGraph(State)
    for node in (good, bad):
        inner.add_node(node.__name__, node)
        inner.add_edge(START, node.__name__)
    app = nested(inner, MemStateCheckpointer(memory))
    with pytest.raises(RuntimeError):
        app.invoke({}, CONFIG, durability=durability)
    assert [content.split()[0] for content in contents(memory)] in ([], ["good"])
    broken = False
    said = app.invoke(None, CONFIG, durability=durability)["said"]
    assert sorted(contents(memory)) == sorted(said)
    assert [content.split()[0] for content in sorted(said)] == ["bad", "good"]


# --- what is decided again


def test_two_who_prepare_it_again_land_it_once(memory: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result and the next checkpoint both find a vector missing; one of them is slower."""
    memory.commit(note("one", "a"))
    saver, both, done, came = Ordered(memory), threading.Barrier(2), signals("outer 2", "landed"), itertools.count()
    prepare_again = Core.prepare_again

    def in_turn(core: Core, stage: Stage) -> Flow[None]:
        slower = next(came)
        both.wait(PATIENCE)
        if slower:
            happened(done, "landed")
        yield from prepare_again(core, stage)

    def works(state: State) -> State:
        memory.update("a", {"content": "two"}, expected_version=1)
        for stage in stages_of(memory):
            stage.prepared.clear()
        return {"said": ["two"]}

    monkeypatch.setattr(Core, "prepare_again", in_turn)
    saver.before = lambda name: happened(done, "outer 2") if name in ("result", "outer 3") else None
    signal = {"outer 2": "outer 2", "result": "landed", "outer 3": "landed"}
    saver.after = lambda name: done[signal[name]].set() if name in signal else None
    line(memory, works, saver=saver).invoke({}, CONFIG, durability="async")
    assert contents(memory) == ["two"]
    assert_in_step(memory)


def test_two_threads_of_a_task_see_each_other(memory: MemoryStore) -> None:
    """As tools do that a node calls side by side."""
    memory.commit(note("one", "a"))
    both = threading.Barrier(2)

    def meet(*change: Any) -> None:
        """Both have decided, and neither has put anything on the stage."""
        if not met.is_set():
            both.wait(PATIENCE)
            met.set()

    met = threading.Event()
    memory.add_hook(meet)
    failed: list[str] = []

    def change(content: str) -> None:
        try:
            memory.update("a", {"content": content}, expected_version=1)
        except ConflictError as error:
            failed.append(str(error))

    def works(state: State) -> State:
        threads = [threading.Thread(target=copy_context().run, args=(change, text)) for text in ("mine", "yours")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"seen": [list(failed)]}

    (seen,) = line(memory, works).invoke({}, CONFIG)["seen"]
    assert len(seen) == 1
    assert "expected version 1" in seen[0]
    assert contents(memory) in (["mine"], ["yours"])


def test_what_another_changed_meanwhile_is_embedded_as_it_lands(memory: MemoryStore, vectors: Unreliable) -> None:
    memory.commit(note("before", "a"))

    def writes(state: State) -> State:
        memory.update("a", {"stars": 5})
        outside(lambda: memory.update("a", {"content": "theirs"}))
        return {}

    line(memory, writes).invoke({}, CONFIG)
    fact = memory.get("a")
    assert fact is not None
    assert (fact.payload["content"], fact.payload["stars"]) == ("theirs", 5)
    memory.repair()
    assert [held["text"] for held in vectors.store.values()] == ["theirs"]


def test_a_veto_has_its_say_about_what_lands(memory: MemoryStore) -> None:
    memory.commit(note("before", "a"))

    def veto(operation: Any, fact_id: str, fact: Fact) -> None:
        if fact.source == "theirs" and fact.payload["content"] == "mine":
            raise ValueError("not both")

    memory.add_hook(veto)

    def writes(state: State) -> State:
        memory.update("a", {"content": "mine"})
        outside(lambda: memory.commit(note("before", "a", source="theirs")))  # its text stays what was prepared
        return {}

    with pytest.raises(HookError, match="not both"):
        line(memory, writes).invoke({}, CONFIG)
    fact = memory.get("a")
    assert fact is not None
    assert (fact.payload["content"], fact.source) == ("before", "theirs")
    assert_in_step(memory)
