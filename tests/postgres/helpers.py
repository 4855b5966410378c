"""Stores on a PostgreSQL server, and what of an exchange with it is the commit."""

from __future__ import annotations

import psycopg

from memstate_langgraph import PostgresStorage
from memstate_langgraph.backends.postgres_engine import Exchange
from tests.wire import opener

open_store = opener(PostgresStorage, "schema")


def with_options(url: str, options: str) -> str:
    return psycopg.conninfo.make_conninfo(url, options=options)


def commits(step: Exchange) -> bool:
    return any(statement.text == "COMMIT" for statement in step.statements)
