"""Generations of the change stream: how we recognise a token from a history that a restore has undone.

Theory of operation. Restoring a backup sets the stream back. Positions that clients have received since the backup are
then reused for other changes, so a position alone does not say what its holder knows. The stream is therefore divided
into generations. A generation begins whenever a process opens the database while no other process has it open. It gets
a random name, and the position at that moment is recorded. Each token carries the name of its generation.

As far as this database knows, a generation ends where the next one begins, and the newest one ends at the current
position of the stream. This end is called its reach. Opening the database after a restore begins a new generation, so:

- a token of an unrecorded generation comes from a history that began after the backup;
- a token of the generation in which the backup was made, with a position beyond its reach, was made after the backup;
- the holder of any other token knows what this database knows: up to the reach the two histories are the same.

Several nodes on one database share a generation. However a process ends, there is nothing to clean up, because it never
gave out a position that is not durable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from homeserver.database.session import Row
from homeserver.database.transaction import Transaction

# A client that was away for this many restarts syncs from the beginning. A row takes about 40 bytes.
GENERATIONS_KEPT = 1_000

_Execute = Callable[[str, Sequence[Any]], Any]


def begin_generation(execute: _Execute) -> str:
    """Begins a generation at the current position and returns its name. `execute` takes `?` for each parameter."""
    name = secrets.token_urlsafe(6)
    execute(
        "INSERT INTO stream_generations (name, began) SELECT ?, position FROM stream_position WHERE id = 1", (name,)
    )
    execute(
        "DELETE FROM stream_generations WHERE number <= (SELECT MAX(number) FROM stream_generations) - ?",
        (GENERATIONS_KEPT,),
    )
    return name


def newest_generation(execute: _Execute) -> str:
    """Returns the name of the generation that the other processes are in."""
    row: Row = execute("SELECT name FROM stream_generations ORDER BY number DESC LIMIT 1", ()).fetchone()
    return str(row[0])


def get_beginning(tx: Transaction) -> int:
    """Returns the position at which the newest generation began."""
    (began,) = tx.values("SELECT began FROM stream_generations ORDER BY number DESC LIMIT 1")
    return int(began)


def find_reach(tx: Transaction, generation: str) -> int | None:
    """Returns the last position of a generation as far as this database knows, None for an unknown generation."""
    row = tx.one("SELECT number FROM stream_generations WHERE name = ?", generation)
    if row is None:
        return None
    following = tx.one("SELECT began FROM stream_generations WHERE number > ? ORDER BY number LIMIT 1", row[0])
    return tx.position if following is None else int(following[0])
