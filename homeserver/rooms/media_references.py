"""Which files the events of a room refer to, so that forgetting the room can forget those that no other room shows.

References are noted when an event is stored, and stay even if it is redacted. Those in encrypted events are not known.
"""

from __future__ import annotations

import re

from homeserver.database import Transaction
from homeserver.federation.identifiers import ServerName

_URI = re.compile(rb'mxc://([^"\\/?#]{1,255})/([A-Za-z0-9_-]{1,255})')


def note_references(tx: Transaction, room_nid: int, content_json: bytes) -> None:
    """Notes the `mxc://` URIs in the content of an event."""
    if b"mxc://" in content_json:
        for server, media_id in set(_URI.findall(content_json)):
            tx.run(
                "INSERT INTO media_references (server_nid, media_id, room_nid) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                tx.intern(server.decode()), media_id.decode(), room_nid,
            )  # fmt: skip


def list_only_here(tx: Transaction, room_nid: int) -> list[tuple[ServerName, str]]:
    """Returns server and media ID of the files that this room refers to, and no other room."""
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
