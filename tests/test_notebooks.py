"""The notebooks run, and show what they show in the repository."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from tests.notebooks import NOTEBOOKS, ROOT, executed, lasting


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_shows_when_it_runs(path: Path) -> None:
    kept, now = nbformat.read(path, as_version=4), executed(path)
    for cell, before, after in zip(kept.cells, lasting(kept), lasting(now), strict=True):
        assert before == after, f"{cell.source}\n\n`make notebooks` runs them again and keeps the outputs"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_with_what_the_reader_will_see(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = nbformat.reads(text, as_version=4).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert "You will see" in first.source
    assert "output_type" in text
    for private in (str(ROOT), str(Path.home()), "/tmp/"):
        assert private not in text
