"""Tables in HTML, for notebooks. Whatever is shown is escaped: a payload may hold what a stranger wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

LONGEST = 200


class Html:
    """A piece of HTML that a notebook shows as such."""

    def __init__(self, html: str, text: str) -> None:
        self.html, self.text = html, text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return self.html


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    head = "".join(f"<th>{escape(short(column))}</th>" for column in columns)
    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    title = f"<caption>{escape(short(caption))}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f'<td style="text-align: left">{escape(short(value))}</td>'
    return f"<td>{value:,}</td>" if isinstance(value, int) else f"<td>{value:.3f}</td>"


def short(value: object, longest: int = LONGEST) -> str:
    """A value as a person reads it, cut off where it is long."""
    text = "" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def change(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> str:
    """What became of a payload: all of what is new or gone, of the rest the fields that differ."""
    if after is None:
        return "" if before is None else f"was {fields(before)}"
    if before is None:
        return fields(after)
    differ = [key for key in {**before, **after} if (key in before, before.get(key)) != (key in after, after.get(key))]
    parts = [f"{key}: {_side(before, key)} → {_side(after, key)}" for key in differ]
    return ", ".join(parts) or "payload as before"


def fields(payload: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {short(value)}" for key, value in payload.items())


def _side(payload: Mapping[str, Any], key: str) -> str:
    return short(payload[key]) if key in payload else "nothing"
