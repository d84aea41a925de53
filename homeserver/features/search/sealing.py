"""The key that seals the search index, which has the words of conversations.

Like all keys it is in the database, wrapped by the master key, and rotated with the others. Nodes that share a database
share it; each has an index of its own.
"""

from __future__ import annotations

from homeserver.config import Config
from homeserver.database import Database, DatabaseDamaged, Schema, Step, Transaction
from homeserver.rooms.keys import create_key, find_key

SCHEMA = Schema(
    "search",
    (
        Step(
            "001_key",
            """
            -- number: of the key in sealing_keys that seals the index.
            CREATE TABLE search_key (id INTEGER PRIMARY KEY CHECK (id = 1), number INTEGER NOT NULL);
            """,
        ),
    ),
)


async def get_index_key(database: Database, config: Config) -> bytes | None:
    """Returns the key that seals the index, which is created if there is none. None if it is not to be sealed."""
    if not config.at_rest.events:
        return None
    key = await database.read(_find)
    return await database.write(_create) if key is None else key


def _find(tx: Transaction) -> bytes | None:
    row = tx.one("SELECT number FROM search_key WHERE id = 1")
    try:
        key = None if row is None else find_key(tx, int(row[0]), None)
    except DatabaseDamaged:  # what it has sealed can be made again from the events
        return None
    return None if key is None else key.secret


def _create(tx: Transaction) -> bytes:
    found = _find(tx)
    if found is not None:
        return found  # another node has just created it
    key = create_key(tx, None)
    tx.run(
        "INSERT INTO search_key (id, number) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET number = excluded.number",
        key.number,
    )
    return key.secret
