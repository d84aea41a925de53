"""Tables are brought up to date step by step; a database that is newer than the program is refused."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from homeserver.database import Database, DatabaseError, Schema, Step, Transaction
from homeserver.process.back_off import BackOff
from homeserver.remote.destinations import list_destinations
from homeserver.remote.schema import SCHEMA as FEDERATION
from tests.support.database import opened

ONE = Step("one", "CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT NOT NULL);")
TWO = Step("two", "ALTER TABLE a ADD COLUMN y INTEGER NOT NULL DEFAULT 0; CREATE INDEX a_by_y ON a (y);")
THREE = Step("three", "CREATE TABLE b AS SELECT x, y FROM a WHERE y = 0; DROP INDEX a_by_y;")
SCHEMA = Schema("sample", (ONE, TWO, THREE))
OTHER = Schema("other", (Step("one", "CREATE TABLE c (v BLOB);"),))


async def read_tables(database: Database) -> object:
    """Every table, column and index, as the engine describes them."""

    def read(tx: Transaction) -> object:
        if type(tx._session).__name__ == "SqliteSession":
            definitions = tx.all("SELECT name, sql FROM sqlite_master ORDER BY name")
            return [(name, re.sub(r"\s+", " ", sql or "")) for name, sql in definitions]
        columns = tx.all(
            "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY table_name, ordinal_position"
        )
        return columns, tx.all("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexdef")

    return await database.read(read)


async def list_ledger(database: Database) -> list[tuple[object, ...]]:
    """Returns the applied steps, without those of the database itself."""
    rows = await database.read(lambda tx: tx.all("SELECT migration_set, name FROM _sqlite_migrations ORDER BY id"))
    return [row for row in rows if row[0] != "database"]


async def test_each_step_is_applied_once(database_url: str) -> None:
    async with opened(database_url, replace(SCHEMA, steps=(ONE,))) as database:
        await database.write(lambda tx: tx.run("INSERT INTO a (x) VALUES ('kept')"))
        assert await list_ledger(database) == [("sample", "one")]
    for _ in range(2):
        async with opened(database_url, SCHEMA, OTHER) as database:
            assert await database.read(lambda tx: tx.all("SELECT x, y FROM b")) == [("kept", 0)]
            assert await list_ledger(database) == [
                ("sample", "one"),
                ("sample", "two"),
                ("sample", "three"),
                ("other", "one"),
            ]


@pytest.mark.parametrize("first", [0, 1, 2, 3])
async def test_migrated_tables_equal_new_ones(request: pytest.FixtureRequest, database_url: str, first: int) -> None:
    """However far an older program had come, the tables end up the same."""
    async with opened(database_url, replace(SCHEMA, steps=SCHEMA.steps[:first])):
        pass
    async with opened(database_url, SCHEMA) as database:
        migrated = await read_tables(database)
    if database_url.startswith("sqlite"):
        async with opened("sqlite::memory:", SCHEMA, inline=True) as database:
            assert await read_tables(database) == migrated
    else:
        async with opened(request.getfixturevalue("postgres_cluster").make_database(), SCHEMA) as database:
            assert await read_tables(database) == migrated


async def test_a_newer_database_is_refused(database_url: str) -> None:
    async with opened(database_url, SCHEMA, OTHER):
        pass
    for schemas, step in (((replace(SCHEMA, steps=(ONE, TWO)), OTHER), "sample/three"), ((SCHEMA,), "other/one")):
        with pytest.raises(DatabaseError, match=f"newer than this program.*{step}"):
            async with opened(database_url, *schemas):
                pass
    async with opened(database_url, SCHEMA, OTHER):
        pass


async def test_a_database_that_a_newer_program_has_only_expanded_is_used(database_url: str) -> None:
    older = replace(SCHEMA, steps=(ONE,))
    added = Step("expand with y", "ALTER TABLE a ADD COLUMN y INTEGER;")
    newer = replace(SCHEMA, steps=(ONE, added))
    beside = Schema("other", (Step("expand with c", "CREATE TABLE c (v BLOB);"),))
    async with opened(database_url, newer, beside) as database:
        await database.write(lambda tx: tx.run("INSERT INTO a (x, y) VALUES ('new', 1)"))
    async with opened(database_url, older) as database:
        await database.write(lambda tx: tx.run("INSERT INTO a (x) VALUES ('old')"))
    contracted = replace(newer, steps=(ONE, added, Step("contract x", "ALTER TABLE a DROP COLUMN x;")))
    async with opened(database_url, newer, beside) as database:
        assert await database.read(lambda tx: tx.all("SELECT x, y FROM a ORDER BY id")) == [("new", 1), ("old", None)]
    async with opened(database_url, contracted, beside):
        pass
    for schemas in ((older,), (newer, beside)):
        with pytest.raises(DatabaseError, match=r"newer than this program.*sample/contract x"):
            async with opened(database_url, *schemas):
                pass


async def test_steps_of_an_older_program_are_applied_beside_unknown_expansions(database_url: str) -> None:
    async with opened(database_url, replace(SCHEMA, steps=(ONE, Step("expand later", "CREATE TABLE d (v BLOB);")))):
        pass
    async with opened(database_url, replace(SCHEMA, steps=(ONE, TWO))) as database:
        assert await database.read(lambda tx: tx.all("SELECT y FROM a")) == []


async def test_a_failed_step_is_rolled_back_completely(database_url: str) -> None:
    broken = Step("two", "CREATE TABLE d (v BLOB); INSERT INTO missing (x) VALUES (1);")
    with pytest.raises(DatabaseError, match="missing"):
        async with opened(database_url, replace(SCHEMA, steps=(ONE, broken))):
            pass
    async with opened(database_url, SCHEMA) as database:
        assert await list_ledger(database) == [("sample", "one"), ("sample", "two"), ("sample", "three")]
        with pytest.raises(Exception, match=r"no such table|does not exist"):
            await database.read(lambda tx: tx.one("SELECT * FROM d"))


async def test_sqlite_utils_can_read_the_ledger(sqlite_url: str) -> None:
    """`sqlite-utils migrate --list` and the like see what was applied."""
    import sqlite_utils

    async with opened(sqlite_url, SCHEMA):
        pass
    migrations = sqlite_utils.Migrations("sample")
    applied = migrations.applied(sqlite_utils.Database(sqlite_url.removeprefix("sqlite:")))
    assert [step.name for step in applied] == ["one", "two", "three"]


async def test_nodes_that_start_together_migrate_once(postgres_url: str) -> None:
    databases: list[Database] = []

    async def start(*, task_status: trio.TaskStatus[None]) -> None:
        async with opened(postgres_url, SCHEMA, OTHER) as database:
            databases.append(database)
            task_status.started()

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(nursery.start, start)
    async with opened(postgres_url, SCHEMA, OTHER) as database:
        assert len(await list_ledger(database)) == 4


async def test_two_servers_cannot_open_one_file(sqlite_url: str) -> None:
    async with opened(sqlite_url):
        with pytest.raises(DatabaseError, match="in use by another server"):
            async with opened(sqlite_url):
                pass
        async with opened(sqlite_url, exclusive=False) as beside:
            assert await beside.read(lambda tx: tx.position) == 0
    async with opened(sqlite_url):
        pass


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("sqlite:/nonexistent/folder/x.db", "folder /nonexistent/folder for the database does not exist"),
        ("sqlite:/", "cannot be opened: Is a directory"),
        ("mysql://x", "must begin with"),
        ("postgresql:///x?host=/nonexistent&connect_timeout=1", "cannot be reached"),
    ],
)
async def test_failures_to_open_a_database_are_explained(url: str, sentence: str) -> None:
    with pytest.raises(DatabaseError, match=sentence):
        async with opened(url):
            pass


async def test_a_file_that_is_not_a_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.db"
    path.write_text("This is a text, and a long one at that. " * 100)
    with pytest.raises(DatabaseError, match="not a database"):
        async with opened(f"sqlite:{path}"):
            pass


async def test_only_the_owner_can_read_the_file(sqlite_url: str, tmp_path: Path) -> None:
    async with opened(sqlite_url) as database:
        await database.write(lambda tx: tx.next_position())
        rights = {os.path.basename(entry): entry.stat().st_mode & 0o777 for entry in os.scandir(tmp_path)}
    assert set(rights) == {"test.db", "test.db-wal", "test.db-shm", "test.db.lock"}
    assert set(rights.values()) == {0o600}


async def test_commits_are_synced_to_disk(sqlite_url: str) -> None:
    """The connection that writes uses `synchronous=FULL`."""
    async with opened(sqlite_url) as database:
        settings = await database.write(
            lambda tx: [tx.values(f"PRAGMA {name}") for name in ("journal_mode", "synchronous", "foreign_keys")]
        )
        assert settings == [["wal"], [2], [1]]


def test_starting_on_sqlite_imports_neither_postgresql_nor_tools(tmp_path: object) -> None:
    """sqlite-utils is for pending steps, psycopg for PostgreSQL: neither costs a start anything."""
    program = (
        "import sys, trio\n"
        "from homeserver.database import open_database\n"
        "async def main():\n"
        f"    database = await open_database('sqlite:{tmp_path}/x.db', [], now_ms=lambda: 0)\n"
        "    await database.aclose()\n"
        "trio.run(main)\n"
        "print([name for name in ('sqlite_utils', 'psycopg', 'zstandard') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program]
    answers = [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() for _ in range(2)]
    assert answers == ["[]", "[]"]


def test_sqlite_is_recent_enough() -> None:
    assert sqlite3.sqlite_version_info >= (3, 39)


async def test_destinations_from_before_lanes_lag_in_the_ordinary_lane(database_url: str) -> None:
    """Their rows were in another table, and nothing durable was sent at that time."""
    before = [step.name for step in FEDERATION.steps].index("006_lanes")

    def lag(tx: Transaction) -> None:
        tx.run(
            "INSERT INTO destinations (server_nid, acked_position, failures, since_ms, retry_after_ms)"
            " VALUES (?, 7, 0, 1, 1), (?, 9, 3, 100, 200)",
            tx.intern("slow.example"),
            tx.intern("away.example"),
        )

    async with opened(database_url, replace(FEDERATION, steps=FEDERATION.steps[:before])) as database:
        await database.write(lag)
    async with opened(database_url, FEDERATION) as database:
        found, failed = await database.read(list_destinations)
    assert failed == []
    assert found == {"slow.example": {False: (7, None)}, "away.example": {False: (9, BackOff(3, 100, 200))}}
