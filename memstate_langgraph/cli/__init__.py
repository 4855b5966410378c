"""The command `memstate`: look into a storage, check it, roll it back. It needs the extra `cli`."""

from __future__ import annotations

import importlib.util
import sys
import traceback

BROKEN = 70


def main() -> None:
    missing = [name for name in ("typer", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"memstate: needs {' and '.join(missing)}: pip install 'memstate-langgraph[cli]'")
    from memstate_langgraph.cli.app import app

    try:
        app(prog_name="memstate")
    except Exception:  # a fault of ours: its exit code must not be taken for an answer
        traceback.print_exc()
        sys.exit(BROKEN)
