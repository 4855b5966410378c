"""An agent that remembers, dies, comes back, recalls, is corrected, forgets and rolls back.

Run it with `make demo`, or `python examples/quickstart.py`. It leaves its files in `demo-files/`: state.db holds
facts, log and graph state (open it with any SQLite tool), chroma/ the vectors.

The chat model is a real one when a key and its package are there (ANTHROPIC_API_KEY and langchain-anthropic, or
OPENAI_API_KEY and langchain-openai), else a scripted one that makes the same calls every time.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, Field
from rich.console import Console
from rich.table import Table

from memstate_langgraph import (
    Constraint,
    HookError,
    LocalEmbeddings,
    MemoryStore,
    MemStateCheckpointer,
    SQLiteStorage,
    VectorStoreSyncHook,
    create_memory_tools,
)

FILES = Path("demo-files")
CONFIG: RunnableConfig = {"configurable": {"thread_id": "chat-1", "user_id": "ana"}}
MINE = ("memories", "ana")


# --- what the agent may remember


class Preference(BaseModel):
    """Something the user likes or dislikes."""

    topic: str = Field(description="what it is about, one word; one preference is kept per topic")
    content: str = Field(description="the preference as a full sentence")
    feeling: Literal["likes", "dislikes"]


class UnreliableChroma(Chroma):
    """Chroma with a cable that can be pulled."""

    unplugged = False

    def add_documents(self, documents: list[Document], **options: Any) -> list[str]:
        if self.unplugged:
            raise ConnectionError("the vector store does not answer")
        return super().add_documents(documents, **options)


# --- the agent


def open_memory() -> tuple[MemoryStore, UnreliableChroma]:
    vectors = UnreliableChroma("memory", LocalEmbeddings(), persist_directory=str(FILES / "chroma"))
    memory = MemoryStore(SQLiteStorage(FILES / "state.db"), hooks=[VectorStoreSyncHook(vectors, text_field="content")])
    memory.register_schema("preference", Preference, Constraint(singleton_key="topic"))
    return memory, vectors


def build(memory: MemoryStore, *, die_after_tools: bool = False) -> Any:
    tools = create_memory_tools(memory)
    model = chat_model().bind_tools(tools)
    instructions = SystemMessage("You remember what the user tells you about preferences. Use your memory tools.")

    def agent(state: MessagesState) -> dict[str, list[AnyMessage]]:
        return {"messages": [model.invoke([instructions, *state["messages"]])]}

    run_tools = ToolNode(tools)

    def tools_then_die(state: MessagesState, config: RunnableConfig) -> Any:
        run_tools.invoke(state, config)  # the memory is written ...
        os.kill(os.getpid(), signal.SIGKILL)  # ... and the process is gone before the graph hears of it

    graph = StateGraph(MessagesState)
    graph.add_node("agent", agent)
    graph.add_node("tools", tools_then_die if die_after_tools else run_tools)
    graph.add_edge(START, "agent")
    graph.add_conditional_edges("agent", tools_condition)
    graph.add_edge("tools", "agent")
    return graph.compile(checkpointer=MemStateCheckpointer(memory=memory))


def say(app: Any, text: str | None) -> list[BaseMessage]:
    """One turn; None resumes what a killed process left."""
    asked = None if text is None else {"messages": [("user", text)]}
    before = len(app.get_state(CONFIG).values.get("messages", []))
    # durability "sync": a step's checkpoint is on disk before the next step begins
    result = app.invoke(asked, CONFIG, durability="sync")
    messages: list[BaseMessage] = result["messages"]
    return messages[before:]


# --- the model


def real_model() -> BaseChatModel | None:
    for key, package, name in (
        ("ANTHROPIC_API_KEY", "langchain_anthropic", "anthropic:claude-haiku-4-5"),
        ("OPENAI_API_KEY", "langchain_openai", "openai:gpt-5-mini"),
    ):
        if os.environ.get(key) and importlib.util.find_spec(package) and importlib.util.find_spec("langchain"):
            from langchain.chat_models import init_chat_model

            return init_chat_model(os.environ.get("DEMO_MODEL", name))
    return None


def chat_model() -> BaseChatModel:
    return real_model() or ScriptedModel()


def call(name: str, **arguments: Any) -> Callable[[str], AIMessage]:
    return lambda _: AIMessage("", tool_calls=[{"name": name, "args": arguments, "id": f"call-{os.urandom(4).hex()}"}])


def remember(**fields: str) -> Callable[[str], AIMessage]:
    return call("remember", fact={"type": "preference", **fields})


def forget_what_was_found(last: str) -> AIMessage:
    found = re.search(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", last)
    return call("forget", fact_id=found.group() if found else "")(last)


def answer(text: str) -> Callable[[str], AIMessage]:
    return lambda _: AIMessage(text)


class ScriptedModel(BaseChatModel):
    """Says what a model might say: for each thing the user says, a reply and one for each tool result."""

    script: ClassVar[dict[str, list[Callable[[str], AIMessage]]]] = {
        "I am a vegetarian.": [
            remember(topic="food", content="Ana is a vegetarian", feeling="likes"),
            answer("I will remember that you are a vegetarian."),
        ],
        "What could you cook for me tonight?": [
            call("recall", query="what does the user eat for dinner"),
            lambda last: AIMessage(f"I looked it up: {'no meat tonight' if 'vegetarian' in last else 'anything'}."),
        ],
        "And I can't stand loud places.": [
            # a model sends malformed arguments: a missing field, and a word that is not in the list
            remember(topic="places", feeling="hates"),
            remember(topic="places", content="Ana avoids loud places", feeling="dislikes"),
            answer("Noted: no loud places."),
        ],
        "Forget what I said about food.": [
            call("recall", query="food preference"),
            forget_what_was_found,
            answer("It is forgotten."),
        ],
        "No wait, undo that.": [call("undo"), answer("You are a vegetarian again.")],
    }

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **options: Any) -> Any:  # noqa: ARG002 -- it knows its lines
        return self

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        asked = max(i for i, message in enumerate(messages) if message.type == "human")
        step = sum(isinstance(message, AIMessage) for message in messages[asked:])
        reply = self.script[messages[asked].text][step](messages[-1].text)
        return ChatResult(generations=[ChatGeneration(message=reply)])


# --- what the reader sees

console = Console(width=110, highlight=False)


def show(memory: MemoryStore, app: Any) -> None:
    """The three that drift apart elsewhere, side by side."""
    facts = memory.query("preference", namespace=MINE)
    found = memory.search("what does Ana like or dislike?", limit=10, namespace=MINE)
    messages = app.get_state(CONFIG).values.get("messages", [])
    report = memory.verify()
    table = Table(show_header=True, header_style="bold", border_style="dim", expand=True)
    for title, width in (("graph state", 1), ("SQL facts", 2), ("found in Chroma", 2)):
        table.add_column(title, ratio=width)
    table.add_row(
        f"{len(messages)} messages",
        "\n".join(fact.payload["content"] for fact in facts) or "-",
        "\n".join(f"{hit.fact.payload['content']}  ({hit.score:.2f})" for hit in found) or "-",
    )
    console.print(table)
    console.print(f"  [dim]{len(memory.log())} log entries; verify(): {'in step' if report.ok else report}[/dim]\n")
    if not report.ok:
        raise SystemExit("SQL, log and vectors differ; this should never happen")


def tell(messages: list[BaseMessage]) -> None:
    for message in messages:
        if isinstance(message, ToolMessage):
            color = "red" if message.status == "error" else "green"
            console.print(f"  [{color}]{message.name}:[/{color}] {message.text}", markup=True)
        elif isinstance(message, AIMessage) and message.tool_calls:
            for made in message.tool_calls:
                console.print(f"  [cyan]model calls {made['name']}[/cyan] {made['args']}")
        else:
            console.print(f"  [bold]{message.type}:[/bold] {message.text}")


def scene(title: str) -> None:
    console.rule(f"[bold]{title}", align="left")


def main() -> None:
    shutil.rmtree(FILES, ignore_errors=True)
    FILES.mkdir()
    model = real_model()
    console.print(
        f"Chat model: {type(model).__name__}" if model else "Chat model: scripted (set a key for a real one, see above)"
    )

    scene("1. The agent remembers, and its process is killed before the graph knows")
    child = subprocess.run([sys.executable, __file__, "--child"], check=False)
    console.print(f"  the child process ended with {child.returncode} (killed) in the middle of a step\n")

    memory, vectors = open_memory()
    app = build(memory)
    console.print("  a new process looks at what is there:")
    show(memory, app)

    scene("2. It resumes: the step runs again, the fact is there once")
    tell(say(app, None))
    show(memory, app)

    scene("3. It recalls by meaning")
    tell(say(app, "What could you cook for me tonight?"))
    show(memory, app)

    scene("4. The model sends malformed arguments and is told how to correct them")
    tell(say(app, "And I can't stand loud places."))
    show(memory, app)

    scene("5. It forgets")
    tell(say(app, "Forget what I said about food."))
    show(memory, app)

    scene("6. It undoes that: SQL row and vector come back together")
    tell(say(app, "No wait, undo that."))
    show(memory, app)

    scene("7. The vector store fails: nothing is written anywhere, and the same call works later")
    travel = Preference(topic="travel", content="Ana prefers trains to planes", feeling="likes")
    vectors.unplugged = True
    try:
        memory.commit_model(travel, session_id="chat-1", namespace=MINE)
    except HookError as error:
        console.print(f"  [red]HookError:[/red] {error}")
    show(memory, app)
    vectors.unplugged = False
    memory.commit_model(travel, session_id="chat-1", namespace=MINE)
    show(memory, app)

    scene("8. Rollback: the last transaction is undone in SQL and in Chroma")
    memory.rollback(1)
    show(memory, app)

    console.print(f"The files are in {FILES.resolve()}: state.db (SQLite) and chroma/.")
    memory.close()


def child() -> None:
    memory, _ = open_memory()
    say(build(memory, die_after_tools=True), "I am a vegetarian.")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    child() if "--child" in sys.argv else main()
