"""Which database is behind the servers of tests: SQLite, or PostgreSQL with TEST_DATABASE=postgres in the environment.

Tests of storage alone (`tests.support.database`) run on both, whatever is chosen here.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path

from homeserver.database import Schema, Transaction
from homeserver.database.schema import CORE_SCHEMA
from homeserver.database.sqlite import empty_database
from tests.support.postgres import Cluster, running_cluster

ENGINE = os.environ.get("TEST_DATABASE", "sqlite")
if ENGINE not in ("sqlite", "postgres"):
    raise RuntimeError(f'TEST_DATABASE is "sqlite" or "postgres", not {ENGINE!r}')

DATABASE_FILE = "sqlite:homeserver.db"
"""The database of a server in its `data_dir`."""


def memory_url() -> str:
    """The URL of a new database that is opened only once."""
    return "sqlite::memory:" if ENGINE == "sqlite" else _cluster().make_database()


def file_url(folder: Path) -> str:
    """The URL of the database of the server whose `data_dir` this is: the same whenever it is asked for."""
    return DATABASE_FILE if ENGINE == "sqlite" else _database_of(folder)


def make_file(path: Path, schemas: Sequence[Schema]) -> None:
    """Makes the database file of a new server as its first start does, unless there is one; at a tenth of the cost."""
    if ENGINE == "sqlite" and not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(empty_database((CORE_SCHEMA, *schemas)))


def drop_databases() -> None:
    """Removes the databases that no server has open; to be called where no server will be started again."""
    if ENGINE == "postgres" and _cluster.cache_info().currsize:
        _cluster().drop_idle_databases()


def list_tables(tx: Transaction) -> list[str]:
    """The names of all tables of such a database, but for those of the migrations."""
    names = tx.values(
        "SELECT name FROM sqlite_master WHERE type = 'table'"
        if ENGINE == "sqlite"
        else "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
    )
    return sorted(name for name in names if "sqlite" not in name)


@cache
def _cluster() -> Cluster:
    """One PostgreSQL server for all tests of the process, and as long as it runs."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(running_cluster())


@cache
def _database_of(folder: Path) -> str:
    return _cluster().make_database()
