"""The methods of a transaction, and that the common subset of SQL means the same on both engines."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.database import Row, Schema, Step, Transaction
from homeserver.database.translation import (
    split_in,
    split_statements,
    translate_definition,
    translate_statement,
)
from homeserver.errors import MatrixError
from tests.database import items
from tests.support.database import now_ms, opened

NOTES = Schema(
    "notes",
    (
        Step(
            "create",
            """
            -- A comment; with a semicolon, and a word like INTEGER.
            CREATE TABLE notes (
                id INTEGER PRIMARY KEY,
                owner TEXT NOT NULL,
                kind TEXT NOT NULL DEFAULT 'INTEGER; TEXT',
                count INTEGER NOT NULL DEFAULT 0
            ) STRICT;
            CREATE TABLE pairs (a TEXT NOT NULL, b INTEGER NOT NULL, PRIMARY KEY (a, b)) WITHOUT ROWID, STRICT;
            INSERT INTO pairs (a, b) VALUES ('x;y', 1);
            """,
        ),
    ),
)


def write_all_kinds(tx: Transaction) -> list[Row]:
    rows = [
        (1, "ascii", 2**62, b"\x00\xff'%s?", 0.5),
        (2, "ünïcode 👍 % ? '", -1, b"", None),
        (3, "none", None, None, None),
        (4, "bool", True, None, 1.0),
    ]
    tx.many("INSERT INTO items (position, name, size, body, weight) VALUES (?, ?, ?, ?, ?)", rows)
    return tx.all("SELECT position, name, size, body, weight FROM items ORDER BY position")


async def test_values_are_read_as_written(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        assert await database.write(write_all_kinds) == [
            (1, "ascii", 2**62, b"\x00\xff'%s?", 0.5),
            (2, "ünïcode 👍 % ? '", -1, b"", None),
            (3, "none", None, None, None),
            (4, "bool", 1, None, 1.0),
        ]


async def test_statements_of_the_common_subset_are_accepted(database_url: str) -> None:
    def use(tx: Transaction) -> None:
        insert = "INSERT INTO notes (owner) VALUES (?) RETURNING id, kind"
        first = tx.one(insert, "a")
        assert first is not None and first[1] == "INTEGER; TEXT"
        assert tx.one(insert, "b") == (first[0] + 1, "INTEGER; TEXT")
        assert tx.values("SELECT a FROM pairs") == ["x;y"]
        add = "INSERT INTO pairs (a, b) VALUES (?, ?) ON CONFLICT (a, b) DO NOTHING"
        assert [tx.run(add, "p", 1), tx.run(add, "p", 1)] == [1, 0]
        count = (
            "INSERT INTO notes (id, owner, count) VALUES (?, ?, 1)"
            " ON CONFLICT (id) DO UPDATE SET count = notes.count + excluded.count RETURNING count"
        )
        assert [tx.values(count, 100, "c"), tx.values(count, 100, "c")] == [[1], [2]]
        assert tx.run("UPDATE notes SET count = count + ? WHERE owner IN ('a', 'b')", 40_000) == 2
        assert tx.one("SELECT SUM(count), COUNT(*), MAX(owner) FROM notes") == (80_002, 3, "c")
        assert tx.one("SELECT 100 % 7, '50%', '?', owner = 'a' FROM notes WHERE owner = ?", "a") == (2, "50%", "?", 1)
        assert tx.one("SELECT CAST(? AS INTEGER) + 1", 2**40) == (2**40 + 1,)
        assert tx.one(
            "WITH RECURSIVE up(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM up WHERE n < ?) SELECT SUM(n) FROM up", 4
        ) == (10,)
        assert tx.run("DELETE FROM notes WHERE id = ? AND owner IS NOT DISTINCT FROM ?", 100, "c") == 1
        assert tx.one("SELECT 1 FROM notes WHERE id = ?", 100) is None

    async with opened(database_url, NOTES) as database:
        await database.write(use)


@pytest.mark.postgres
async def test_postgresql_refuses_a_nul(postgres_url: str) -> None:
    async with opened(postgres_url, items.SCHEMA) as database:
        await database.write(items.store, "one")
        for call in (
            database.write(items.store, "a\0b"),
            database.read(lambda tx: tx.one("SELECT position FROM items WHERE name = ?", "a\0b")),
        ):
            with pytest.raises(MatrixError, match="M_INVALID_PARAM"):
                await call
        assert await database.read(items.list_names) == ["one"]


async def test_text_is_sorted_by_bytes(database_url: str) -> None:
    """Also on a PostgreSQL database whose own collation is another."""
    names = ["a", "B", "_", "~", "@a:x", "ä", "Z", "#", "é", "👍", "￿"]

    def use(tx: Transaction) -> list[str]:
        tx.many("INSERT INTO pairs (a, b) VALUES (?, 2)", [(name,) for name in names])
        assert tx.values("SELECT a FROM pairs WHERE b = 2 AND a > ? ORDER BY a", "Z") == sorted(
            n for n in names if n > "Z"
        )
        return tx.values("SELECT a FROM pairs WHERE b = 2 ORDER BY a")

    async with opened(database_url, NOTES) as database:
        assert await database.write(use) == sorted(names)


async def test_lists_of_any_length_can_be_bound(database_url: str) -> None:
    def use(tx: Transaction) -> None:
        tx.many("INSERT INTO pairs (a, b) VALUES (?, ?)", [(f"n{number % 2}", number) for number in range(1200)])
        sql = "SELECT b FROM pairs WHERE a = ? AND b IN (?*) AND b < ?"
        for count in (0, 1, 2, 3, 499, 500, 501, 1000, 1200):
            found = tx.all_in(sql, range(count), "n1", 1100)
            assert sorted(b for (b,) in found) == [b for b in range(min(count, 1100)) if b % 2]
        assert tx.all_in("SELECT b FROM pairs WHERE a IN (?*) AND b = ?", {"n0", "n1", "n2"}, 7) == [(7,)]

    async with opened(database_url, NOTES) as database:
        await database.write(use)


async def test_lists_of_bytes_can_be_bound(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        await database.write(write_all_kinds)
        sql = "SELECT name FROM items WHERE body IN (?*) ORDER BY position"
        found = await database.read(lambda tx: tx.all_in(sql, [b"", b"other", b"\x00\xff'%s?"]))
        assert found == [("ascii",), ("ünïcode 👍 % ? '",)]


async def test_a_transaction_has_one_time(database_url: str) -> None:
    async with opened(database_url) as database:
        before = now_ms()
        moment = await database.write(lambda tx: tx.now_ms)
        assert before <= moment <= now_ms()


async def test_caches_belong_to_the_database(database_url: str) -> None:
    async with opened(database_url) as database:
        await database.write(lambda tx: tx.cache("things", 4).put("key", "value"))
        assert await database.read(lambda tx: tx.cache("things", 4).get("key")) == "value"

        def fill(tx: Transaction) -> int:
            cache = tx.cache("things", 4)
            for number in range(100):
                cache.put(number, number)
            return sum(cache.get(number) is not None for number in range(100))

        assert await database.read(fill) <= 4


def test_parameters_in_strings_and_comments_are_ignored() -> None:
    assert translate_statement("SELECT ? FROM t WHERE a = '?%''?' AND b LIKE ?") == (
        "SELECT %s FROM t WHERE a = '?%%''?' AND b LIKE %s"
    )
    assert translate_statement('SELECT "a?" -- why?\n, ? % 2') == 'SELECT "a?" -- why?\n, %s %% 2'
    assert translate_statement("x IN (?*) AND CAST(? AS INTEGER)") == "x = ANY(%s) AND CAST(%s AS BIGINT)"


def test_a_list_parameter_appears_once_and_is_never_negated() -> None:
    assert split_in("a = ? AND b = '?' AND c IN (?*) AND d = ?")[2] == 1
    for sql in ("a = ?", "a IN (?*) OR b IN (?*)", "a NOT IN (?*)"):
        with pytest.raises(ValueError, match="marker"):
            split_in(sql)


def test_definitions_are_translated_to_postgresql_types() -> None:
    sql = "CREATE TABLE t (id INTEGER PRIMARY KEY, a TEXT DEFAULT 'TEXT', b BLOB, c REAL) WITHOUT ROWID, STRICT;"
    assert translate_definition(sql) == (
        "CREATE TABLE t (id BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, a TEXT COLLATE \"C\" DEFAULT 'TEXT',"
        " b BYTEA, c DOUBLE PRECISION);"
    )
    assert translate_definition("ALTER TABLE t ADD COLUMN d INTEGER;") == "ALTER TABLE t ADD COLUMN d BIGINT;"
    assert translate_definition("INSERT INTO t SELECT '%', 'INTEGER' WHERE 1 % 2;") == (
        "INSERT INTO t SELECT '%', 'INTEGER' WHERE 1 % 2;"
    )


def test_scripts_are_split_into_statements() -> None:
    sql = "-- a; b\nCREATE TABLE t (a TEXT DEFAULT ';');;\n INSERT INTO t VALUES ('x;');\n-- end;\n"
    assert list(split_statements(sql)) == [
        "-- a; b\nCREATE TABLE t (a TEXT DEFAULT ';');",
        "INSERT INTO t VALUES ('x;');",
    ]
    with pytest.raises(ValueError, match="semicolon"):
        list(split_statements("CREATE TABLE t (a TEXT)"))


@given(st.lists(st.sampled_from(["?", "%", "'a?%'", "--?\n", " ", "x", '"q?"']), max_size=12))
def test_translation_keeps_the_number_of_parameters(parts: list[str]) -> None:
    """psycopg sees exactly the parameters that SQLite sees, and every other `%` as itself."""
    sql = " ".join(parts)
    translated = translate_statement(sql)
    assert translated.replace("%%", "").count("%s") == parts.count("?")
    assert translated.replace("%%", "").replace("%s", "").count("%") == 0


async def test_reads_go_on_after_one_that_was_interrupted(database_url: str) -> None:
    def interrupt(tx: Transaction) -> None:
        tx.all("SELECT position FROM items")
        raise KeyboardInterrupt

    async with opened(database_url, items.SCHEMA) as database:
        for _ in range(20):  # on every connection
            with pytest.raises(KeyboardInterrupt):
                await database.read(interrupt)
        assert await database.read(lambda tx: tx.all("SELECT position FROM items")) == []
