"""All rows of a table that belong to someone, whatever its columns are: for inventories of a person's data.

The only place outside of the engines where a table's name is not written in the statement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from homeserver.database.transaction import Transaction

_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def list_rows_of(
    tx: Transaction, table: str, column: str, owners: Sequence[object], skipped: int, limit: int
) -> list[dict[str, Any]]:
    """Returns at most `limit` rows in which a column has one of the values, by column name, after the first `skipped`.

    owners: at most a few hundred values.
    """
    if not owners:
        return []
    condition = f"{_checked(column)} IN ({', '.join('?' * len(owners))})"
    columns = tx.columns(f"SELECT * FROM {_checked(table)} WHERE {condition} LIMIT 0", *owners)
    order = ", ".join(columns)
    sql = f"SELECT {order} FROM {table} WHERE {condition} ORDER BY {order} LIMIT ? OFFSET ?"
    return [dict(zip(columns, row, strict=True)) for row in tx.all(sql, *owners, limit, skipped)]


def has_rows_of(tx: Transaction, table: str, column: str, owner: object) -> bool:
    """Returns whether a row has this value in a column."""
    return tx.one(f"SELECT 1 FROM {_checked(table)} WHERE {_checked(column)} = ? LIMIT 1", owner) is not None


def delete_rows_of(tx: Transaction, table: str, column: str, owner: object) -> int:
    """Deletes the rows in which a column has this value. Returns how many there were."""
    return tx.run(f"DELETE FROM {_checked(table)} WHERE {_checked(column)} = ?", owner)


def _checked(name: str) -> str:
    assert _NAME.fullmatch(name), name
    return name
