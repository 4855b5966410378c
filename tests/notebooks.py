"""Runs the notebooks; `python -m tests.notebooks` writes those down whose outputs are no longer what they were."""

from __future__ import annotations

import copy
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from tests.servers import postgres_url

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What differs from run to run and means nothing: ids, times.
VOLATILE = {
    r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b": "<id>",
    r"\b\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}:\d{2}(\.\d+)?(\+00:00|Z)?": "<time>",
    r"\bcall-[0-9a-f]{8}\b": "<call>",
    r"(\d\.\d\d)\d+": r"\1",  # scores: the last digits are the processor's
}


def executed(path: Path) -> Any:
    """The notebook as it is after a run in an empty folder, without keys of real models."""
    notebook = nbformat.read(path, as_version=4)
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    environment |= {"PYTHONPATH": str(ROOT), "ANONYMIZED_TELEMETRY": "False"}
    if "MEMSTATE_POSTGRES_URL" in path.read_text(encoding="utf-8"):
        environment["MEMSTATE_POSTGRES_URL"] = postgres_url()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=120,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            kernel_name="python3",
            coalesce_streams=True,  # a slow cell speaks in several messages
        )
        client.execute(env=environment)
    notebook.metadata["language_info"] = {"name": "python"}  # not which Python it happened to be
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", ()):
            if len(output.get("data", ())) > 1:  # a table or picture; its repr has addresses in it
                output.data.pop("text/plain", None)
    return notebook


def lasting(notebook: Any) -> list[Any]:
    """The outputs, without what differs from run to run."""

    def steady(value: Any) -> Any:
        if isinstance(value, str):
            for pattern, name in VOLATILE.items():
                value = re.sub(pattern, name, value)
            return value
        if isinstance(value, dict):
            return {key: steady(item) for key, item in value.items()}
        return [steady(item) for item in value] if isinstance(value, list) else value

    return [steady(copy.deepcopy(cell.get("outputs", []))) for cell in notebook.cells]


def main() -> None:
    for path in NOTEBOOKS:
        old, new = nbformat.read(path, as_version=4), executed(path)
        fresh = lasting(old) != lasting(new)
        if fresh:
            nbformat.write(new, path)
        sys.stdout.write(f"{path.name}: {'written' if fresh else 'as it was'}\n")


if __name__ == "__main__":
    main()
