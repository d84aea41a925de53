"""Which files the events of a room refer to: forgetting the room deletes those that no other room shows, and retention
those that only expired messages show.

References are noted when an event is stored, and stay even if it is redacted. Those in encrypted events are not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import orjson

from homeserver.database import Transaction
from homeserver.federation.identifiers import ServerName

_URI = re.compile(rb'mxc://([^"\\/?#]{1,255})/([A-Za-z0-9_-]{1,255})')
FOR_EVER = 1 << 62
"""`last_ts` of a file that retention does not delete."""

File = tuple[ServerName, str]
"""Server and media ID of a file."""


def note_references(tx: Transaction, room_nid: int, content_json: bytes, message_ts: int | None) -> None:
    """Notes the `mxc://` URIs in the content of an event. message_ts: the timestamp of a message, None for others."""
    if b"mxc://" not in content_json:
        return
    shown = set() if message_ts is None else set(_list_shown(orjson.loads(content_json)))
    for server, media_id in set(_URI.findall(content_json)):
        uri = f"mxc://{server.decode()}/{media_id.decode()}"
        last_ts = message_ts if message_ts is not None and uri in shown else FOR_EVER
        tx.run(
            "INSERT INTO media_references (server_nid, media_id, room_nid, last_ts) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (server_nid, media_id, room_nid) DO UPDATE SET last_ts = CASE"
            " WHEN media_references.last_ts > excluded.last_ts THEN media_references.last_ts"
            " ELSE excluded.last_ts END",
            tx.intern(server.decode()), media_id.decode(), room_nid, last_ts,
        )  # fmt: skip


def _list_shown(content: object) -> Iterator[str]:
    """Yields the URIs of the file that a message is, and of its thumbnail. Others may be emoticons, which are used in
    any number of messages, and may be part of somebody's collection.
    """
    if not isinstance(content, dict):
        return
    info = content.get("info")
    for part in (content, info if isinstance(info, dict) else {}):
        for key in ("url", "thumbnail_url", "file", "thumbnail_file"):
            value = part.get(key)
            uri = value.get("url") if isinstance(value, dict) else value
            if isinstance(uri, str):
                yield uri


def list_only_here(tx: Transaction, room_nid: int) -> list[File]:
    """Returns the files that this room refers to, and no other room."""
    rows = tx.all(
        "SELECT server_nid, media_id FROM media_references r WHERE room_nid = ? AND NOT EXISTS (SELECT 1"
        " FROM media_references o WHERE o.server_nid = r.server_nid AND o.media_id = r.media_id AND o.room_nid <> ?)",
        room_nid, room_nid,
    )  # fmt: skip
    names = tx.names({server_nid for server_nid, _ in rows})
    return [(ServerName(names[server_nid]), media_id) for server_nid, media_id in rows]


def forget_references(tx: Transaction, room_nid: int) -> None:
    """Deletes the references of a room whose contents are forgotten."""
    tx.run("DELETE FROM media_references WHERE room_nid = ?", room_nid)


def delete_expired(tx: Transaction, room_nid: int, before_ms: int, limit: int) -> tuple[int, list[File]]:
    """Deletes some references of messages from before a time.

    Returns how many, and the files that nobody refers to any more.
    """
    found = _list_expired(tx, room_nid, before_ms, limit)
    tx.many(
        "DELETE FROM media_references WHERE server_nid = ? AND media_id = ? AND room_nid = ?",
        [(server_nid, media_id, room_nid) for server_nid, media_id, _ in found],
    )
    return len(found), _files(tx, found)


def list_expired_files(tx: Transaction, room_nid: int, before_ms: int, limit: int) -> list[File]:
    """Returns some files that only messages of this room from before a time show."""
    return _files(tx, _list_expired(tx, room_nid, before_ms, limit))


def _list_expired(tx: Transaction, room_nid: int, before_ms: int, limit: int) -> list[tuple[int, str, bool]]:
    """Returns server, media ID, and whether another room refers to the file."""
    return [
        (server_nid, media_id, bool(is_elsewhere))
        for server_nid, media_id, is_elsewhere in tx.all(
            "SELECT server_nid, media_id, EXISTS (SELECT 1 FROM media_references o WHERE o.server_nid = r.server_nid"
            " AND o.media_id = r.media_id AND o.room_nid <> r.room_nid) FROM media_references r"
            " WHERE room_nid = ? AND last_ts < ? ORDER BY last_ts LIMIT ?",
            room_nid, before_ms, limit,
        )
    ]  # fmt: skip


def _files(tx: Transaction, found: list[tuple[int, str, bool]]) -> list[File]:
    names = tx.names({server_nid for server_nid, _, _ in found})
    return [(ServerName(names[server_nid]), media_id) for server_nid, media_id, elsewhere in found if not elsewhere]
