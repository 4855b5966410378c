"""The code in README and docs runs as it stands, and what they name exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "bash"}


class Block(NamedTuple):
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    return [Block(*found) for found in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def test_the_readme_has_an_example() -> None:
    assert any(block.language == "python" for block in blocks(ROOT / "README.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    """Blocks of Python that follow each other are one script; commands run between them, in the same folder."""
    assert {block.language for block in blocks(page)} <= LANGUAGES
    for language, run in groupby(blocks(page), key=lambda block: block.language):
        text = "\n".join(block.text for block in run)
        if language == "python":
            script = tmp_path / "page.py"
            script.write_text(text, encoding="utf-8")
            execute([sys.executable, str(script)], tmp_path)
        else:
            commands = [line for line in text.splitlines() if line.startswith("memstate ")]
            shell = f'memstate() {{ "{sys.executable}" -m memstate_langgraph.cli "$@"; }}\nset -euo pipefail\n'
            execute(["bash", "-c", shell + "\n".join(commands)], tmp_path)


def execute(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_other_commands_name_what_there_is(page: Path) -> None:
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    targets = set(re.findall(r"^(\w+):", text_of("Makefile"), re.MULTILINE))
    lines = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines() if line]
    for line in lines:
        made, installed = re.match(r"make (\w+)", line), re.match(r'pip install "memstate-langgraph\[(.+)\]"$', line)
        assert line.startswith("memstate ") or made or installed, line
        assert made is None or made[1] in targets
        assert installed is None or set(installed[1].split(",")) <= extras.keys()


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    reference = (tmp_path / "site" / "reference.html").read_text(encoding="utf-8")
    assert "Undo the last transactions in force" in reference


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_readme_names_both_commands_first() -> None:
    text = text_of("README.md")
    makefile = text_of("Makefile")
    assert text.index("make demo") < text.index("make test") < text.index("## ")
    assert "make test" in text_of(".ci/run")
    assert re.search(r"^demo:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_the_reference_has_every_public_class_and_function() -> None:
    import memstate_langgraph

    reference = text_of("docs/reference.md")
    errors = text_of("memstate_langgraph/errors.py")
    elsewhere = {"Capabilities"}  # what a vector store can do, as verify() tells it
    missing = [
        name
        for name in memstate_langgraph.__all__
        if name not in elsewhere
        and f".{name}\n" not in f"{reference}\n"
        and f"class {name}(" not in errors
        and not name.startswith("Async")  # as the first sentence of the page says
    ]
    assert missing == []
