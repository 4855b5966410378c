"""Pictures as SVG text: a tree of checkpoints, a timeline of facts. They know shapes, not storages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from memstate_langgraph.facts import Entry
from memstate_langgraph.tables import fields, short

INK, PALE, PAPER = "#24292f", "#57606a", "#ffffff"
LANES = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#9a6700")
OPERATIONS = {"UPDATE": "#9a6700", "DELETE": "#cf222e", "DISCARD_SESSION": "#cf222e", "ROLLBACK": "#8250df"}
COMMITTED = "#1a7f37"
ROW = 26
LANE = 22
LETTER = 7.0
"""About how wide a letter is, for texts that must end somewhere."""


class Picture:
    """An SVG; a notebook shows it."""

    def __init__(self, svg: str, text: str) -> None:
        self.svg, self.text = svg, text

    def __repr__(self) -> str:
        return self.text

    def _repr_svg_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.svg, encoding="utf-8")


class Point(NamedTuple):
    """A checkpoint in the tree; `changes` are operations and what they changed."""

    id: str
    parent: str | None
    label: str
    said: str
    changes: tuple[tuple[str, str], ...] = ()


def lanes(points: Sequence[Point]) -> dict[str, int]:
    """A column for each point: its parent's if it is the first child, else one of its own."""
    column: dict[str, int] = {}
    continued: set[str] = set()
    taken = 0
    for point in points:
        if point.parent in column and point.parent not in continued:
            column[point.id] = column[point.parent]
            continued.add(point.parent)
        else:
            column[point.id] = taken
            taken += 1
    return column


def draw_tree(points: Sequence[Point], title: str, width: int) -> Picture:
    column = lanes(points)
    left = 20 + LANE * (1 + max(column.values(), default=0))
    place: dict[str, tuple[float, float]] = {}
    y = 48.0
    for point in points:
        place[point.id] = (20 + LANE * column[point.id], y)
        y += ROW + 16 * len(point.changes)
    parts: list[str] = []
    for point in points:
        x, y1 = place[point.id]
        if point.parent in place:
            px, py = place[point.parent]
            bend = f"C {px} {y1 - 8}, {x} {py + 18}, {x} {y1}" if px != x else f"L {x} {y1}"
            parts.append(f'<path d="M {px} {py} {bend}" fill="none" stroke="{_lane(column, point)}" stroke-width="2"/>')
    for point in points:
        x, y1 = place[point.id]
        newest = point is points[-1]
        fill = _lane(column, point) if newest else PAPER
        parts.append(
            f'<circle cx="{x}" cy="{y1}" r="6" fill="{fill}" stroke="{_lane(column, point)}" stroke-width="2">'
            f"<title>{_text(point.id)}</title></circle>"
        )
        parts.append(_words(left, y1 + 4, point.label, PALE, 80))
        parts.append(_words(left + 80, y1 + 4, point.said, INK, width - left - 96, bold=newest))
        for i, (operation, told) in enumerate(point.changes):
            colour = OPERATIONS.get(operation, COMMITTED)
            below = y1 + 20 + 16 * i
            parts.append(f'<rect x="{left + 80}" y="{below - 9}" width="9" height="9" rx="2" fill="{colour}"/>')
            parts.append(_words(left + 95, below, f"{operation.lower()} {told}", colour, width - left - 111, size=11))
    if not points:
        parts.append(_words(20, 52, "no checkpoints", PALE, width))
    forks = 1 + max(column.values(), default=0)
    text = f"<{len(points)} checkpoints on {forks} branches>"
    return Picture(_svg(title, parts, width, y + 4), text)


def _lane(column: Mapping[str, int], point: Point) -> str:
    return LANES[column[point.id] % len(LANES)]


def draw_timeline(entries: Sequence[Entry], names: Mapping[str, str], title: str, width: int) -> Picture:
    """One row per fact, one column per transaction; `entries` oldest first."""
    rows = {fact_id: i for i, fact_id in enumerate(dict.fromkeys(entry.fact_id for entry in entries))}
    columns = {tx: i for i, tx in enumerate(dict.fromkeys(entry.tx for entry in entries))}
    left = 290.0
    step = (width - left - 20) / max(1, len(columns))
    lives: dict[str, list[Entry]] = {}
    for entry in entries:
        lives.setdefault(entry.fact_id, []).append(entry)
    height = 62 + ROW * len(rows)
    parts = []
    labelled = max(1, round(34 / step))
    first_of = {entry.tx: entry for entry in reversed(entries)}
    for tx, i in columns.items():
        x = left + step * i
        parts.append(f'<line x1="{x:.1f}" y1="44" x2="{x:.1f}" y2="{height - 12}" stroke="#d8dee4"/>')
        if i % labelled == 0:
            parts.append(_words(x, 40, str(first_of[tx].seq), PALE, 60, size=11))
    for fact_id, row in rows.items():
        y = 52 + ROW * row
        parts.append(_words(12, y + 13, names[fact_id], INK, left - 24))
        for entry, following in [*pairwise(lives[fact_id]), (lives[fact_id][-1], None)]:
            parts += _life(entry, following, columns, left, step, y, width)
    if not entries:
        parts.append(_words(20, 60, "the log is empty", PALE, width))
        height = 80
    return Picture(_svg(title, parts, width, height), f"<{len(rows)} facts over {len(columns)} transactions>")


def _life(
    entry: Entry, following: Entry | None, columns: Mapping[str, int], left: float, step: float, y: float, width: int
) -> list[str]:
    """A version of a fact as a bar, which ends at the next one; or the end of the fact as a cross."""
    x = left + step * columns[entry.tx]
    colour = OPERATIONS.get(entry.op.value, COMMITTED)
    fact = entry.after
    if fact is None:
        told = f"entry {entry.seq}: {entry.op.value.lower()}"
        cross = f"M {x - 5:.1f} {y + 4} l 10 10 m 0 -10 l -10 10"
        return [f'<path d="{cross}" stroke="{colour}" stroke-width="2.5"><title>{_text(told)}</title></path>']
    end = width - 20 if following is None else left + step * columns[following.tx]
    opacity = "0.45" if fact.ephemeral else "0.85"
    told = f"entry {entry.seq}: {entry.op.value.lower()}, version {entry.version}: {fields(fact.payload)}"
    return [
        f'<rect x="{x:.1f}" y="{y}" width="{max(3.0, end - x - 2):.1f}" height="18" rx="4" fill="{colour}" '
        f'opacity="{opacity}"><title>{_text(told)}</title></rect>',
        _words(x + 5, y + 13, entry.op.value.lower(), PAPER, end - x - 8, size=11),
    ]


def _words(x: float, y: float, text: str, colour: str, room: float, *, size: int = 12, bold: bool = False) -> str:
    fits = int(room / (LETTER * size / 12))
    if fits < 2:
        return ""
    weight = ' font-weight="600"' if bold else ""
    said = _text(short(" ".join(text.split()), fits))
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{weight} fill="{colour}">{said}</text>'


def _text(text: str) -> str:
    """Escaped, without the characters that XML cannot hold."""
    return escape("".join(char if char.isprintable() else " " for char in text))


def _svg(title: str, parts: Sequence[str], width: int, height: float) -> str:
    # paper of its own: a dark notebook would swallow the ink
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" '
        f'viewBox="0 0 {width} {height:.0f}" role="img" font-family="system-ui, sans-serif">'
        f'<rect width="{width}" height="{height:.0f}" rx="8" fill="{PAPER}"/>'
        f"{_words(12, 22, title, PALE, width - 24, bold=True)}{''.join(parts)}</svg>"
    )
