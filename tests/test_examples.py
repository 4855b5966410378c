"""The examples run and show what they say."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from memstate_langgraph import AsyncInMemoryStorage, AsyncMemoryStore, VectorStoreSyncHook
from tests.stores import Unreliable

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name)], cwd=folder, capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    "name", ["documents.py", "drift.py", "ecosystem.py", "encrypted.py", "orders.py", "service.py"]
)
def test_an_example_is_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text(encoding="utf-8").splitlines()) < 80


def test_drift(tmp_path: Path) -> None:
    assert run("drift.py", tmp_path).splitlines() == [
        "without: DRIFTED",
        "  food    SQL: Ana eats fish again    found: Ana is a vegetarian",
        "  music   SQL: Ana plays the cello    found: -",
        "  travel  SQL: -                      found: Ana prefers trains",
        "with memstate_langgraph: in step",
        "  food    SQL: Ana is a vegetarian    found: Ana is a vegetarian",
    ]


def test_documents(tmp_path: Path) -> None:
    first = "['Everybody has 25 days of holiday. (edition 1)', 'The office opens at nine. (edition 1)']"
    second = "['Everybody has 30 days of holiday. (edition 2)', 'The office opens at eight. (edition 2)']"
    lines = [line.partition(":")[2].strip() for line in run("documents.py", tmp_path).splitlines()]
    assert [lines[0], *lines[2:]] == [first, first, second, "[]", second]
    assert "nothing was committed" in lines[1]


def test_orders(tmp_path: Path) -> None:
    lines = [line for line in run("orders.py", tmp_path).splitlines() if not line.startswith("  ")]
    assert lines == [
        '"I\'d like 3 pizzas": 3 pizzas',
        "'and 40 lemonades': 3 pizzas",
        "'and 4 lemonades': 3 pizzas, 4 lemonades",
        "'undo that': 3 pizzas",
    ]


def test_ecosystem(tmp_path: Path) -> None:
    *_, rolled_back = run("ecosystem.py", tmp_path).split("rolled back, the memory and the file:\n")
    assert rolled_back.splitlines()[:3] == [
        "  files/ana: 'green tea'",
        "  memories/ana: 'Ana likes green tea'",
        "facts, log and vectors: all agree",
    ]


def test_quickstart(tmp_path: Path) -> None:
    shown = run("quickstart.py", tmp_path)
    assert "verify(): in step" in shown
    assert "killed" in shown


def test_exactly_once(tmp_path: Path) -> None:
    lines = run("exactly_once.py", tmp_path).splitlines()
    assert lines[0].startswith("ours")
    assert lines[0].endswith(": 60 thoughts in the history, 60 in memory,")
    assert lines[1].strip() == "of which never happened: none; forgotten: 0"
    assert lines[2].startswith("theirs")


# --- the service


@pytest.fixture
async def service(vectors: Unreliable) -> AsyncIterator[httpx.AsyncClient]:
    from examples.service import create_app

    memory = AsyncMemoryStore(AsyncInMemoryStorage(), hooks=[VectorStoreSyncHook(vectors, text_field="content")])
    transport = httpx.ASGITransport(create_app(memory))
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        yield client
    await memory.close()


def by(user: str) -> dict[str, Any]:
    return {"headers": {"X-User": user}}


FISH, MEAT = {"topic": "food", "content": "fish"}, {"topic": "food", "content": "meat"}


async def contents(service: httpx.AsyncClient, user: str) -> list[str]:
    found = await service.get("/preferences", params={"about": "food"}, **by(user))
    return [hit["content"] for hit in found.json()]


async def test_users_have_their_own_facts(service: httpx.AsyncClient) -> None:
    ana = (await service.put("/preferences", json=FISH, **by("ana"))).json()["id"]
    bob = (await service.put("/preferences", json=MEAT, **by("bob"))).json()["id"]
    assert ana != bob
    assert (await contents(service, "ana"), await contents(service, "bob")) == (["fish"], ["meat"])
    assert (await service.delete(f"/preferences/{ana}", **by("bob"))).status_code == 404
    assert (await service.delete(f"/preferences/{ana}", **by("ana"))).status_code == 204
    assert (await contents(service, "ana"), await contents(service, "bob")) == ([], ["meat"])
    assert (await service.post("/undo", **by("ana"))).json() == {"touched": [ana]}
    assert (await contents(service, "ana"), await contents(service, "bob")) == (["fish"], ["meat"])


async def test_a_failing_vector_store_is_503_and_writes_nothing(
    service: httpx.AsyncClient, vectors: Unreliable
) -> None:
    vectors.mood = "down"
    assert (await service.put("/preferences", json=FISH, **by("ana"))).status_code == 503
    vectors.mood = "ok"
    assert await contents(service, "ana") == []
    assert (await service.put("/preferences", json=FISH, **by("ana"))).status_code == 200


async def test_nobody_is_refused(service: httpx.AsyncClient) -> None:
    assert (await service.put("/preferences", json=FISH)).status_code == 422
    assert (await service.put("/preferences", json={"topic": "food"}, **by("ana"))).status_code == 422
