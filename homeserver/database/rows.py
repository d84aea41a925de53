"""All rows of a table that belong to someone, whatever its columns are: for inventories of a person's data.

The only place outside of the engines where a table's name is not written in the statement.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from homeserver.database.transaction import Transaction

_NAME = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


Json = dict[str, Any]


def list_rows_of(
    tx: Transaction, table: str, column: str, owners: Sequence[object], after: Json | None, limit: int
) -> list[Json]:
    """Returns the first `limit` rows in which a column has one of the values, by column name, by their key.

    owners: at most a few hundred values. after: the last row of the page before, None for the first page.
    """
    if not owners:
        return []
    condition, params = f"{_checked(column)} IN ({', '.join('?' * len(owners))})", [*owners]
    key = [_checked(name) for name in tx.key_columns(_checked(table))]
    order = ", ".join(key)
    if after is not None:
        condition += f" AND ({order}) > ({', '.join('?' * len(key))})"
        params += [after[name] for name in key]
    columns = tx.columns(f"SELECT * FROM {table} WHERE {column} = ? LIMIT 0", owners[0])
    sql = f"SELECT {', '.join(columns)} FROM {table} WHERE {condition} ORDER BY {order} LIMIT ?"
    return [dict(zip(columns, row, strict=True)) for row in tx.all(sql, *params, limit)]


def has_rows_of(tx: Transaction, table: str, column: str, owner: object) -> bool:
    """Returns whether a row has this value in a column."""
    return tx.one(f"SELECT 1 FROM {_checked(table)} WHERE {_checked(column)} = ? LIMIT 1", owner) is not None


def delete_rows_of(tx: Transaction, table: str, column: str, owner: object) -> int:
    """Deletes the rows in which a column has this value. Returns how many there were."""
    return tx.run(f"DELETE FROM {_checked(table)} WHERE {_checked(column)} = ?", owner)


def _checked(name: str) -> str:
    assert _NAME.fullmatch(name), name
    return name
