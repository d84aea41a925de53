"""Erased users: their messages look redacted, except to users who could see them before the erasure.

No event is changed. Spec: client-server-api/#post_matrixclientv3accountdeactivate (erase)
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from homeserver.database import Transaction
from homeserver.federation import canonical_json
from homeserver.federation.identifiers import UserID
from homeserver.federation.redaction import redact
from homeserver.rooms.rewrites import note_rewrites_of_user
from homeserver.rooms.storage import SomeEvent
from homeserver.rooms.versions import get_room_version


def note_erased(tx: Transaction, user_id: UserID) -> None:
    """Notes that the user is erased from now on."""
    user_nid = tx.intern(user_id)
    tx.run(
        "INSERT INTO erased_senders (sender_nid, position) VALUES (?, ?) ON CONFLICT (sender_nid) DO NOTHING",
        user_nid, tx.next_position(user_id),
    )  # fmt: skip
    note_rewrites_of_user(tx, user_nid)


def delete_erasure(tx: Transaction, user_id: UserID) -> None:
    """Shows the messages of an erased user again, because the account is open again."""
    if tx.run("DELETE FROM erased_senders WHERE sender_nid = ?", tx.find(user_id)):
        note_rewrites_of_user(tx, tx.intern(user_id))


def find_erased(tx: Transaction, senders: Iterable[str]) -> dict[str, int]:
    """Returns the erased ones of the users, each with the stream position of the erasure."""
    nids = {nid: sender for sender in senders if (nid := tx.find(sender)) is not None}
    rows = tx.all_in("SELECT sender_nid, position FROM erased_senders WHERE sender_nid IN (?*)", list(nids))
    return {nids[nid]: position for nid, position in rows}


def list_erased(tx: Transaction, since: int, upto: int) -> list[int]:
    """Returns the numbers of the users who were erased at since < position ≤ upto."""
    return tx.values("SELECT sender_nid FROM erased_senders WHERE position > ? AND position <= ?", since, upto)


def redacted_copy(tx: Transaction, event: SomeEvent) -> SomeEvent:
    """Returns the event with the content that a redaction would leave."""
    kept = redact({"type": event.type, "content": event.content}, get_room_version(tx, event.room_id))["content"]
    return msgspec.structs.replace(event, content_json=canonical_json.encode(kept, strict=False))
