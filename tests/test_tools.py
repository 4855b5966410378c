"""The memory tools, called as a model calls them: through a graph, on every storage and both doors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from langchain.agents import create_agent
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from pydantic import BaseModel, Field

from memstate_langgraph import Constraint, Fact, MemoryStore, Operation, ValidationFailed, create_memory_tools
from tests.stores import PLACES, Place, Unreliable, assert_in_step, hook_over, texts


class Note(BaseModel):
    """Something worth keeping."""

    content: str = Field(description="one sentence")
    stars: int = Field(default=0, le=5)


class Preference(BaseModel):
    topic: str
    content: str


class Law(BaseModel):
    content: str


class Secret(BaseModel):
    content: str


class Killed(BaseException):
    """Ends a run in the middle of a step."""


class Desk:
    """A graph of one ToolNode over a memory, and a way to call its tools."""

    def __init__(self, memory: MemoryStore, *, awaits: bool, vectors: Unreliable) -> None:
        self.memory, self.vectors = memory, vectors
        self.store: Any = getattr(memory, "_store", memory)
        self._runner = getattr(memory, "_runner", None)
        self.awaits = awaits or self._runner is not None
        self.tools = create_memory_tools(self.store, types=["note", "preference", "law"])
        self.kill_after_tools = False
        self.app = self.graph(self.tools)

    def graph(self, tools: Sequence[BaseTool], *, saved: bool = True) -> Any:
        graph = StateGraph(MessagesState)

        def perhaps_killed(state: MessagesState) -> MessagesState:
            if self.kill_after_tools:
                raise Killed
            return state

        graph.add_node("tools", ToolNode(tools) | perhaps_killed)
        graph.set_entry_point("tools")
        return graph.compile(checkpointer=InMemorySaver() if saved else None)

    def run(self, app: Any, given: Any, config: RunnableConfig) -> Any:
        if not self.awaits:
            return app.invoke(given, config)
        return self._runner.run(app.ainvoke(given, config)) if self._runner else asyncio.run(app.ainvoke(given, config))

    def calls(self, *calls: tuple[str, Any], app: Any = None, **configurable: Any) -> list[ToolMessage]:
        made = [
            {"name": name, "args": args, "id": f"call-{i}", "type": "tool_call"} for i, (name, args) in enumerate(calls)
        ]
        config: RunnableConfig = {"configurable": {"thread_id": "t", "user_id": "ana", **configurable}}
        result = self.run(app or self.app, {"messages": [AIMessage("", tool_calls=made)]}, config)
        return cast("list[ToolMessage]", result["messages"][-len(calls) :])

    def call(self, name: str, args: Any = None, **configurable: Any) -> str:
        (message,) = self.calls((name, args or {}), **configurable)
        assert message.status == "success", message.content
        return str(message.content)

    def refused(self, name: str, args: Any = None, **configurable: Any) -> str:
        before = len(self.memory.log())
        (message,) = self.calls((name, args or {}), **configurable)
        assert message.status == "error", message.content
        assert len(str(message.content)) <= 600
        assert len(self.memory.log()) == before
        return str(message.content)

    def replayed(self, *calls: tuple[str, Any], **configurable: Any) -> list[str]:
        """Make calls, die before the graph hears of them, and resume."""
        self.kill_after_tools = True
        with pytest.raises(Killed):
            self.calls(*calls, **configurable)
        self.kill_after_tools = False
        config: RunnableConfig = {"configurable": {"thread_id": "t", "user_id": "ana", **configurable}}
        messages = self.run(self.app, None, config)["messages"][-len(calls) :]
        assert [message.status for message in messages] == ["success"] * len(calls), messages
        return [str(message.content) for message in messages]

    def remember(self, content: str, **configurable: Any) -> str:
        said = self.call("remember", {"fact": {"type": "note", "content": content}}, **configurable)
        return said.removeprefix("Remembered as ").removesuffix(".")


DOORS = [(place, False) for place in PLACES] + [(place, True) for place in PLACES if "async" not in place.name]


@pytest.fixture(params=DOORS, ids=[place.name + (", ainvoke" if awaits else "") for place, awaits in DOORS])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    place, awaits = request.param
    yield from _desk(place, awaits, tmp_path)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Desk]:
    """For what does not depend on storage or door."""
    yield from _desk(PLACES[0], False, tmp_path)


def _desk(place: Place, awaits: bool, folder: Path) -> Iterator[Desk]:
    vectors = Unreliable()
    memory = place.open(folder, [hook_over(vectors, metadata_fields=[])])
    memory.register_schema("note", Note)
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    memory.register_schema("law", Law, Constraint(immutable=True))
    memory.register_schema("secret", Secret)
    yield Desk(memory, awaits=awaits, vectors=vectors)
    assert_in_step(memory)
    memory.close()


# --- what they do


def test_a_fact_is_remembered_recalled_updated_forgotten_and_restored(desk: Desk) -> None:
    fact_id = desk.remember("tea is green")
    assert f'[{fact_id}] note: {{"content":"tea is green","stars":0}} (score ' in desk.call("recall", {"query": "tea"})
    assert desk.call("update", {"fact_id": fact_id, "changes": {"stars": 5}}) == f"Updated {fact_id}."
    fact = desk.memory.get(fact_id)
    assert fact is not None
    assert fact.payload == {"content": "tea is green", "stars": 5}
    assert (fact.namespace, fact.session_id) == (("memories", "ana"), "t")
    assert desk.call("forget", {"fact_id": fact_id}) == f"Forgot {fact_id}."
    assert desk.call("recall", {"query": "tea"}) == "Nothing is remembered about that."
    assert fact_id in desk.call("undo", {"steps": 2})
    assert desk.memory.get(fact_id).payload == {"content": "tea is green", "stars": 0}  # type: ignore[union-attr]
    assert fact_id in desk.call("undo")
    assert desk.call("undo") == "There was nothing to take back."
    assert desk.memory.query() == []


def test_a_singleton_is_replaced(desk: Desk) -> None:
    for content in ("tea", "coffee"):
        desk.call("remember", {"fact": {"type": "preference", "topic": "drink", "content": content}})
    assert list(texts(desk.memory).values()) == ["coffee"]


def test_the_log_says_which_call_made_a_change(desk: Desk) -> None:
    desk.remember("tea")
    (entry,) = desk.memory.log()
    assert entry.actor == "model"
    assert (entry.cause.thread_id, entry.cause.node, entry.cause.tool_call_id) == ("t", "tools", "call-0")
    assert entry.cause.task_id


def test_parallel_calls_of_one_step_each_take_effect(desk: Desk) -> None:
    calls = [("remember", {"fact": {"type": "note", "content": f"fact {i}"}}) for i in range(6)]
    messages = desk.calls(*calls)
    assert {message.status for message in messages} == {"success"}
    assert sorted(texts(desk.memory).values()) == [f"fact {i}" for i in range(6)]


def test_calls_that_share_an_id_are_told_apart_by_their_arguments(plain: Desk) -> None:
    made = [
        {"name": "remember", "args": {"fact": {"type": "note", "content": content}}, "id": call_id}
        for content, call_id in (("a", "same"), ("b", "same"), ("c", ""), ("d", ""))
    ]
    config: RunnableConfig = {"configurable": {"thread_id": "t", "user_id": "ana"}}
    plain.run(plain.app, {"messages": [AIMessage("", tool_calls=made)]}, config)
    assert sorted(texts(plain.memory).values()) == ["a", "b", "c", "d"]


# --- replay


def test_a_replayed_call_writes_once(desk: Desk) -> None:
    (said,) = desk.replayed(("remember", {"fact": {"type": "note", "content": "tea"}}))
    assert texts(desk.memory) == {said.removeprefix("Remembered as ").removesuffix("."): "tea"}
    assert len(desk.memory.log()) == 1


def test_a_replayed_update_forget_and_undo_happen_once(desk: Desk) -> None:
    kept, gone = desk.remember("kept"), desk.remember("gone")
    desk.replayed(("update", {"fact_id": kept, "changes": {"stars": 3}}), ("forget", {"fact_id": gone}))
    assert len(desk.memory.log()) == 4
    desk.replayed(("undo", {}))  # one of the two, and not the other as well
    assert [entry.op for entry in desk.memory.log()].count(Operation.ROLLBACK) == 1
    assert len(desk.memory.log()) == 5


# --- what a model gets wrong

NESTED: dict[str, Any] = {}
_inner = NESTED
for _ in range(500):
    _inner["a"] = {}
    _inner = _inner["a"]

MALFORMED: list[tuple[str, Any, str]] = [
    ("remember", {}, "fact: Field required"),
    ("remember", {"fact": None}, "fact: "),
    ("remember", {"fact": []}, "fact: "),
    ("remember", {"fact": "tea"}, "fact: "),
    ("remember", {"fact": 1}, "fact: "),
    ("remember", {"fact": '{"type": "note"}'}, "dictionary"),
    ("remember", {"fact": {}}, "type"),
    ("remember", {"fact": {"content": "tea"}}, "type"),
    ("remember", {"fact": {"type": "nonsense", "content": "tea"}}, "'note', 'preference', 'law'"),
    ("remember", {"fact": {"type": "secret", "content": "tea"}}, "'note', 'preference', 'law'"),
    ("remember", {"fact": {"type": "langgraph.checkpoint"}}, "'note'"),
    ("remember", {"fact": {"type": ["note"], "content": "tea"}}, "'note'"),
    ("remember", {"fact": {"type": "note"}}, "content: Field required"),
    ("remember", {"fact": {"type": "note", "content": {"text": "tea"}}}, "content: Input should be a valid string"),
    ("remember", {"fact": {"type": "note", "content": "tea", "stars": "many"}}, "stars: "),
    ("remember", {"fact": {"type": "note", "content": "tea", "stars": 6}}, "less than or equal to 5"),
    ("remember", {"fact": {"type": "note", "content": "a\x00b"}}, "NUL"),
    ("remember", {"fact": {"type": "note", "content": "\ud800"}}, "surrogate"),
    ("remember", {"fact": {"type": "\ud800"}}, "'note'"),
    ("remember", {"fact": {"type": "preference", "topic": "x" * 600, "content": "tea"}}, "singleton"),
    ("remember", {"fact": {"type": "note", "content": NESTED}}, "content"),
    ("remember", {"fact": {"type": "x" * 100_000}}, "fact: "),
    ("remember", {"x" * 100_000: 1}, "fact: Field required"),
    ("remember", {"fact": {"type": "note", "content": "tea"}, "user_id": "bob"}, "user_id: Extra"),
    ("remember", {"fact": {"type": "note", "content": "tea"}, "namespace": ["memories", "bob"]}, "namespace: Extra"),
    ("remember", {"fact": {"type": "note", "content": "tea"}, "config": {"configurable": {"user_id": "b"}}}, "config"),
    ("remember", {"fact": {"type": "note", "content": "tea"}, "tool_call_id": "x"}, "tool_call_id: Extra"),
    ("recall", {}, "query: Field required"),
    ("recall", {"query": ""}, "query: "),
    ("recall", {"query": "  "}, "query"),
    ("recall", {"query": 7}, "query: "),
    ("recall", {"query": "\ud800"}, "unicode"),
    ("recall", {"query": "tea", "limit": 0}, "limit: "),
    ("recall", {"query": "tea", "limit": 10**30}, "limit: "),
    ("recall", {"query": "tea", "type": "secret"}, "type: "),
    ("recall", {"query": "tea", "namespace": ["memories", "bob"]}, "namespace: Extra"),
    ("update", {"fact_id": "it", "changes": {}}, "empty"),
    ("update", {"fact_id": "it", "changes": {"stars": 1, "colour": "red"}}, "colour: Extra"),
    ("update", {"fact_id": "it", "changes": {"topic": "x"}}, "has no field topic; its fields are content, stars"),
    ("update", {"fact_id": "it", "changes": {"content": None}}, "content: "),
    ("update", {"fact_id": "it", "changes": {"stars": 6}}, "stars"),
    ("update", {"fact_id": "it", "changes": "stars=1"}, "changes: "),
    ("update", {"fact_id": "it", "changes": [1]}, "changes: "),
    ("update", {"fact_id": "it"}, "changes: Field required"),
    ("update", {"fact_id": "nobody", "changes": {"stars": 1}}, "no live fact with id 'nobody'; recall gives"),
    ("update", {"fact_id": 7, "changes": {"stars": 1}}, "fact_id: "),
    ("forget", {"fact_id": "nobody"}, "no live fact with id 'nobody'; recall gives"),
    ("forget", {"fact_id": ""}, "fact_id"),
    ("forget", {"fact_id": "x" * 100_000}, "fact_id"),
    ("forget", {"fact_id": ["it"]}, "fact_id: "),
    ("forget", {"fact_id": "a\x00"}, "NUL"),
    ("forget", {}, "fact_id: Field required"),
    ("undo", {"steps": 0}, "steps: "),
    ("undo", {"steps": -1}, "steps: "),
    ("undo", {"steps": "all"}, "steps: "),
    ("undo", {"steps": 10**30}, "steps: "),
    ("undo", {"session_id": "u"}, "session_id: Extra"),
]


@pytest.mark.parametrize("awaits", [False, True], ids=["invoke", "ainvoke"])
def test_a_malformed_call_comes_back_as_a_message_that_says_what_to_correct(tmp_path: Path, awaits: bool) -> None:
    for desk in _desk(PLACES[0], awaits, tmp_path):
        desk.app = desk.graph(desk.tools, saved=False)  # no serializer takes what some of these calls hold
        fact_id = desk.remember("tea")
        for name, args, hint in MALFORMED:
            if args.get("fact_id") == "it":
                args = {**args, "fact_id": fact_id}
            said = desk.refused(name, args)
            assert hint in said, (name, said)
            said.encode()


def test_a_tool_that_does_not_exist_is_a_message(plain: Desk) -> None:
    assert "remember" in plain.refused("memorise", {"fact": "tea"})


def test_immutable_facts_stay_and_the_model_hears_why(desk: Desk) -> None:
    said = desk.call("remember", {"fact": {"type": "law", "content": "no"}})
    fact_id = said.removeprefix("Remembered as ").removesuffix(".")
    assert "mmutable" in desk.refused("update", {"fact_id": fact_id, "changes": {"content": "yes"}})
    assert "mmutable" in desk.refused("forget", {"fact_id": fact_id})


def test_an_outage_is_a_message_and_the_same_call_works_afterwards(desk: Desk) -> None:
    args = {"fact": {"type": "note", "content": "tea"}}
    desk.vectors.mood = "down"
    assert "try again later" in desk.refused("remember", args)
    if desk.store is desk.memory:  # the async search of this vector store is never down
        assert "try again later" in desk.refused("recall", {"query": "tea"})
    desk.vectors.mood = "ok"
    desk.call("remember", args)
    assert "tea" in desk.call("recall", {"query": "tea"})


def test_a_veto_is_a_message_with_its_reason(desk: Desk) -> None:
    def polite(operation: Operation, fact_id: str, fact: Fact) -> None:
        if "damn" in fact.payload["content"]:
            raise ValueError("mind your language")

    desk.memory.add_hook(polite)
    assert "mind your language" in desk.refused("remember", {"fact": {"type": "note", "content": "damn"}})
    desk.remember("dear")


def test_a_store_without_vectors_can_remember_but_says_that_it_cannot_search(tmp_path: Path) -> None:
    memory = PLACES[0].open(tmp_path)
    memory.register_schema("note", Note)
    remember, recall, *_ = create_memory_tools(memory)
    config: RunnableConfig = {"configurable": {"thread_id": "t", "user_id": "ana"}}
    assert "Remembered" in remember.invoke({"fact": {"content": "tea"}}, config)
    assert "no vector hook" in recall.invoke({"query": "tea"}, config)


# --- scope

EVERY: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
    ("remember", lambda _: {"fact": {"type": "note", "content": "mine"}}),
    ("recall", lambda _: {"query": "tea"}),
    ("update", lambda fact_id: {"fact_id": fact_id, "changes": {"stars": 1}}),
    ("forget", lambda fact_id: {"fact_id": fact_id}),
    ("undo", lambda _: {}),
]


@pytest.mark.parametrize("user_id", [None, "", " "])
def test_without_a_user_every_tool_refuses(desk: Desk, user_id: str | None) -> None:
    fact_id = desk.remember("tea")
    for name, args in EVERY:
        assert "configurable'][\"user_id" in desk.refused(name, args(fact_id), user_id=user_id).replace(
            "'user", '"user'
        )


def test_without_a_thread_nothing_is_written(plain: Desk) -> None:
    fact_id = plain.remember("tea")
    for tool, (name, args) in zip(plain.tools, EVERY, strict=True):
        said = tool.invoke(args(fact_id), {"configurable": {"user_id": "ana"}})
        assert ("thread_id" in said) == (name != "recall")
    assert len(plain.memory.log()) == 1


@pytest.mark.parametrize("other", [{"user_id": "bob"}, {"user_id": "{user_id}"}, {"user_id": "ana/x"}])
def test_a_neighbours_facts_do_not_exist(desk: Desk, other: dict[str, str]) -> None:
    fact_id = desk.remember("tea is green")
    assert desk.call("recall", {"query": "tea is green"}, **other) == "Nothing is remembered about that."
    for name, args in (("update", {"changes": {"stars": 1}}), ("forget", {})):
        refused = desk.refused(name, {"fact_id": fact_id, **args}, **other)
        assert refused == desk.refused(name, {"fact_id": "0" * 36, **args}, **other).replace("0" * 36, fact_id)
    assert "not undone" in desk.refused("undo", **other)  # in the same thread, even
    assert desk.call("undo", thread_id="u", **other) == "There was nothing to take back."
    assert texts(desk.memory) == {fact_id: "tea is green"}


@pytest.mark.parametrize("name", ["update", "forget"])
def test_what_was_looked_at_is_what_changes(plain: Desk, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def get_then_a_neighbour_is_faster(fact_id: str) -> Fact | None:
        found = MemoryStore.get(plain.memory, fact_id)
        theirs = Fact(id=fact_id, type="note", payload={"content": "bob's"}, namespace=("memories", "bob"))
        plain.memory.commit(theirs, session_id="u")
        return found

    monkeypatch.setattr(plain.store, "get", get_then_a_neighbour_is_faster)
    args = {"fact_id": "a", "changes": {"stars": 1}} if name == "update" else {"fact_id": "a"}
    (message,) = plain.calls((name, args))
    assert message.status == "error"
    assert [entry.session_id for entry in plain.memory.log()] == ["u"]


def test_a_singleton_of_a_neighbour_is_another_fact(desk: Desk) -> None:
    for user in ("ana", "bob"):
        desk.call("remember", {"fact": {"type": "preference", "topic": "drink", "content": user}}, user_id=user)
    assert sorted(texts(desk.memory).values()) == ["ana", "bob"]


def test_only_the_given_types_can_be_touched(desk: Desk) -> None:
    fact = Fact(type="secret", payload={"content": "tea"}, namespace=("memories", "ana"))
    fact_id = desk.memory.commit(fact, session_id="t")
    assert desk.call("recall", {"query": "tea"}) == "Nothing is remembered about that."
    assert "no live fact" in desk.refused("update", {"fact_id": fact_id, "changes": {"content": "x"}})
    assert "no live fact" in desk.refused("forget", {"fact_id": fact_id})
    assert "not undone" in desk.refused("undo")
    assert "not undone" in desk.refused("undo", {"steps": 5})


def test_undo_stays_within_its_thread(desk: Desk) -> None:
    desk.remember("in another thread", thread_id="u")
    fact_id = desk.remember("here")
    assert fact_id in desk.call("undo", {"steps": 20})
    assert list(texts(desk.memory).values()) == ["in another thread"]


def test_undo_does_not_lose_a_later_change_of_another_thread(desk: Desk) -> None:
    fact_id = desk.remember("tea")
    desk.call("update", {"fact_id": fact_id, "changes": {"stars": 1}}, thread_id="u")
    assert "changed later" in desk.refused("undo")


# --- what a model is shown


def schemas(tools: Sequence[BaseTool]) -> dict[str, Any]:
    return {tool.name: convert_to_openai_tool(tool)["function"]["parameters"] for tool in tools}


def test_a_model_sees_the_real_fields_and_nothing_that_is_not_its_business(plain: Desk) -> None:
    shown = schemas(plain.tools)
    assert {name: list(each["properties"]) for name, each in shown.items()} == {
        "remember": ["fact"],
        "recall": ["query", "limit", "type"],
        "update": ["fact_id", "changes"],
        "forget": ["fact_id"],
        "undo": ["steps", "call", "this_turn", "dry_run"],
    }
    note, preference, law = shown["remember"]["properties"]["fact"]["anyOf"]
    assert note["properties"]["type"]["const"] == "note"
    assert note["properties"]["content"]["description"] == "one sentence"
    assert sorted(note["required"]) == ["content", "type"]
    assert sorted(preference["required"]) == ["content", "topic", "type"]
    assert law["properties"]["type"]["const"] == "law"
    changes = shown["update"]["properties"]["changes"]
    assert set(changes["properties"]) == {"content", "stars", "topic"}
    assert "required" not in changes
    text = json.dumps(shown)
    assert "$ref" not in text
    for word in ("config", "user_id", "thread", "memory", "tool_call_id", "secret"):
        assert word not in text


def test_with_one_type_a_model_need_not_name_it(plain: Desk) -> None:
    tools = create_memory_tools(plain.store, types=["law"])
    assert schemas(tools)["remember"]["properties"]["fact"]["required"] == ["content"]
    plain.calls(("remember", {"fact": {"content": "x"}}), app=plain.graph(tools))
    assert [fact.type for fact in plain.memory.query()] == ["law"]


def test_models_that_share_a_class_name_stay_apart(plain: Desk) -> None:
    first, second = (type("Item", (BaseModel,), {"__annotations__": {name: str}}) for name in ("one", "two"))
    plain.memory.register_schema("first", first)
    plain.memory.register_schema("second", second)
    tools = create_memory_tools(plain.store, types=["first", "second"])
    shown = schemas(tools)["remember"]["properties"]["fact"]["anyOf"]
    assert [list(each["properties"]) for each in shown] == [["one", "type"], ["two", "type"]]


def test_what_is_recalled_is_short_however_large_the_facts(plain: Desk) -> None:
    for i in range(30):
        plain.remember(f"tea {i} " + "x" * 20_000)
    said = plain.call("recall", {"query": "tea", "limit": 20})
    assert said.count("\n") <= 19
    assert len(said) <= 20 * 700


# --- misuse by the application


def test_tools_are_refused_at_once_if_they_could_not_work(plain: Desk) -> None:
    class Typed(BaseModel):
        type: str

    plain.memory.register_schema("typed", Typed)
    misuses: list[dict[str, Any]] = [
        {"types": []},
        {"types": ["nonsense"]},
        {"types": "note"},
        {"types": ["typed"]},
        {"namespace": "memories"},
        {"names": {"remind": "x"}},
    ]
    for wrong in misuses:
        with pytest.raises(ValidationFailed, match=next(iter(wrong)).removesuffix("s")):
            create_memory_tools(plain.store, **wrong)


def test_tools_can_be_renamed(plain: Desk) -> None:
    tools = create_memory_tools(plain.store, types=["note"], names={"recall": "search_memory"})
    assert [tool.name for tool in tools] == ["remember", "search_memory", "update", "forget", "undo"]


def test_an_async_store_in_a_sync_graph_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    (place,) = (place for place in PLACES if place.name == "memory, async")
    for desk in _desk(place, False, tmp_path):
        desk.awaits = False
        with pytest.raises(ValidationFailed, match="ainvoke"):
            desk.call("recall", {"query": "tea"})


# --- an agent


class Scripted(GenericFakeChatModel):
    """Says its lines, and keeps what it heard."""

    def bind_tools(self, tools: Any, **options: Any) -> Any:
        for tool in tools:
            convert_to_openai_tool(tool)
        return self


def test_an_agent_corrects_itself(desk: Desk) -> None:
    def called(name: str, **args: Any) -> AIMessage:
        return AIMessage("", tool_calls=[{"name": name, "args": args, "id": f"{name}-{len(args)}"}])

    lines: list[BaseMessage] = [
        called("remember", fact={"type": "preference", "content": "tea"}),
        called("remember", fact={"type": "preference", "topic": "drink", "content": "tea"}),
        called("forget", fact_id="nobody"),
        called("recall", query="tea"),
        AIMessage("You like tea."),
    ]
    agent = create_agent(Scripted(messages=iter(cast("Any", lines))), desk.tools, checkpointer=InMemorySaver())
    config: RunnableConfig = {"configurable": {"thread_id": "t", "user_id": "ana"}}
    messages = desk.run(agent, {"messages": [HumanMessage("I like tea")]}, config)["messages"]
    told = [message for message in messages if isinstance(message, ToolMessage)]
    assert [message.status for message in told] == ["error", "success", "error", "success"]
    assert "topic: Field required" in told[0].content
    assert "tea" in told[3].content
    assert messages[-1].content == "You like tea."
    assert list(texts(desk.memory).values()) == ["tea"]
