"""Memory tools for a model to call: remember, recall, update, forget, undo.

What a model gets wrong comes back to it as a short message that says how to correct the call. The scope, a
namespace and a session, comes from the runtime config and never from the model's arguments.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, create_model

from memstate_langgraph.errors import ConflictError, FactNotFound, HookError, MemoryStoreError, ValidationFailed
from memstate_langgraph.facts import Fact
from memstate_langgraph.rules import canonical, dumped
from memstate_langgraph.schemas import Schema
from memstate_langgraph.scope import Scope, Script, Store, Template, aact, act, ask
from memstate_langgraph.undoing import What, undo

LONGEST = 600
"""Characters of a message or a fact that a model is shown."""


class _Call(NamedTuple):
    """The call that is running: its id, and its arguments, by which calls that share an id are told apart."""

    id: str | None
    arguments: str


_NO_CALL = _Call(None, "")
_CALL: ContextVar[_Call] = ContextVar("memstate_tool_call", default=_NO_CALL)


@contextmanager
def _calling(tool_input: Any, call_id: str | None) -> Iterator[None]:
    try:
        arguments = json.dumps(tool_input, sort_keys=True, default=str)
    except (TypeError, ValueError, RecursionError):  # not JSON, so validation will refuse it
        arguments = ""
    token = _CALL.set(_Call(call_id or None, arguments))
    try:
        yield
    finally:
        _CALL.reset(token)


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

    def run(self, tool_input: Any, *args: Any, **options: Any) -> Any:
        with _calling(tool_input, options.get("tool_call_id")):
            return super().run(tool_input, *args, **options)

    async def arun(self, tool_input: Any, *args: Any, **options: Any) -> Any:
        with _calling(tool_input, options.get("tool_call_id")):
            return await super().arun(tool_input, *args, **options)

    def _run(self, *, config: RunnableConfig, **arguments: Any) -> str:
        return act(self._told(config, arguments), self.memory)

    async def _arun(self, *, config: RunnableConfig, **arguments: Any) -> str:
        return await aact(self._told(config, arguments), self.memory)

    def _told(self, config: RunnableConfig, arguments: dict[str, Any]) -> Script[str]:
        """The script, with the errors that a model can do something about told to it."""
        call = _CALL.get()
        try:
            scope = Scope.of(self.template, config, call.id)
            key = None if call.id is None else scope.key(self.name, call.id, call.arguments)
            return shorten((yield from self._script(scope, key, **arguments)), LONGEST * 20)
        except MemoryStoreError as error:
            way_out = next((text for kind, text in _WAYS_OUT.items() if isinstance(error, kind)), "")
            raise ToolException(shorten(str(error), LONGEST - len(way_out)) + way_out) from error


_WAYS_OUT: Mapping[type[MemoryStoreError], str] = {
    FactNotFound: "; recall gives the ids of facts",
    ConflictError: "; recall shows what is there now",
    HookError: "; correct the call if it is at fault, else try again later",
}


def create_memory_tools(
    memory: Store,
    types: Sequence[str] | None = None,
    namespace: Sequence[str] = ("memories", "{user_id}"),
    names: dict[str, str] | None = None,
    approve_undo: bool = False,
) -> list[BaseTool]:
    """`remember, recall, update, forget, undo` for `ToolNode`, `bind_tools` and `create_agent`.

    `types` are the registered types that the model may touch; without it all that are registered now.
    The slots of `namespace` are filled from `config["configurable"]` or the runtime context; a missing one
    fails closed. The session is the thread. A call that is replayed (same thread, task and tool call)
    writes once. `names` renames tools: `{"recall": "search_memory"}`. With `approve_undo` a human is asked before
    anything is taken back, as `RollbackNode(approve=True)` does.
    """
    schemas = chosen(memory, types)
    scripts = _Scripts(schemas, approve_undo)
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
                changes=(field_changes(schemas), Field(description="the fields to change and their new values")),
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
            "Take back changes to memory made in this conversation: the last ones, or those of one tool call.",
            create_model(
                "Undo",
                __base__=_Arguments,
                steps=(int, Field(default=1, ge=1, le=20, description="how many changes to take back, newest first")),
                call=(str | None, Field(default=None, description="instead, those of the tool call with this id")),
                this_turn=(bool, Field(default=False, description="instead, all since the user's last message")),
                dry_run=(bool, Field(default=False, description="only say what would change")),
            ),
            scripts.undo,
        ),
    ]
    if unknown := (names or {}).keys() - {name for name, *_ in offers}:
        raise ValidationFailed(f"names: there is no tool {', '.join(sorted(unknown))} to rename")
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
    names = list(known) if types is None else list(dict.fromkeys(types))
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


def field_changes(schemas: Sequence[Schema]) -> type[BaseModel]:
    """A model with the fields of all these types, none of them required."""
    kinds: dict[str, list[Any]] = {}
    notes: dict[str, str] = {}
    for schema in schemas:
        for name, info in schema.model.model_fields.items():
            kinds.setdefault(name, []).append(info.annotation)
            if info.description is not None:
                notes.setdefault(name, info.description)
    fields: dict[str, Any] = {
        name: (
            reduce(or_, annotations) if len(annotations) > 1 else annotations[0],
            Field(default=None, description=notes.get(name), json_schema_extra=_without_default),
        )
        for name, annotations in kinds.items()
    }
    open_ended = any(schema.model.model_config.get("extra") == "allow" for schema in schemas)
    return create_model("Changes", __config__=ConfigDict(extra="allow" if open_ended else "forbid"), **fields)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)  # a field left out stays as it is; null is no way to say that


class _Scripts:
    """What each tool does within a scope; `key` is its call's idempotency key."""

    def __init__(self, schemas: Sequence[Schema], approve_undo: bool) -> None:
        self.approve_undo = approve_undo
        self.models = {schema.typename: schema.model for schema in schemas}
        self.types = sorted(self.models)

    def remember(self, scope: Scope, key: str | None, fact: Any) -> Script[str]:
        typename = fact.type
        payload = dumped(typename, fact)
        del payload["type"]
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
            filters={"type": {"$in": self.types}},
            typename=type,
            namespace=scope.namespace,
        )
        if not found:
            return "Nothing is remembered about that."
        return "\n".join(f"[{hit.fact.id}] {describe(hit.fact)} (score {hit.score:.2f})" for hit in found)

    def update(self, scope: Scope, key: str | None, fact_id: str, changes: BaseModel) -> Script[str]:
        fact = yield from self._within(scope, fact_id)
        given = dumped("changes", changes, only_given=True)
        if not given:
            raise ValidationFailed("update: 'changes' is empty; name the fields to change")
        if fact is not None and self.models[fact.type].model_config.get("extra") != "allow":
            fields = self.models[fact.type].model_fields
            if unknown := sorted(given.keys() - fields.keys()):
                raise ValidationFailed(
                    f"type {fact.type!r}: has no field {', '.join(unknown)}; its fields are {', '.join(fields)}"
                )
        yield from ask("update", fact_id, {"payload": given}, **self._by(scope, key, fact))
        return f"Updated {fact_id}."

    def forget(self, scope: Scope, key: str | None, fact_id: str) -> Script[str]:
        fact = yield from self._within(scope, fact_id)
        yield from ask("delete", fact_id, **self._by(scope, key, fact))
        return f"Forgot {fact_id}."

    def undo(
        self, scope: Scope, key: str | None, steps: int, call: str | None, this_turn: bool, dry_run: bool
    ) -> Script[str]:
        what: What | None = "run" if this_turn else None if call is None else {"tool_call_id": call}
        done = yield from undo(
            scope, steps, what, types=self.types, actor="model", key=key, dry_run=dry_run, approve=self.approve_undo
        )
        if dry_run:
            return str(done.preview) if done.preview else "There is nothing to take back."
        if done.declined:
            return "Not agreed to by the user; nothing was taken back."
        touched = ", ".join(done.touched)
        return f"Taken back; facts touched: {touched}." if touched else "There was nothing to take back."

    def _within(self, scope: Scope, fact_id: str) -> Script[Fact | None]:
        """A fact in scope, None if there is no such fact; a neighbour's fact does not exist."""
        fact: Fact | None = yield from ask("get", fact_id)
        if fact is not None and (fact.namespace != scope.namespace or fact.type not in self.models):
            raise FactNotFound(f"there is no live fact with id {fact_id!r}")
        return fact

    def _by(self, scope: Scope, key: str | None, fact: Fact | None) -> dict[str, Any]:
        return {
            "session_id": scope.session_id,
            "actor": "model",
            "idempotency_key": key,
            # what was looked at is what changes; a fact that was not there may be a neighbour's by now
            "expected_version": 0 if fact is None else fact.version,
            "cause": scope.cause,
        }


def describe(fact: Fact) -> str:
    return shorten(f"{fact.type}: {canonical(fact.payload)}")


def correction(error: ValidationError) -> str:
    """What is wrong with a call's arguments, in as few words as a model needs to correct it."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    parts = [
        f"{shorten('.'.join(str(part) for part in found['loc']) or 'arguments', 80)}: {shorten(found['msg'], 160)}"
        for found in problems[:8]
    ]
    return shorten("The call was not made. Correct these arguments and call again: " + "; ".join(parts))


def shorten(text: str, longest: int = LONGEST) -> str:
    text = text.encode("utf-8", "replace").decode()  # a model may send half of a surrogate pair
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
