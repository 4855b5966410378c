"""What a plan asks, answered on one connection to SQLite: in a transaction, or in one statement that is one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Generator, Iterable, Iterator
from itertools import product
from typing import Any

from memstate_langgraph import ops
from memstate_langgraph.backends.sql import ANSWERS, json_text
from memstate_langgraph.backends.sql_checkpoints import check_of, check_of_head, text_of_head
from memstate_langgraph.backends.sqlite_at_once import WRONG, asked_at_once, at_once
from memstate_langgraph.backends.statements import Batch, Statement, as_asking
from memstate_langgraph.checkpoint_ops import FindCheckpoints, FindValues, FindWrites, Stands, ValueKey
from memstate_langgraph.ops import Work
from memstate_langgraph.run import abreast, drive

MOST_CHANNELS = 32
"""Of a checkpoint that is looked at as a whole, each channel being a condition of one statement."""


class _Dialect:
    def among(self, column: str) -> str:
        return f"{column} IN (SELECT value FROM json_each(?))"

    def rows(self, alias: str) -> str:
        return f"json_each(?) AS {alias}"

    def listed(self, values: Iterable[Any]) -> str:
        return json_text(list(values))


_DIALECT = _Dialect()


class WrongGuess(Exception):
    """What a plan was told before it was asked for is not so; it begins again."""


def _ask(statements: list[Statement]) -> Generator[list[Statement], list[Any], list[Any]]:
    return (yield statements)


class Transaction:
    """Answers what one plan asks.

    What it writes before its first question waits, and if it asks none, all of it is one statement, which needs no
    BEGIN and no COMMIT. What may be taken for granted (`Likely`) is no question: it is told so, and that is checked
    with the first thing that is asked, or in that one statement.

    `turn` is taken when the plan first asks or writes: what it works out before is in nobody's way, what it looks at
    after that stays so until it ends.

    A class, for closures that know each other are a cycle, which only the garbage collector frees. No cursor is
    kept: one that outlived its statement would reset it when it is collected, under another's use.
    """

    __slots__ = ("_asked", "_begun", "_connection", "_guesses", "_guessing", "_waiting", "_work")

    def __init__(self, connection: sqlite3.Connection, work: Work[Any], guessing: bool) -> None:
        self._connection, self._work, self._guessing = connection, work, guessing
        self._asked = self._begun = False
        self._waiting: list[Batch] = []
        self._guesses: list[ops.Likely[Any]] = []

    def run(self, turn: threading.Lock) -> Any:
        plan = self._work.start()
        try:
            question = next(plan)
            while self._guessing and isinstance(question, ops.Likely):
                self._guesses.append(question)
                question = plan.send(question.likely)
        except StopIteration as done:
            if self._guesses:  # all that it asks: so it wants to know
                raise WrongGuess from done
            return done.value
        with turn:
            try:
                result = drive(plan, self._answer, question)
                if not self._begun and self._waiting:
                    self._write()
                if self._begun:
                    self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        return result

    def _answer(self, op: ops.Op[Any]) -> Any:
        if isinstance(op, ops.Together):
            if op.final and self._guessing and not self._work.write:
                answers = [as_asking(ANSWERS[type(question)](question, _DIALECT)) for question in op.questions]
                return drive(abreast(answers, _ask), self._execute_all)
            return [*map(self._answer, op.questions)]
        if isinstance(op, Stands):
            return self._stands(op)
        answer = ANSWERS[type(op)](op, _DIALECT)
        if isinstance(answer, list):
            return self._store(answer)
        return drive(answer, self._execute)

    def _stands(self, op: Stands) -> bool:
        """Asked in one statement, which needs no transaction. Nobody relies on a no."""
        if not self._guessing or self._asked or self._begun or self._work.write:
            return False
        if len(op.values) + len(op.empty) > MOST_CHANNELS:
            return False
        text, parameters = check_of_head(op)
        self._asked = bool(self._connection.execute(text, parameters).fetchall())
        return self._asked

    def _execute(self, statement: Statement) -> Any:
        if isinstance(statement, Batch):
            return self._store([statement])
        if not self._begun:
            self._begin_asking()
        return self._connection.execute(statement.text, statement.parameters).fetchall()

    def _execute_all(self, statements: list[Statement]) -> list[Any]:
        """In one statement, which needs no BEGIN and no COMMIT, if they are the first and there is one for them."""
        if self._asked or self._begun or (one := asked_at_once(statements)) is None:
            return [*map(self._execute, statements)]
        self._asked = True
        text, parameters, widths = one
        answers: list[list[Any]] = [[] for _ in statements]
        for row in self._connection.execute(text, parameters).fetchall():
            position = row[0]
            answers[position].append(row[1 : widths[position] + 1])
        return answers

    def _store(self, batches: list[Batch]) -> None:
        if not self._begun:
            self._waiting += batches
            return
        for batch in batches:
            self._connection.executemany(batch.text, batch.rows)

    def _begin_asking(self) -> None:
        if self._asked:
            raise WrongGuess
        self._connection.execute("BEGIN IMMEDIATE" if self._work.write else "BEGIN")
        self._begun = True
        for guess in self._guesses:
            if self._answer(guess) != guess.likely:
                raise WrongGuess
        self._store(self._waiting)

    def _write(self) -> None:
        """Write all that waits, in one statement if there is one for it."""
        statement = at_once([*map(check_of, self._guesses), *self._waiting])
        if statement is None:
            self._begin_asking()
            return
        try:
            # not `execute`, which lets go of Python's lock once more, to ask for the row id that no row here has
            self._connection.executemany(statement[0], (statement[1],))
        except Exception as error:
            if str(error) == WRONG:
                raise WrongGuess from error
            raise


def first_questions() -> Iterator[str]:
    """What is asked to go on with a thread, of which nothing or the last checkpoint is known."""
    for full, empty in product((1, 2, 3, 4), (2, 3)):  # empty are the input and what led to the last nodes
        yield text_of_head(full, empty)
    checkpoint = FindCheckpoints("", "", limit=1)
    for channels in (0, 1, 2, 3, 4):
        values = FindValues("", "", frozenset([ValueKey(str(i), "") for i in range(channels)]))
        known: list[ops.Op[Any]] = [values, FindWrites("", "", ("",))] if channels else []
        asked = [next(as_asking(ANSWERS[type(op)](op, _DIALECT)), None) for op in (checkpoint, *known)]
        questions = [question for question in asked if question is not None]  # a backend may answer in its own way
        if not known:
            yield from [question.text for question in questions]
        elif (one := asked_at_once(questions)) is not None:
            yield one[0]
