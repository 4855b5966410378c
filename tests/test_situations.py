"""What a graph remembers is what its state says, wherever the memory was written and whatever went wrong there."""

from __future__ import annotations

import asyncio
import itertools
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import StructuredTool
from langgraph.func import entrypoint, task
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Command, Send, interrupt

from memstate_langgraph import AsyncMemoryStore, AsyncSQLiteStorage, MemoryStore, MemStateCheckpointer, SQLiteStorage
from memstate_langgraph.staging import STAGES
from tests.graphs import AGAIN, CONFIG, DURABILITIES, Durability, State, contents, found, line, outside, say
from tests.models import note
from tests.stores import Unreliable, assert_in_step, hook_over
from tests.test_ecosystem import Scripted, calls


@dataclass
class Situation:
    """What steps of a graph do; the one called `hard` runs into trouble once it has written to memory."""

    memory: Any
    trouble: str
    awaited: bool
    tries: int = 0
    run: asyncio.Task[Any] | None = None

    @property
    def saver(self) -> MemStateCheckpointer:
        return MemStateCheckpointer(self.memory)

    @property
    def policy(self) -> Any:
        return AGAIN if self.trouble == "retry" else None

    def _hits(self, name: str) -> bool:
        """Whether it happens now, where it is not an exception."""
        if name != "hard":
            return False
        if self.trouble == "interrupt":
            interrupt("really?")
        self.tries += 1
        if self.trouble == "exception" and self.tries == 1:
            raise RuntimeError("boom")
        if self.trouble == "retry" and self.tries < 3:
            raise ValueError("again")
        return self.trouble == "cancel" and self.tries == 1

    def step(self, name: str) -> str:
        content = say(self.memory, name)
        if self._hits(name):
            raise KeyboardInterrupt
        return content

    async def astep(self, name: str) -> str:
        content = f"{name} {uuid.uuid4().hex}"
        await self.memory.commit(note(content))
        if self._hits(name):
            assert self.run is not None
            self.run.cancel()
            await asyncio.sleep(10)
        return content

    def node(self, *names: str) -> Any:
        def node(state: Any) -> State:
            return {"said": [self.step(name) for name in names or [state["name"]]]}

        async def anode(state: Any) -> State:
            return {"said": [await self.astep(name) for name in names or [state["name"]]]}

        return anode if self.awaited else node

    def tool(self) -> StructuredTool:
        def remember(name: str) -> str:
            """Remember something."""
            return self.step(name)

        async def aremember(name: str) -> str:
            """Remember something."""
            return await self.astep(name)

        given: Any = {"coroutine": aremember} if self.awaited else {"func": remember}
        return StructuredTool.from_function(**given, name="remember", description="Remember something.")


# --- where memory is written


def one_after_another(s: Situation) -> Any:
    nodes = (s.node("first", "second"), s.node("easy", "hard", "after"), s.node("last"))
    return line(s.memory, *nodes, saver=s.saver, retry_policy=s.policy)


def side_by_side(s: Situation) -> Any:
    graph = StateGraph(State)
    graph.add_node("plan", s.node("plan"))
    graph.add_node("work", s.node(), retry_policy=s.policy)
    graph.add_node("last", s.node("last"))
    graph.add_edge(START, "plan")
    sends = [Send("work", {"name": name}) for name in ("easy", "hard", "another")]
    graph.add_conditional_edges("plan", lambda _: sends, ["work"])
    graph.add_edge("work", "last")
    return graph.compile(checkpointer=s.saver)


def inner(s: Situation) -> Any:
    return line(s.memory, s.node("inner"), s.node("hard"), s.node("inner too"), retry_policy=s.policy).builder


def in_a_subgraph(s: Situation) -> Any:
    graph = StateGraph(State)
    graph.add_node("before", s.node("before"))
    graph.add_node("sub", inner(s).compile())
    graph.add_node("after", s.node("after"))
    for one, other in itertools.pairwise((START, "before", "sub", "after")):
        graph.add_edge(one, other)
    return graph.compile(checkpointer=s.saver)


def in_a_graph_that_a_node_calls(s: Situation) -> Any:
    app = inner(s).compile()

    def call(state: State) -> State:
        return {"said": [s.step("caller"), *app.invoke({"said": []})["said"]]}

    async def acall(state: State) -> State:
        return {"said": [await s.astep("caller"), *(await app.ainvoke({"said": []}))["said"]]}

    return line(s.memory, s.node("before"), acall if s.awaited else call, s.node("after"), saver=s.saver)


def in_functions(s: Situation) -> Any:
    with_policy: Any = task(retry_policy=s.policy)
    work, awork = with_policy(s.step), with_policy(s.astep)

    @entrypoint(checkpointer=s.saver)
    def main(given: State) -> State:
        both = [work("easy"), work("hard")]
        return {"said": [*(each.result() for each in both), s.step("main")]}

    @entrypoint(checkpointer=s.saver)
    async def amain(given: State) -> State:
        both = [awork("easy"), awork("hard")]
        return {"said": [*(await asyncio.gather(*both)), await s.astep("main")]}

    return amain if s.awaited else main


def in_tools_of_one_task(s: Situation) -> Any:
    graph = StateGraph(MessagesState)
    asks = calls(("remember", {"name": "easy"}), ("remember", {"name": "hard"}), ("remember", {"name": "another"}))
    graph.add_node("model", lambda state: {"messages": [asks]})
    graph.add_node("tools", ToolNode([s.tool()]), retry_policy=s.policy)
    graph.add_edge(START, "model")
    graph.add_edge("model", "tools")
    return graph.compile(checkpointer=s.saver)


class Decides(Scripted):
    """Calls tools, and is content with what they say."""

    def _generate(self, messages: Any, *args: Any, **options: Any) -> ChatResult:
        asks = calls(("remember", {"name": "easy"}), ("remember", {"name": "hard"}))
        answer = AIMessage("done") if isinstance(messages[-1], ToolMessage) else asks
        return ChatResult(generations=[ChatGeneration(message=answer)])


def in_an_agent(s: Situation) -> Any:
    return create_agent(Decides(messages=iter(())), [s.tool()], checkpointer=s.saver)


SHAPES: list[Callable[[Situation], Any]] = [
    one_after_another,
    side_by_side,
    in_a_subgraph,
    in_a_graph_that_a_node_calls,
    in_functions,
    in_tools_of_one_task,
    in_an_agent,
]
TROUBLES = ["exception", "retry", "interrupt", "cancel"]
DOORS = ["invoke", "stream", "ainvoke", "astream"]


def said_by(values: Any) -> list[str]:
    if "messages" in values:
        return sorted(str(message.content) for message in values["messages"] if isinstance(message, ToolMessage))
    return sorted(set(values["said"]))  # a subgraph gives back what it was given as well


async def go(situation: Situation, app: Any, door: str, given: Any, durability: Durability) -> None:
    called = getattr(app, door)(given, CONFIG, durability=durability)
    if door == "stream":
        for _ in called:
            pass
    elif situation.awaited:

        async def wait() -> None:
            if door == "ainvoke":
                await called
            else:
                async for _ in called:
                    pass

        situation.run = asyncio.ensure_future(wait())
        await situation.run


async def state_of(situation: Situation, app: Any) -> Any:
    return await app.aget_state(CONFIG) if situation.awaited else app.get_state(CONFIG)


def is_quick(door: str, durability: Durability) -> bool:
    return "invoke" in door or durability == "async"


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.__name__ for shape in SHAPES])
@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize(
    ("door", "durability"),
    [
        pytest.param(door, durability, marks=() if is_quick(door, durability) else pytest.mark.long)
        for door, durability in itertools.product(DOORS, DURABILITIES)
    ],
)
async def test_memory_is_what_the_state_says(
    tmp_path: Path, shape: Callable[[Situation], Any], trouble: str, door: str, durability: Durability
) -> None:
    if shape is in_an_agent and trouble == "retry":
        pytest.skip("an agent's tools have no retry policy")
    vectors, awaited = Unreliable(), door.startswith("a")
    hook = hook_over(vectors, grace=0.0, late=0.0)
    memory: Any
    if awaited:
        memory = AsyncMemoryStore(AsyncSQLiteStorage(tmp_path / "state.db"), [hook])
    else:
        memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook])
    onlooker = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook])
    situation = Situation(memory, trouble, awaited)
    app = shape(situation)
    given: Any = {"messages": [("user", "go")]} if shape in (in_an_agent, in_tools_of_one_task) else {"said": []}

    failures = {"exception": RuntimeError, "cancel": asyncio.CancelledError if awaited else KeyboardInterrupt}
    with suppress(failures.get(trouble, AssertionError)):
        await go(situation, app, door, given, durability)
        assert trouble in ("retry", "interrupt"), "the trouble has come"
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()}, return_exceptions=True)  # of a cancelled run
    assert all("hard" not in content for content in contents(onlooker)) or trouble == "retry"
    assert_in_step(onlooker)
    if trouble == "interrupt":
        await go(situation, app, door, Command(resume="yes"), durability)
    elif trouble != "retry":
        begun = (await state_of(situation, app)).created_at
        await go(situation, app, door, None if begun else given, durability)

    said = said_by((await state_of(situation, app)).values)
    assert [content.split()[0] for content in said].count("hard") == 1
    assert sorted(contents(onlooker)) == found(onlooker) == said
    assert_in_step(onlooker)
    if trouble == "cancel":
        STAGES.by_thread.clear()  # a run that is broken off cannot say so
    else:
        assert not STAGES.by_thread
        onlooker.repair()
        assert len(vectors.store) == len(said)
    onlooker.close()
    if awaited:
        await memory.close()
    else:
        memory.close()


@pytest.mark.parametrize("durability", DURABILITIES)
@pytest.mark.parametrize("reached", [True, False], ids=["with the context", "without"])
def test_in_a_thread_that_a_node_starts(graphs_memory: MemoryStore, durability: Durability, reached: bool) -> None:
    """The context does not reach such a thread unless it is given: without it, memory is written as outside."""
    broken = True

    def starts(state: State) -> State:
        if reached:
            thread = threading.Thread(target=copy_context().run, args=(say, graphs_memory, "thread"))
            thread.start()
            thread.join()
        else:
            outside(lambda: say(graphs_memory, "thread"))
        if broken:
            raise RuntimeError("boom")
        return {"said": ["done"]}

    app = line(graphs_memory, starts)
    with pytest.raises(RuntimeError):
        app.invoke({}, CONFIG, durability=durability)
    assert len(contents(graphs_memory)) == (0 if reached else 1)
    broken = False
    app.invoke(None, CONFIG, durability=durability)
    assert len(contents(graphs_memory)) == (1 if reached else 2)
