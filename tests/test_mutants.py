"""No mutant is lost when the package is refactored; `python -m tests.mutants` says which test catches each."""

from __future__ import annotations

import ast

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant, Stale


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.breaks for mutant in MUTANTS])
def test_a_mutant_breaks_the_package_of_today(mutant: Mutant) -> None:
    broken = mutant.applied(ROOT)
    assert mutant.new != mutant.old
    if mutant.file.endswith(".py"):
        ast.parse(broken)
    assert [name for name in mutant.tests.split() if not (ROOT / name.partition("::")[0]).exists()] == []


def test_each_mutant_is_there_once() -> None:
    assert len({mutant.breaks for mutant in MUTANTS}) == len({(m.file, m.old, m.new) for m in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("text", ["no such line in the package", "import"])
def test_a_text_that_is_not_there_once_is_said(text: str) -> None:
    with pytest.raises(Stale, match=r"occurs \d+ times in flows.py"):
        Mutant("nothing", "flows.py", text, "", "").applied(ROOT)
