"""Generations of the change stream: by which a token of another history is told from one of ours.

Theory of operation. A backup that is restored takes the stream back, and the positions that clients were told since are
taken anew, by other changes. A position alone therefore does not say what its holder knows. So the stream is divided
into generations: one begins whenever the database is opened by a process while no other process has it open, gets a
random name, and the position at that moment is recorded. Tokens carry the name of the generation in which they were
made.

A generation ends, as far as this database knows, where the next one begins; the newest one reaches to where the stream
is. That is its reach. Opening the database after a restore begins a generation, so:

- a token of a generation that is not recorded is of a history from after the backup;
- a token of the generation in which the backup was made, with a position beyond its reach, was made after the backup;
- of every other token the holder knows what this database knows: up to the reach the two histories are the same.

Several nodes on one database share a generation. A process that ends in whatever way leaves nothing to be done: it has
given out no position that is not durable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from homeserver.database.session import Row
from homeserver.database.transaction import Transaction

# A client that was away for so many restarts syncs from the beginning. A row has some 40 bytes.
GENERATIONS_KEPT = 1_000

_Execute = Callable[[str, Sequence[Any]], Any]


def begin_generation(execute: _Execute) -> str:
    """Begins a generation where the stream is now, and answers its name. `execute` takes `?` for each parameter."""
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
    """The name of the generation that other processes are in."""
    row: Row = execute("SELECT name FROM stream_generations ORDER BY number DESC LIMIT 1", ()).fetchone()
    return str(row[0])


def find_reach(tx: Transaction, generation: str) -> int | None:
    """The last position of a generation, as far as this database knows it; None if it knows no such generation."""
    row = tx.one("SELECT number FROM stream_generations WHERE name = ?", generation)
    if row is None:
        return None
    following = tx.one("SELECT began FROM stream_generations WHERE number > ? ORDER BY number LIMIT 1", row[0])
    return tx.position if following is None else int(following[0])
