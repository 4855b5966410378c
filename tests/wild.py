"""Values that nobody should store, made from a seed: every shape of JSON, and what only looks like it."""

from __future__ import annotations

import math
import random
from datetime import UTC, datetime
from typing import Any

SQL = [
    "'; DROP TABLE facts; --",
    "payload.content') OR 1=1 --",
    '" OR ""="',
    "x' UNION SELECT * FROM log --",
    "$[*]",
    "%",
    "id = id",
    "?1",
    ":name",
    "a\\'b",
]
TEXTS = ["", " ", "\x00", "a\x00b", "\ud800", "x\udfff!", "ü", "🌍", "\u202e", "\n", "null", "NaN", "x" * 600, *SQL]
LEAVES: list[Any] = [
    None, True, False, 0, -1, 2**63, -(2**63) - 1, 2**1024, 10**400, 0.0, -0.0, 1e308, 5e-324, math.nan, math.inf,
    -math.inf, b"bytes", b"\xff", {1, 2}, object(), datetime(2020, 1, 1, tzinfo=UTC), 1j, int, ..., range(3),
]  # fmt: skip
OPERATORS = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$exists", "$where", "$", "$or"]


class Wild:
    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def text(self) -> str:
        if self.dice.random() < 0.7:
            return self.dice.choice(TEXTS)
        return "".join(chr(self.dice.randrange(0x110000)) for _ in range(self.dice.randrange(6)))

    def value(self, depth: int = 0) -> Any:
        roll = self.dice.random()
        if roll < 0.01:
            return self.nested(self.dice.choice([20, 99, 101, 2000]))
        if roll < 0.02:
            return "x" * self.dice.choice([10_000, 1_000_000])
        if roll < 0.3 or depth > 4:
            return self.dice.choice(LEAVES)
        if roll < 0.6:
            return self.text()
        if roll < 0.65:
            return self.dice.choice([self.dice.randrange(-5, 5), self.dice.random()])
        if roll < 0.8:
            return [self.value(depth + 1) for _ in range(self.dice.randrange(4))]
        if roll < 0.85:
            return tuple(self.value(depth + 1) for _ in range(self.dice.randrange(3)))
        return {self.key(): self.value(depth + 1) for _ in range(self.dice.randrange(4))}

    def key(self) -> Any:
        return self.text() if self.dice.random() < 0.9 else self.dice.choice([5, None, 1.5, b"k", ("a",)])

    def nested(self, depth: int) -> Any:
        value: Any = "bottom"
        for _ in range(depth):
            value = [value] if self.dice.random() < 0.5 else {"a": value}
        return value

    def payload(self) -> dict[str, Any]:
        fields = ["content", "topic", "weight", "key"]
        return {
            self.dice.choice(fields) if self.dice.random() < 0.6 else self.text(): self.value()
            for _ in range(self.dice.randrange(4))
        }

    def filters(self) -> dict[Any, Any]:
        known = ["payload.content", "payload.a.b", "id", "type", "ts", "namespace", "version", "payload."]
        found: dict[Any, Any] = {}
        for _ in range(self.dice.randrange(1, 3)):
            key = self.dice.choice(known) if self.dice.random() < 0.7 else self.key()
            found[key] = {self.dice.choice(OPERATORS): self.value(3)} if self.dice.random() < 0.5 else self.value(2)
        return found
