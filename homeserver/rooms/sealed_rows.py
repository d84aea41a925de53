"""How the private parts of rows are sealed with their room's key: contents of events, and what rooms show to outsiders.

Theory of operation. Each value is authenticated together with its place: the column, and what identifies the row. So a
value that was copied to another row, or another column, is damage.

    events.content           sealed as a whole; the plaintext is compressed JSON
    events.envelope          what the room needs to go on without the key stays as it is: depth, references, hash and
                             signature. Further fields of the PDU, which may say anything, are sealed behind it:
                             0xFE | length of the envelope, 4 bytes | envelope without them | sealed envelope with them
    memberships.stripped     sealed as a whole

If a key is forgotten, the content reads as `{}` and the further fields as absent: an event of which only what a
redaction leaves was kept, see `forgetting.py`. Rows from before there were keys are not sealed and are read as they
are; `resealing.py` seals them in the background.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.compression import compress
from homeserver.federation import canonical_json
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.process.sealing import SealBroken, SealingKey, is_sealed, key_number
from homeserver.rooms import envelope
from homeserver.rooms.envelope import event_key
from homeserver.rooms.keys import find_key, open_sealed, room_key, seal
from homeserver.rooms.media_references import note_references

NOTHING = compress(b"{}")  # the content of an event whose key is forgotten


def pack_row(
    tx: Transaction, room_nid: int, position: int, event: Event, known: Mapping[EventID, int]
) -> tuple[bytes, bytes]:
    """Returns the envelope and the content of an event as the row at `position` holds them. Notes the files that the
    event refers to.
    """
    packed = envelope.pack(event, known)
    content_json = canonical_json.encode(event.content, strict=False)
    is_message = event.type == "m.room.message" and event.state_key is None
    note_references(tx, room_nid, content_json, event.origin_server_ts if is_message else None)
    content = compress(content_json)
    if not tx.server.config.at_rest.events:
        return packed, content
    return seal_row(room_key(tx, room_nid), position, event_key(event.event_id), packed, content)


def pack_reduced(
    tx: Transaction, room_nid: int, position: int, event_id: EventID, whole: bytes, content: Mapping[str, Any]
) -> tuple[bytes, bytes]:
    """Returns the same of an event of which only the graph and this content are left. whole: its envelope, opened."""
    packed = envelope.split(whole) or whole
    reduced = compress(canonical_json.encode(content, strict=False))
    if not tx.server.config.at_rest.events:
        return packed, reduced
    return seal_row(room_key(tx, room_nid), position, event_key(event_id), packed, reduced)


def seal_row(key: SealingKey, position: int, row_key: bytes, packed: bytes, content: bytes) -> tuple[bytes, bytes]:
    """Returns the two values sealed. row_key: the event's stored ID."""
    where = _row(position, row_key)
    bare = envelope.split(packed)
    if bare is not None:
        packed = envelope.join(bare, key.seal(b"envelope" + where, packed))
    return packed, key.seal(b"content" + where, content)


class RowOpener:
    """Opens the rows of one transaction. Keeps the keys that they need."""

    __slots__ = ("_keys", "_tx")

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._keys: dict[tuple[int, int], SealingKey | None] = {}

    def open_content(self, room_nid: int, position: int, row_key: bytes, content: bytes) -> bytes:
        """Returns the compressed content of a row. Raises DatabaseDamaged."""
        if not is_sealed(content):
            return content
        opened = self._open(room_nid, position, b"content" + _row(position, row_key), content)
        return NOTHING if opened is None else opened

    def open_envelope(self, room_nid: int, position: int, row_key: bytes, packed: bytes) -> bytes:
        """Returns the envelope of a row. Raises DatabaseDamaged."""
        sealed = envelope.sealed_part(packed)
        if sealed is None:
            return packed
        opened = self._open(room_nid, position, b"envelope" + _row(position, row_key), sealed)
        return envelope.bare_part(packed) if opened is None else opened

    def _open(self, room_nid: int, position: int, where: bytes, sealed: bytes) -> bytes | None:
        try:
            number = key_number(sealed)
            try:
                key = self._keys[number, room_nid]
            except KeyError:
                key = self._keys[number, room_nid] = find_key(self._tx, number, room_nid)
            return None if key is None else key.open(where, sealed)
        except SealBroken as error:
            raise DatabaseDamaged(f"The event at position {position} is damaged: {error}.") from None


def seal_stripped(tx: Transaction, room_nid: int, user_nid: int, stripped: bytes) -> bytes:
    """Returns what an invited or knocking user is shown of a room as `memberships` holds it."""
    return seal(tx, room_nid, _stripped(user_nid), stripped)


def open_stripped(tx: Transaction, room_nid: int, user_nid: int, stripped: bytes) -> bytes:
    """Returns what `seal_stripped` got, or an empty list if its key is forgotten. Raises DatabaseDamaged."""
    opened = open_sealed(tx, room_nid, _stripped(user_nid), stripped)
    return b"[]" if opened is None else opened


def _row(position: int, row_key: bytes) -> bytes:
    return position.to_bytes(8, "big", signed=True) + row_key


def _stripped(user_nid: int) -> bytes:
    return b"stripped state for user %d" % user_nid
