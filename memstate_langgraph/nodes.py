"""Nodes with which a graph recalls, remembers and rolls back, for a plain `StateGraph`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import BaseModel, ValidationError

from memstate_langgraph.errors import ValidationFailed
from memstate_langgraph.facts import Fact, ScoredFact
from memstate_langgraph.rules import check_count, dumped, explain
from memstate_langgraph.scope import Scope, Script, Store, Template, aact, act, ask
from memstate_langgraph.tools import describe
from memstate_langgraph.undoing import Undone, What, undo

Update = dict[str, Any]
NAMESPACE = ("memories", "{user_id}")
TokenCounter = Callable[[list[BaseMessage]], int]


class MemoryNode(Runnable[Any, Update]):
    """What the nodes share: a scope from the config, and one script for both doors."""

    def __init__(self, memory: Store, namespace: Sequence[str], types: Sequence[str] | None) -> None:
        if isinstance(types, str):
            raise ValidationFailed("types: is a list of type names, not one string")
        self.memory = memory
        self.types = None if types is None else list(types)
        self.template = Template(namespace)

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Update:  # noqa: A002 -- LangChain's
        return act(self.script(input, Scope.of(self.template, config)), self.memory)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Update:  # noqa: A002
        return await aact(self.script(input, Scope.of(self.template, config)), self.memory)

    def script(self, state: Any, scope: Scope) -> Script[Update]:
        raise NotImplementedError


class Recalling:
    """Which facts are recalled for a query, and how a model is told; shared by nodes and middleware."""

    def __init__(
        self,
        types: Sequence[str] | None,
        limit: int,
        score_threshold: float | None,
        max_tokens: int | None,
        count_tokens: TokenCounter | None,
    ) -> None:
        if isinstance(types, str):
            raise ValidationFailed("types: is a list of type names, not one string")
        check_count(limit, "limit")
        if max_tokens is not None:
            check_count(max_tokens, "max_tokens", 1)
        self.types = None if types is None else list(types)
        self.limit, self.score_threshold = limit, score_threshold
        self.max_tokens, self.count_tokens = max_tokens, count_tokens or count_tokens_approximately

    def search(self, query: str | None, scope: Scope) -> Script[list[ScoredFact]]:
        """The facts nearest to the query, best first, that fit into the budget together."""
        if not query or not query.strip():
            return []
        found: list[ScoredFact] = yield from ask(
            "search",
            query,
            limit=self.limit,
            filters=None if self.types is None else {"type": {"$in": self.types}},
            score_threshold=self.score_threshold,
            namespace=scope.namespace,
        )
        if self.max_tokens is None:
            return found
        kept: list[ScoredFact] = []
        for hit in found:  # one that is too long may leave room for the next
            if self.count_tokens([SystemMessage(told([*kept, hit]))]) <= self.max_tokens:
                kept.append(hit)
        return kept


def told(found: Sequence[ScoredFact]) -> str:
    facts = "\n".join(f"- {describe(hit.fact)}" for hit in found) or "- nothing about this"
    return f"What you remember that may matter here:\n{facts}"


class RecallNode(MemoryNode):
    """Puts the facts nearest to a query into the state, before a model is called.

    The query is the text of the last human message, or what `query(state)` returns; without one nothing
    is recalled. `into` receives a list of dicts `id, type, payload, score`; with `as_message=True`,
    `messages` receives a system message instead, the same one at each call. With `max_tokens`, facts that
    would make that message longer are left out, as `count_tokens` counts (by default about right for any model).
    """

    def __init__(
        self,
        memory: Store,
        namespace: Sequence[str] = NAMESPACE,
        types: Sequence[str] | None = None,
        limit: int = 5,
        query: Callable[[Any], str | None] | None = None,
        into: str = "memories",
        score_threshold: float | None = None,
        as_message: bool = False,
        max_tokens: int | None = None,
        count_tokens: TokenCounter | None = None,
    ) -> None:
        super().__init__(memory, namespace, types)
        self.recalling = Recalling(types, limit, score_threshold, max_tokens, count_tokens)
        self.into, self.as_message = into, as_message
        self.query = query or last_human_text

    def script(self, state: Any, scope: Scope) -> Script[Update]:
        found = yield from self.recalling.search(self.query(state), scope)
        if self.as_message:
            return {"messages": [SystemMessage(told(found), id="memstate-recall")]}
        return {
            self.into: [
                {"id": hit.fact.id, "type": hit.fact.type, "payload": hit.fact.payload, "score": hit.score}
                for hit in found
            ]
        }


class RecallHook(RecallNode):
    """`RecallNode` as the `pre_model_hook` of a `create_react_agent`-style graph.

    The model is given a system message with the facts in front of the conversation; the stored messages stay.
    """

    def script(self, state: Any, scope: Scope) -> Script[Update]:
        found = yield from self.recalling.search(self.query(state), scope)
        messages = list(value_of(state, "messages") or ())
        return {"llm_input_messages": [SystemMessage(told(found)), *messages] if found else messages}


class RememberNode(MemoryNode):
    """Commits facts found in the state, all as one transaction; once, also when its task runs again.

    `facts` is a state key or `facts(state)`: instances of registered models, `Fact`s, or dicts with `type`
    and `payload`. Namespace and session are the scope's, whatever a fact says. `into` names the state
    key that receives their ids.
    """

    def __init__(
        self,
        memory: Store,
        facts: str | Callable[[Any], Iterable[Any] | None],
        namespace: Sequence[str] = NAMESPACE,
        types: Sequence[str] | None = None,
        into: str | None = None,
    ) -> None:
        super().__init__(memory, namespace, types)
        self.into = into
        self.facts = (lambda state: value_of(state, facts)) if isinstance(facts, str) else facts

    def script(self, state: Any, scope: Scope) -> Script[Update]:
        facts = [self._fact(found, scope) for found in self.facts(state) or ()]
        ids: list[str] = []
        if facts:
            ids = yield from ask(
                "commit_many",
                facts,
                session_id=scope.session_id,
                actor="node",
                idempotency_key=scope.key("RememberNode"),
                cause=scope.cause,
            )
        return {} if self.into is None else {self.into: ids}

    def _fact(self, found: Any, scope: Scope) -> Fact:
        given: dict[str, Any]
        if isinstance(found, Fact):
            given = {name: getattr(found, name) for name in found.model_fields_set}
        elif isinstance(found, BaseModel):
            typename = self.memory.rules.typename_of(found)
            given = {"type": typename, "payload": dumped(typename, found)}
        elif isinstance(found, Mapping) and {"type", "payload"} <= found.keys() <= {"type", "payload", "source"}:
            given = dict(found)
        else:
            raise ValidationFailed(
                "RememberNode: a fact is a registered model, a Fact, or a dict with 'type' and 'payload', "
                f"not {type(found).__name__}"
            )
        if self.types is not None and given["type"] not in self.types:
            raise ValidationFailed(f"RememberNode: facts of type {given['type']!r} are not among {self.types}")
        given.pop("session_id", None)
        try:
            return Fact(**{**given, "namespace": scope.namespace})
        except ValidationError as error:
            raise ValidationFailed(f"RememberNode: {explain('fact', error)}") from error


class RollbackNode(MemoryNode):
    """Undoes what this thread did to memory when `when(state)` holds; once per task.

    The last `steps` transactions; or, with `revert`, what has a cause: `"run"` for this run, or a dict of `run_id`,
    `tool_call_id`, `task_id` and `since` (a position of the log, a time, or the config of a checkpoint), or a function
    of the state that gives one. `{}` is all that the thread did. Nothing is undone, and `ConflictError` raised, if that
    touches facts outside the namespace or `types`, or someone else changed a fact since.

    `into` names the state key that receives the ids of the facts touched; with `dry_run`, which changes nothing, the
    text that says what would change. With `approve` a human is asked first: the graph is interrupted with a dict that
    says what would change, and goes on with `Command(resume=...)`, the dict's value of `approve` to agree or False to
    decline. If memory was changed in between it asks again, and nothing else than what was agreed to is ever done.
    """

    def __init__(
        self,
        memory: Store,
        when: Callable[[Any], bool] | None = None,
        steps: int | Callable[[Any], int] = 1,
        namespace: Sequence[str] = NAMESPACE,
        types: Sequence[str] | None = None,
        into: str | None = None,
        revert: What | Callable[[Any], What] | None = None,
        dry_run: bool = False,
        approve: bool = False,
    ) -> None:
        super().__init__(memory, namespace, types)
        self.when, self.steps, self.into = when, steps, into
        self.revert, self.dry_run, self.approve = revert, dry_run, approve

    def script(self, state: Any, scope: Scope) -> Script[Update]:
        done = Undone([])
        if self.when is None or self.when(state):
            done = yield from undo(
                scope,
                self.steps(state) if callable(self.steps) else self.steps,
                self.revert(state) if callable(self.revert) else self.revert,
                types=self.types,
                actor="node",
                key=scope.key("RollbackNode"),
                dry_run=self.dry_run,
                approve=self.approve,
            )
        if self.into is None:
            return {}
        return {self.into: str(done.preview or "nothing would change") if self.dry_run else done.touched}


def value_of(state: Any, key: str) -> Any:
    """A state's value, of a dict, a dataclass or a pydantic model."""
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def last_human_text(state: Any) -> str | None:
    for message in reversed(value_of(state, "messages") or ()):
        if isinstance(message, BaseMessage) and message.type == "human":
            return str(message.text)
    return None
