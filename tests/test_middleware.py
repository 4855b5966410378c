"""Recall in agents: `MemoryMiddleware` under `create_agent`, `RecallHook` under `create_react_agent`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.messages import AIMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.vectorstores import InMemoryVectorStore

from memstate_langgraph import (
    MemoryMiddleware,
    MemoryStore,
    MemStateCheckpointer,
    RecallHook,
    ScopeError,
    SQLiteStorage,
    ValidationFailed,
)
from tests.models import Note, note
from tests.stores import Words, hook_over
from tests.test_ecosystem import Scripted, ask, calls

ANA, BOB = ("memories", "ana"), ("memories", "bob")


class Recorded(Scripted):
    """Keeps what it was told."""

    seen: Any = None

    def _generate(self, messages: Any, *args: Any, **options: Any) -> Any:
        self.seen.append(list(messages))
        return super()._generate(messages, *args, **options)


@pytest.fixture
def memory(tmp_path: Path) -> Any:
    memory = MemoryStore(SQLiteStorage(tmp_path / "state.db"), [hook_over(InMemoryVectorStore(Words()))])
    memory.register_schema("note", Note)
    memory.commit(note("ana drinks green tea", namespace=ANA))
    memory.commit(note("bob drinks green beer", namespace=BOB))
    yield memory
    memory.close()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Any:
    async def through(app: Any, text: str, config: Any) -> Any:
        given = {"messages": [("user", text)]}
        return await app.ainvoke(given, config) if request.param == "async" else app.invoke(given, config)

    return through


def model(*said: AIMessage) -> Recorded:
    return Recorded(messages=iter([*said, *[AIMessage("done")] * 3]), seen=[])


async def test_what_is_recalled_goes_into_the_call_and_not_into_the_state(memory: MemoryStore, call: Any) -> None:
    chat = model(calls(("remember", {"fact": {"content": "ana drinks green coffee"}})))
    saver = MemStateCheckpointer(memory=memory)
    app = create_agent(chat, system_prompt="Be kind.", middleware=[MemoryMiddleware(memory)], checkpointer=saver)
    state = await call(app, "which green drinks?", ask("t", "ana"))
    before, after = (messages[0].text for messages in chat.seen)
    assert before.startswith("Be kind.\n\nWhat you remember")
    assert "green tea" in before
    assert "coffee" not in before
    assert "green tea" in after
    assert "green coffee" in after
    assert "bob" not in before + after
    assert [message.type for message in state["messages"]] == ["human", "ai", "tool", "ai"]
    assert len(memory.query("note", namespace=ANA)) == 2
    memory.rollback(1, session_id="t")
    assert len(memory.query("note", namespace=ANA)) == 1


async def test_without_matter_or_tools_the_agent_is_as_it_was(memory: MemoryStore, call: Any) -> None:
    chat = model()
    app = create_agent(chat, middleware=[MemoryMiddleware(memory, tools=False)])
    await call(app, "which green drinks?", ask("t", "nobody"))
    assert [message.type for message in chat.seen[0]] == ["human"]
    assert MemoryMiddleware(memory, tools=False).tools == []


async def test_a_budget_of_tokens_keeps_the_best_that_fit(memory: MemoryStore, call: Any) -> None:
    memory.commit(note("green " * 80, namespace=ANA))
    for n in range(6):
        memory.commit(note(f"a green thing of number {n}", namespace=ANA))
    told = []
    for budget in (30, 60, 10_000):
        chat = model()
        app = create_agent(chat, middleware=[MemoryMiddleware(memory, max_tokens=budget, limit=8)])
        await call(app, "green", ask("t", "ana"))
        system = [message for message in chat.seen[0] if isinstance(message, SystemMessage)]
        told.append(sum(message.text.count("\n- ") for message in system))
        assert count_tokens_approximately(system) <= budget
    assert 0 < told[0] < told[1] < told[2] == 8


async def test_a_counter_of_ones_own(memory: MemoryStore, call: Any) -> None:
    chat = model()
    app = create_agent(chat, middleware=[MemoryMiddleware(memory, max_tokens=1, count_tokens=lambda _: 2)])
    await call(app, "green", ask("t", "ana"))
    assert [message.type for message in chat.seen[0]] == ["human"]


async def test_no_user_no_memory(memory: MemoryStore, call: Any) -> None:
    app = create_agent(model(), middleware=[MemoryMiddleware(memory)])
    with pytest.raises(ScopeError, match="user_id"):
        await call(app, "green", {"configurable": {"thread_id": "t"}})


async def test_a_system_message_of_blocks_stays_one(memory: MemoryStore, call: Any) -> None:
    chat = model()
    blocks: Any = SystemMessage([{"type": "text", "text": "Be kind."}])
    await call(
        create_agent(chat, system_prompt=blocks, middleware=[MemoryMiddleware(memory)]), "green", ask("t", "ana")
    )
    first, second = chat.seen[0][0].content
    assert first["text"] == "Be kind."
    assert "green tea" in second["text"]


async def test_a_react_agent_recalls_through_a_hook(memory: MemoryStore, call: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from langgraph.prebuilt import create_react_agent

        chat = model()
        app = create_react_agent(chat, [], pre_model_hook=RecallHook(memory, max_tokens=100))
    state = await call(app, "green drinks", ask("t", "ana"))
    assert [message.type for message in chat.seen[0]] == ["system", "human"]
    assert "green tea" in chat.seen[0][0].text
    assert "bob" not in chat.seen[0][0].text
    assert [message.type for message in state["messages"]] == ["human", "ai"]


@pytest.mark.parametrize("options", [{"max_tokens": 0}, {"limit": -1}, {"types": "note"}, {"types": ["unknown"]}])
def test_bad_options_are_named(memory: MemoryStore, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationFailed, match=next(iter(options))):
        MemoryMiddleware(memory, **options)
