"""Exports a person's data, whole: the rows of the inventory, what the person has sent, and their files.

Everything is readable: names stand for their numbers, and what is sealed or compressed in the database is opened.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.compression import CorruptData, decompress
from homeserver.database.rows import list_rows_of
from homeserver.federation.identifiers import UserID
from homeserver.portability.files import MediaWriter
from homeserver.portability.folders import ExportError, NewFolder
from homeserver.portability.rooms import encode_event
from homeserver.remote import outside, pending_leaves
from homeserver.resources import Resources
from homeserver.rooms.messages import list_sent
from homeserver.rooms.sealed_rows import open_stripped
from homeserver.users import delayed_events
from homeserver.users.inventory import INVENTORY, Personal

ROWS_PER_READ = 2_000
POSITIONS_PER_READ = 2_000  # events have no index by sender
VALUE_BYTES_MAX = 16 << 20
OWNERS_PER_READ = 200
Tell = Callable[[int, int], object]

# What is sealed in rows of the inventory. A test exports all of them, and fails if one stays sealed.
_SEALED = frozenset({
    ("memberships", "stripped"), ("outside_memberships", "pdu"), ("pending_leaves", "content"),
    ("delayed_events", "content"),
})  # fmt: skip


async def export_person(hs: Resources, user_id: UserID, target: Path, tell: Tell) -> dict[str, Any]:
    """Writes everything that is stored about a local user to a new folder, and returns a summary. Raises ExportError.

    tell(done, of): called for each part of the change stream that was searched for the user's events.
    """
    upto = await hs.database.read(_check_known, user_id)
    with NewFolder(target) as folder:
        media = MediaWriter(hs, folder)
        rows = 0
        for number, each in enumerate(INVENTORY):
            rows += await _write_table(hs, folder, user_id, each, number, media)
        events = await _write_events(hs, folder, user_id, upto, tell)
        media.finish()
        summary = {"kind": "user", "user_id": user_id, "rows": rows, "events": events, "exported_ts": hs.now_ms()}
        summary |= {"media": media.files, "media_missing": media.missing}
        folder.finish(summary, hs.server_name, hs.signing_key)
    return {**summary, "folder": str(target)}


def _check_known(tx: Transaction, user_id: UserID) -> int:
    """Returns the end of the stream. Raises ExportError if nothing can be stored about the user."""
    if tx.find(user_id) is None:
        raise ExportError(f"this server knows nothing of {user_id}")
    return tx.position


async def _write_table(
    hs: Resources, folder: NewFolder, user_id: UserID, personal: Personal, number: int, media: MediaWriter
) -> int:
    """Writes the rows of one entry of the inventory, if there are any. Returns how many."""
    name = f"data/{personal.table}.jsonl"
    if folder.has(name):  # the table has several columns that name people
        name = f"data/{personal.table}-{personal.column}.jsonl"
    file, rows = None, 0
    place: _Place | None = _Place()
    while place is not None:
        batch, place = await hs.database.read(_read_rows, user_id, personal, place)
        for row in batch:
            file = file or folder.begin(name)
            file.write(orjson.dumps(row) + b"\n")
            if personal.table == "media":
                await media.add(f"mxc://{row['server_nid']}/{row['media_id']}")
        rows += len(batch)
    if file is not None:
        folder.end(file)
    return rows


class _Place(NamedTuple):
    """How far the rows of an entry have been read. owner, row: the last ones; None: before the first.

    owner is used by entries whose rows belong to rows of another table, `owners` then those that are read at present.
    """

    owner: dict[str, Any] | None = None
    owners: Sequence[Any] = ()
    row: dict[str, Any] | None = None


def _read_rows(
    tx: Transaction, user_id: UserID, personal: Personal, place: _Place
) -> tuple[list[dict[str, Any]], _Place | None]:
    """Returns the next rows, and where to go on; None after the last ones."""
    user_nid = tx.find(user_id)
    owner, owners = place.owner, place.owners
    if personal.by is None:
        owners = [user_nid]
    elif not owners:
        table, column = personal.by
        found = list_rows_of(tx, table, "user_nid", [user_nid], owner, OWNERS_PER_READ)
        if not found:
            return [], None
        owner, owners = found[-1], [row[column] for row in found]
    rows = list_rows_of(tx, personal.table, personal.column, owners, place.row, ROWS_PER_READ)
    if len(rows) == ROWS_PER_READ:
        following: _Place | None = _Place(owner, owners, rows[-1])
    else:
        following = None if personal.by is None else _Place(owner)
    return _describe(tx, personal, rows), following


def _describe(tx: Transaction, personal: Personal, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows as they are exported."""
    nids = {value for row in rows for name, value in row.items() if name.endswith("_nid") and _is_name(name, value)}
    names = tx.names(nids)
    return [
        {
            name: _readable(name, _open(tx, personal.table, name, row, names), names)
            for name in row
            if name not in personal.hidden
        }
        for row in rows
    ]


def _open(tx: Transaction, table: str, column: str, row: dict[str, Any], names: dict[int, str]) -> Any:
    """Returns a value of a row, opened if it is sealed. Damage is said in its place: the rest can be exported."""
    value = row[column]
    if value is None or (table, column) not in _SEALED:
        return value
    room_nid, data = row["room_nid"], bytes(value)
    try:
        match table:
            case "memberships":
                return open_stripped(tx, room_nid, row["user_nid"], data)
            case "outside_memberships":
                return outside.open_pdu(tx, room_nid, names[row["user_nid"]], data)
            case "pending_leaves":
                return pending_leaves.open_content(tx, room_nid, row["user_nid"], data)
            case _:
                return delayed_events.open_content(tx, room_nid, row["position"], data)
    except DatabaseDamaged as error:
        return f"(damaged: {error})"


def _is_name(column: str, value: Any) -> bool:
    """Returns whether a value is the number of a string. Some columns have numbers of other things, or none."""
    return isinstance(value, int) and value > 0 and column not in ("media_nid",)


def _readable(column: str, value: Any, names: dict[int, str]) -> Any:
    """Returns a value of the database as JSON: names for their numbers, JSON for what is stored compressed."""
    if column.endswith("_nid") and _is_name(column, value):
        return names[value]
    if not isinstance(value, bytes | memoryview):
        return value
    data = bytes(value)
    for text in _texts(data):
        try:
            return orjson.loads(text)
        except ValueError:
            continue
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _texts(data: bytes) -> Iterator[bytes]:
    try:
        yield decompress(data, VALUE_BYTES_MAX)
    except CorruptData:
        pass  # it is not compressed
    yield data


async def _write_events(hs: Resources, folder: NewFolder, user_id: UserID, upto: int, tell: Tell) -> int:
    """Writes all events that the user has sent. Returns how many."""
    file, events = folder.begin("events.jsonl"), 0
    for since in range(0, upto, POSITIONS_PER_READ):
        last = min(upto, since + POSITIONS_PER_READ)
        sent = await hs.database.read(_read_sent, user_id, since, last)
        file.write(b"".join(sent))
        events += len(sent)
        tell(last, upto)
    folder.end(file)
    return events


def _read_sent(tx: Transaction, user_id: UserID, since: int, upto: int) -> list[bytes]:
    return [encode_event(tx, event, with_room_id=True) + b"\n" for event in list_sent(tx, user_id, since, upto)]
