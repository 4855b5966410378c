"""Whose memory it is: said by the application, filled in once, and never by default."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.runtime import Runtime

from memstate_langgraph import ScopeError, ValidationFailed
from memstate_langgraph.scope import Scope, Template

PER_USER = Template(("memories", "{user_id}"))


def config(**configurable: Any) -> RunnableConfig:
    return {"configurable": configurable}


def test_slots_are_filled_from_the_config() -> None:
    template = Template(("memories", "{org}", "user:{user_id}"))
    assert Scope.of(template, config(org="acme", user_id=7)).namespace == ("memories", "acme", "user:7")
    some = uuid.uuid4()
    assert Scope.of(PER_USER, config(user_id=some)).namespace == ("memories", str(some))


@dataclass
class Context:
    user_id: str


@pytest.mark.parametrize("context", [Context("ana"), {"user_id": "ana"}])
def test_slots_are_filled_from_the_runtime_context(context: Any) -> None:
    running = config(__pregel_runtime=Runtime(context=context))
    assert Scope.of(PER_USER, running).namespace == ("memories", "ana")


@pytest.mark.parametrize(
    "value", [None, "", " ", "\t\n", True, False, [], ["ana"], {"a": 1}, 1.5, b"ana", "\ud800", "\0"]
)
def test_a_value_that_names_nobody_fails_closed(value: Any) -> None:
    with pytest.raises(ScopeError, match="user_id"):
        Scope.of(PER_USER, config(user_id=value))


def test_without_any_config_it_fails_closed() -> None:
    for running in (None, RunnableConfig(), config()):
        with pytest.raises(ScopeError, match="user_id"):
            Scope.of(PER_USER, running)


@pytest.mark.parametrize("value", ["{org}", "{user_id}", "a/b", "a','b", "*", "%", "..", "{}", "{{user_id}}", "\\1"])
def test_a_value_stays_one_value_whatever_it_looks_like(value: str) -> None:
    assert Scope.of(PER_USER, config(user_id=value, org="acme")).namespace == ("memories", value)


@pytest.mark.parametrize("part", ["{user-id}", "{}", "{ user_id }", "{user_id", "user_id}", "{{user_id}}", "{a.b}"])
def test_a_slot_that_would_never_be_filled_is_refused_at_once(part: str) -> None:
    with pytest.raises(ValidationFailed, match="brace"):
        Template(("memories", part))


def test_two_slots_in_one_part_could_be_confused_so_they_are_refused() -> None:
    with pytest.raises(ValidationFailed, match="two slots"):
        Template(("{org}-{user_id}",))


@pytest.mark.parametrize("parts", ["memories", ("",), (1,)])
def test_a_namespace_is_a_tuple_of_names(parts: Any) -> None:
    with pytest.raises(ValidationFailed, match="namespace"):
        Template(parts)


def test_the_session_is_the_thread_and_nothing_else() -> None:
    assert Scope.of(PER_USER, config(user_id="ana", thread_id=3)).session_id == "3"
    for thread_id in (None, ""):
        with pytest.raises(ScopeError, match="thread_id"):
            _ = Scope.of(PER_USER, config(user_id="ana", thread_id=thread_id)).session_id


def test_keys_tell_apart_what_may_not_collide() -> None:
    def key(*parts: object, **given: Any) -> str | None:
        running = {"user_id": "ana", "thread_id": "t", "checkpoint_ns": "n", "__pregel_task_id": "k", **given}
        return Scope.of(PER_USER, config(**running)).key(*parts)

    assert key("remember", "1") == key("remember", "1")
    others = [
        key("remember", "1"),
        key("remember", "2"),
        key("forget", "1"),
        key("remember", "1", user_id="bob"),
        key("remember", "1", thread_id="u"),
        key("remember", "1", checkpoint_ns="m"),
        key("remember", "1", __pregel_task_id="l"),
        key("remember", "\ud800"),
    ]
    assert len(set(others)) == len(others)
    assert key("remember", "1", __pregel_task_id=None) is None
