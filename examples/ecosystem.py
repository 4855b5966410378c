"""langmem's tools and a deep agent's files on our store: one history, so one rollback takes both back.

Run it with `python examples/ecosystem.py`; it needs `langmem` and `deepagents`. The model is scripted, unless
`DEMO_MODEL` names a real one for `init_chat_model`, such as `openai:gpt-4.1-mini`, and its key is set.
"""

from __future__ import annotations

import os
from typing import Any

from deepagents import create_deep_agent
from deepagents.backends import CompositeBackend, StateBackend, StoreBackend
from langchain.chat_models import init_chat_model
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.vectorstores import InMemoryVectorStore
from langmem import create_manage_memory_tool, create_search_memory_tool

from memstate_langgraph import InMemoryStorage, ItemSyncHook, MemoryStore, MemStateCheckpointer, MemStateStore

vectors = InMemoryVectorStore(DeterministicFakeEmbedding(size=64))  # for a real agent: LocalEmbeddings()
memory = MemoryStore(InMemoryStorage(), [ItemSyncHook(vectors, ["content"])])
store = MemStateStore(memory)
NAMESPACE = ("memories", "{user_id}")
TOOLS = [create_manage_memory_tool(NAMESPACE), create_search_memory_tool(NAMESPACE)]
FILES = CompositeBackend(
    default=StateBackend(), routes={"/memories/": StoreBackend(namespace=lambda _: ("files", "ana"))}
)


class Scripted(GenericFakeChatModel):
    """Says its messages one after the other, whatever tools it is given."""

    def bind_tools(self, tools: Any, **_: Any) -> Any:  # noqa: ARG002 -- LangChain's signature
        return self


def calls(tool: str, **args: Any) -> AIMessage:
    return AIMessage("", tool_calls=[{"name": tool, "args": args, "id": tool}])


def say(text: str, *scripted: AIMessage) -> None:
    real = os.environ.get("DEMO_MODEL")
    model = init_chat_model(real) if real else Scripted(messages=iter([*scripted, AIMessage("Done.")]))
    agent: Any = create_deep_agent(model, TOOLS, backend=FILES, store=store, checkpointer=MemStateCheckpointer(memory))
    config: Any = {"configurable": {"thread_id": "chat-1", "user_id": "ana"}}
    agent.invoke({"messages": [("user", text)]}, config)
    show(text)


def show(what: str) -> None:
    print(what)
    for item in store.search(()):
        print(f"  {'/'.join(item.namespace)}: {item.value['content']!r}")


say(
    "Remember that I like green tea, and note it in /memories/likes.md",
    calls("manage_memory", content="Ana likes green tea", action="create"),
    calls("write_file", file_path="/memories/likes.md", content="green tea"),
)
say(
    "Coffee now, in the file too",
    calls("manage_memory", content="Ana likes coffee", action="create"),
    calls("edit_file", file_path="/memories/likes.md", old_string="green tea", new_string="coffee"),
)
memory.rollback(2, session_id="chat-1")
show("rolled back, the memory and the file:")
print(memory.verify())
