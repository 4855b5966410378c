"""The application: its commands, and what an error becomes. A new command is a function and a line here."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from memstate_langgraph.cli import changing, reading, undoing
from memstate_langgraph.cli.opening import VECTOR_OPTIONS
from memstate_langgraph.errors import ConflictError, FactNotFound, MemoryStoreError, ValidationFailed

WRONG_INPUT = 2
REFUSED = 3
FAILED = 4
INTERRUPTED = 130

HELP = f"""Look into the memory of an agent, check it, roll it back.

STORAGE is a URL such as sqlite:///state.db, postgresql://user@host/database or redis://host:6379/0, or the path of a
SQLite file.
Commands that need the vectors take {VECTOR_OPTIONS}
for any other hook of yours.

Exit codes: 0 done; 1 facts, log and vectors are not in step; 2 wrong input, or no such thing; 3 refused, by you or
because of a conflict, and nothing was changed; 4 the storage or the vector store failed; 70 a fault of this
command, with a traceback to report; 130 interrupted.
"""


class _Commands(TyperGroup):
    """Says what a user can cause in one line on standard error; only our own faults show a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MemoryStoreError as error:
            typer.echo(f"memstate: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(_code(error)) from error
        except typer.Abort as error:
            typer.echo("memstate: nothing was changed", err=True)
            raise typer.Exit(REFUSED) from error
        except KeyboardInterrupt as error:
            typer.echo("memstate: interrupted; what was reported as done is done, nothing is half done", err=True)
            raise typer.Exit(INTERRUPTED) from error
        except BrokenPipeError:  # the reader, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None


def _code(error: MemoryStoreError) -> int:
    if isinstance(error, ValidationFailed | FactNotFound):
        return WRONG_INPUT
    return REFUSED if isinstance(error, ConflictError) else FAILED


app = typer.Typer(
    cls=_Commands,
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode=None,  # help as it stands, readable in pipes and narrow terminals
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _root() -> None:
    """The help above belongs to the application, which has no options of its own."""


for command in (
    reading.log,
    reading.show,
    reading.query,
    reading.search,
    reading.threads,
    reading.stats,
    reading.diff,
    undoing.rollback,
    undoing.revert,
    undoing.rewind,
    changing.verify,
    changing.repair,
    changing.prune,
    changing.copy,
):
    app.command()(command)
