"""`MemoryMiddleware`: long-term memory for `langchain.agents.create_agent` (extra `langchain`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import SystemMessage

from memstate_langgraph.nodes import NAMESPACE, Recalling, TokenCounter, last_human_text, told
from memstate_langgraph.scope import Scope, Script, Store, Template, aact, act
from memstate_langgraph.tools import create_memory_tools

try:
    from langchain.agents.middleware import AgentMiddleware, ModelRequest, ModelResponse
except ImportError as error:
    raise ImportError(
        f"MemoryMiddleware needs langchain ({error}): install memstate-langgraph with its extra 'langchain'"
    ) from error


class MemoryMiddleware(AgentMiddleware[Any, Any, Any]):
    """Gives an agent the memory tools, and before each model call the facts that matter to what was said last.

    The facts go into the system message of that one call, at most `max_tokens` of them as `count_tokens` counts;
    the stored messages stay as they are. `tools=False` only recalls. Whose memory it is says the config, through
    the slots of `namespace`; a missing value fails closed. The other options are those of `create_memory_tools`
    and `RecallNode`.
    """

    def __init__(
        self,
        memory: Store,
        types: Sequence[str] | None = None,
        namespace: Sequence[str] = NAMESPACE,
        *,
        tools: bool = True,
        names: Mapping[str, str] | None = None,
        limit: int = 5,
        score_threshold: float | None = None,
        max_tokens: int | None = 500,
        count_tokens: TokenCounter | None = None,
        query: Callable[[Any], str | None] = last_human_text,
        approve_undo: bool = False,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.template = Template(namespace)
        self.recalling = Recalling(types, limit, score_threshold, max_tokens, count_tokens)
        self.query = query
        self.tools = create_memory_tools(memory, types, namespace, dict(names or {}), approve_undo) if tools else []

    def wrap_model_call(self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Any]) -> Any:
        return handler(act(self._informed(request), self.memory))

    async def awrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]
    ) -> Any:
        return await handler(await aact(self._informed(request), self.memory))

    def _informed(self, request: ModelRequest[Any]) -> Script[ModelRequest[Any]]:
        scope = Scope.of(self.template, None)
        query = self.query({**request.state, "messages": request.messages})
        found = yield from self.recalling.search(query, scope)
        return request.override(system_message=_joined(request.system_message, told(found))) if found else request


def _joined(system: SystemMessage | None, text: str) -> SystemMessage:
    if system is None:
        return SystemMessage(text)
    if isinstance(system.content, str):
        return system.model_copy(update={"content": f"{system.content}\n\n{text}"})
    return system.model_copy(update={"content": [*system.content, {"type": "text", "text": text}]})
