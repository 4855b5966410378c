"""Memory tools for a model to call: remember, recall, update, forget, undo.

What a model gets wrong comes back to it as a short message that says how to correct the call. The scope, a
namespace and a session, comes from the runtime config and never from the model's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model

from memstate_langgraph.errors import FactNotFound, MemoryStoreError, ValidationFailed
from memstate_langgraph.facts import Fact
from memstate_langgraph.rules import Schema, canonical
from memstate_langgraph.scope import Scope, Script, Store, Template, aact, act, ask

LONGEST = 600
"""Characters of a message or a fact that a model is shown."""

_CALL: ContextVar[str | None] = ContextVar("memstate_tool_call", default=None)


class _Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


class MemoryTool(BaseTool):
    """One of the tools; `script` is what it does, for both doors."""

    memory: Any = Field(exclude=True, repr=False)
    template: Any = Field(exclude=True, repr=False)
    _script: Callable[..., Script[str]] = PrivateAttr()

    def __init__(self, script: Callable[..., Script[str]], **fields: Any) -> None:
        super().__init__(
            handle_tool_error=lambda error: shorten(str(error)),
            handle_validation_error=lambda error: correction(cast("ValidationError", error)),
            **fields,
        )
        self._script = script

    def run(self, *args: Any, **options: Any) -> Any:
        token = _CALL.set(options.get("tool_call_id"))
        try:
            return super().run(*args, **options)
        finally:
            _CALL.reset(token)

    async def arun(self, *args: Any, **options: Any) -> Any:
        token = _CALL.set(options.get("tool_call_id"))
        try:
            return await super().arun(*args, **options)
        finally:
            _CALL.reset(token)

    def _run(self, *, config: RunnableConfig, **arguments: Any) -> str:
        return act(self._told(config, arguments), self.memory)

    async def _arun(self, *, config: RunnableConfig, **arguments: Any) -> str:
        return await aact(self._told(config, arguments), self.memory)

    def _told(self, config: RunnableConfig, arguments: dict[str, Any]) -> Script[str]:
        """The script, with the errors that a model can do something about told to it."""
        call_id = _CALL.get()
        try:
            scope = Scope.of(self.template, config, call_id)
            key = None if call_id is None else scope.key(self.name, call_id)
            return shorten((yield from self._script(scope, key, **arguments)), LONGEST * 20)
        except MemoryStoreError as error:
            raise ToolException(shorten(str(error))) from error


def create_memory_tools(
    memory: Store,
    types: Sequence[str] | None = None,
    namespace: Sequence[str] = ("memories", "{user_id}"),
    names: dict[str, str] | None = None,
) -> list[BaseTool]:
    """`remember, recall, update, forget, undo` for `ToolNode`, `bind_tools` and `create_agent`.

    `types` are the registered types that the model may touch; without it all that are registered now.
    The slots of `namespace` are filled from `config["configurable"]` or the runtime context; a missing one
    fails closed. The session is the thread. A call that is replayed (same thread, task and tool call)
    writes once. `names` renames tools: `{"recall": "search_memory"}`.
    """
    schemas = chosen(memory, types)
    scripts = _Scripts(frozenset(schema.typename for schema in schemas))
    template = Template(namespace)
    listed = ", ".join(schema.typename for schema in schemas)
    kinds: Any = Literal[tuple(schema.typename for schema in schemas)]
    offers: list[tuple[str, str, type[BaseModel], Callable[..., Script[str]]]] = [
        (
            "remember",
            f"Store a fact about the user or the conversation for later ({listed}). A fact that is kept once per "
            "topic replaces the earlier one. Returns its id.",
            create_model("Remember", __base__=_Arguments, fact=(fact_arguments(schemas), ...)),
            scripts.remember,
        ),
        (
            "recall",
            "Search the remembered facts by meaning. Use it before answering what depends on the user. "
            "Returns facts with their ids, best first.",
            create_model(
                "Recall",
                __base__=_Arguments,
                query=(str, Field(description="what to look for, in words", min_length=1)),
                limit=(int, Field(default=5, ge=1, le=20, description="how many facts at most")),
                type=(kinds | None, Field(default=None, description="only facts of this type")),
            ),
            scripts.recall,
        ),
        (
            "update",
            "Change some fields of a remembered fact; the others stay. Take the id from recall.",
            create_model(
                "Update",
                __base__=_Arguments,
                fact_id=(str, Field(description="the id of the fact")),
                changes=(dict[str, Any], Field(description="the fields to change and their new values", min_length=1)),
            ),
            scripts.update,
        ),
        (
            "forget",
            "Delete a remembered fact. Take the id from recall.",
            create_model("Forget", __base__=_Arguments, fact_id=(str, Field(description="the id of the fact"))),
            scripts.forget,
        ),
        (
            "undo",
            "Take back the last changes to memory made in this conversation, the newest first.",
            create_model(
                "Undo",
                __base__=_Arguments,
                steps=(int, Field(default=1, ge=1, le=20, description="how many changes to take back")),
            ),
            scripts.undo,
        ),
    ]
    return [
        MemoryTool(
            script,
            name=(names or {}).get(name, name),
            description=description,
            args_schema=arguments,
            memory=memory,
            template=template,
        )
        for name, description, arguments, script in offers
    ]


def chosen(memory: Store, types: Sequence[str] | None) -> list[Schema]:
    """The registered types a tool or node may touch."""
    known = {schema.typename: schema for schema in memory.rules}
    if isinstance(types, str):
        raise ValidationFailed("types: is a list of type names, not one string")
    names = list(known) if types is None else list(types)
    if unknown := [name for name in names if name not in known]:
        raise ValidationFailed(f"types: {', '.join(unknown)} not registered; call register_schema first")
    if not names:
        raise ValidationFailed("types: no type is registered, so a model could remember nothing; call register_schema")
    return [known[name] for name in names]


def fact_arguments(schemas: Sequence[Schema]) -> Any:
    """A pydantic type for one fact of these types: the fields of its model and a `type` that tells which."""
    models: list[Any] = []
    for schema in schemas:
        if "type" in schema.model.model_fields:
            raise ValidationFailed(
                f"type {schema.typename!r}: its model has a field 'type', which tells a model's facts apart; rename it"
            )
        # with one type, a model need not name it
        tag: Any = Field(default=schema.typename) if len(schemas) == 1 else Field()
        kind: Any = (Literal[schema.typename], tag)
        name, text = schema.model.__name__, schema.model.__doc__
        models.append(create_model(name, __base__=schema.model, __doc__=text, type=kind))
    if len(models) == 1:
        return models[0]
    return Annotated[reduce(or_, models), Field(discriminator="type")]


class _Scripts:
    """What each tool does within a scope; `key` is its call's idempotency key."""

    def __init__(self, types: frozenset[str]) -> None:
        self.types = types

    def remember(self, scope: Scope, key: str | None, fact: BaseModel) -> Script[str]:
        payload = fact.model_dump(mode="json")
        typename = payload.pop("type")
        draft = Fact(type=typename, payload=payload, namespace=scope.namespace, source="tool:remember")
        fact_id = yield from ask(
            "commit", draft, session_id=scope.session_id, actor="model", idempotency_key=key, cause=scope.cause
        )
        return f"Remembered as {fact_id}."

    def recall(self, scope: Scope, key: str | None, query: str, limit: int, type: str | None) -> Script[str]:  # noqa: A002, ARG002 -- the argument is the model's
        found = yield from ask(
            "search",
            query,
            limit=limit,
            filters={"type": {"$in": sorted(self.types)}},
            typename=type,
            namespace=scope.namespace,
        )
        if not found:
            return "Nothing is remembered about that."
        return "\n".join(f"[{hit.fact.id}] {describe(hit.fact)}" for hit in found)

    def update(self, scope: Scope, key: str | None, fact_id: str, changes: dict[str, Any]) -> Script[str]:
        version = yield from self._within(scope, fact_id)
        yield from ask("update", fact_id, {"payload": changes}, **self._by(scope, key, version))
        return f"Updated {fact_id}."

    def forget(self, scope: Scope, key: str | None, fact_id: str) -> Script[str]:
        version = yield from self._within(scope, fact_id)
        yield from ask("delete", fact_id, **self._by(scope, key, version))
        return f"Forgot {fact_id}."

    def undo(self, scope: Scope, key: str | None, steps: int) -> Script[str]:
        if scope.session_id is None:
            raise ValidationFailed("undo: there is no conversation (thread_id) whose changes could be taken back")
        touched = yield from ask(
            "rollback",
            steps,
            session_id=scope.session_id,
            actor="model",
            namespace=scope.namespace,
            types=self.types,
            idempotency_key=key,
            cause=scope.cause,
        )
        return f"Taken back; facts touched: {', '.join(touched)}." if touched else "There was nothing to take back."

    def _within(self, scope: Scope, fact_id: str) -> Script[int | None]:
        """The version of a fact in scope, None if there is no such fact; a neighbour's fact does not exist."""
        fact: Fact | None = yield from ask("get", fact_id)
        if fact is None:
            return None
        if fact.namespace != scope.namespace or fact.type not in self.types:
            raise FactNotFound(f"there is no live fact with id {shorten(repr(fact_id), 80)}")
        return fact.version

    def _by(self, scope: Scope, key: str | None, version: int | None) -> dict[str, Any]:
        return {
            "session_id": scope.session_id,
            "actor": "model",
            "idempotency_key": key,
            "expected_version": version,
            "cause": scope.cause,
        }


def describe(fact: Fact) -> str:
    return shorten(f"{fact.type}: {canonical(fact.payload)}")


def correction(error: ValidationError) -> str:
    """What is wrong with a call's arguments, in as few words as a model needs to correct it."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [f"{'.'.join(str(part) for part in found['loc']) or 'arguments'}: {found['msg']}" for found in problems[:8]]
    return shorten("The call was not made. Correct these arguments and call again: " + "; ".join(parts))


def shorten(text: str, longest: int = LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
