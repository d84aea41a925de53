"""Checks that the values of a row have the types of their columns.

SQLite returns whatever lies in a damaged page, and an edited database holds whatever somebody put there:
text in place of a number, a number in place of bytes. A check where the row is read raises an error that names the
damage. Without it, the value fails somewhere else and looks like a bug.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from types import UnionType
from typing import TypeVar, get_args

from homeserver.database.schema import DatabaseDamaged
from homeserver.database.session import Row

RowTypes = frozenset[tuple[type, ...]]
Kind = TypeVar("Kind")


def row_types(*columns: type | UnionType) -> RowTypes:
    """Returns the types that a row of these columns may have. `int | None` is a column that may be NULL."""
    return frozenset(product(*(get_args(column) or (column,) for column in columns)))


def check_rows(rows: Iterable[Row], types: RowTypes, what: str) -> None:
    """Raises DatabaseDamaged, naming the first column's value, unless each row has one of `types`. what: for people."""
    for row in rows:
        if tuple(map(type, row)) not in types:
            raise _damage(row, what)


def kinds_of(rows: Sequence[Row], kinds: Mapping[tuple[type, ...], Kind], what: str) -> list[Kind]:
    """Returns the kind of each row, which its types decide. Raises DatabaseDamaged like `check_rows`."""
    try:
        return [kinds[tuple(map(type, row))] for row in rows]
    except KeyError:
        raise _damage(next(row for row in rows if tuple(map(type, row)) not in kinds), what) from None


def _damage(row: Row, what: str) -> DatabaseDamaged:
    return DatabaseDamaged(f"The {what} {row[0]!r:.100} is damaged: {_describe(row)}.")


def _describe(row: Row) -> str:
    return "its columns hold " + ", ".join(type(value).__name__ for value in row)
