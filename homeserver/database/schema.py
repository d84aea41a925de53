"""Schemas: the tables of each feature, as an append-only list of steps."""

from __future__ import annotations

import msgspec

from homeserver.errors import StorageDamaged, StorageError


class DatabaseError(StorageError):
    """The database cannot be opened or used. The message is one sentence for the administrator."""


class DatabaseUnavailable(DatabaseError):
    """The database cannot be read or written now: unreachable, read-only, disk full. The call may work later."""


class DatabaseBusy(DatabaseUnavailable):
    """This call took too long or conflicted with another one. Other calls may work."""


class DatabaseDamaged(DatabaseError, StorageDamaged):
    """Stored data cannot be read back, or is not what was stored."""


class Step(msgspec.Struct, frozen=True):
    """One change of the tables: one or more statements of the common subset, each ending with a semicolon.

    A step whose name begins with "expand " only adds what programs of the version before do without: a table, an
    index, a column that is nullable or has a default. These programs work with the tables as before, and start on
    them; the ledger keeps the name, because they cannot know the step. They refuse every other step that they do not
    know. So to replace a column, one version expands and writes both, and a later one contracts.
    """

    name: str
    sql: str


def is_expansion(step_name: str) -> bool:
    """Returns whether a program that does not know the step can use the tables after it, see `Step`."""
    return step_name.startswith("expand ")


class Schema(msgspec.Struct, frozen=True):
    """The tables of one feature. Each step is applied once, in order. Never change or remove a released step."""

    name: str
    steps: tuple[Step, ...]


# The database's own tables: the counter of the change stream and its generations, the interned strings, the position of
# each tail, the items that failed repeatedly (`lane`), and a row for the health check.
CORE_SCHEMA = Schema(
    "database",
    (
        Step(
            "create",
            """
            CREATE TABLE stream_position (id INTEGER PRIMARY KEY CHECK (id = 1), position INTEGER NOT NULL);
            INSERT INTO stream_position (id, position) VALUES (1, 0);
            CREATE TABLE strings (nid INTEGER PRIMARY KEY, value TEXT NOT NULL UNIQUE);
            CREATE TABLE tails (name TEXT PRIMARY KEY, position INTEGER NOT NULL);
            """,
        ),
        Step(
            "parked_items",
            """
            CREATE TABLE parked_items (
                lane TEXT NOT NULL,
                item TEXT NOT NULL,
                reason TEXT NOT NULL,
                parked_ms INTEGER NOT NULL,
                PRIMARY KEY (lane, item)
            );
            """,
        ),
        Step(
            "generations",
            """
            -- See generations.py. The first one is that of tokens from before there were generations.
            CREATE TABLE stream_generations (
                number INTEGER PRIMARY KEY,
                name TEXT NOT NULL UNIQUE,
                began INTEGER NOT NULL
            );
            INSERT INTO stream_generations (number, name, began) VALUES (0, '', 0);
            """,
        ),
        Step("write probes", "CREATE TABLE write_probes (id INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL);"),
        Step(
            "parked retries",
            """
            -- 1: an administrator wants the item to be tried again.
            ALTER TABLE parked_items ADD COLUMN is_due INTEGER NOT NULL DEFAULT 0;
            """,
        ),
        Step(
            "leases",
            """
            -- See leases.py. Only several nodes use it.
            CREATE TABLE leases (
                name TEXT PRIMARY KEY,
                owner TEXT NOT NULL,
                fence INTEGER NOT NULL,
                until_ms INTEGER NOT NULL
            );
            """,
        ),
    ),
)
