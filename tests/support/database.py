"""Fixtures for tests of storage: each runs on SQLite and on PostgreSQL.

CI installs PostgreSQL: with CI=true its absence is a failure, elsewhere these tests are skipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from homeserver.database import Database, Schema, open_database
from tests.support.postgres import Cluster, missing_reason, running_cluster


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Cluster]:
    """One PostgreSQL server for all tests of the run."""
    reason = missing_reason()
    if reason is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def postgres_url(postgres_cluster: Cluster) -> Iterator[str]:
    """The URL of a new database on PostgreSQL."""
    yield postgres_cluster.make_database()
    postgres_cluster.drop_idle_databases()


@pytest.fixture
def own_cluster(postgres_cluster: Cluster) -> Iterator[Cluster]:
    """A PostgreSQL server that a test may stop and start."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a new database in a file."""
    return f"sqlite:{tmp_path}/test.db"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a new database, on each engine in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


def now_ms() -> int:
    """Wall time."""
    return time.time_ns() // 1_000_000


@asynccontextmanager
async def opened(url: str, *schemas: Schema, inline: bool = False, exclusive: bool = True) -> AsyncIterator[Database]:
    """The database at `url`, closed at the end."""
    database = await open_database(url, schemas, inline=inline, exclusive=exclusive, now_ms=now_ms)
    try:
        yield database
    finally:
        await database.aclose()
