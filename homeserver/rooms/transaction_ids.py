"""The transaction IDs that clients send with their events. Spec: client-server-api/#transaction-identifiers

They are columns of the event's row, so that they become durable together with it.
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.rooms.archive.blocks import find_archived_txn
from homeserver.rooms.envelope import event_id_of_key
from homeserver.rooms.storage import StoredEvent, list_event_ids

_TXN_SEPARATOR = "\x1f"
_DELAY_MARK = "\x1d"


def txn_id_stored(txn_id: str, redacts: str | None) -> str:
    """Returns the stored form of a transaction ID. For redactions it includes the event, which is part of the path."""
    return txn_id if redacts is None else f"{txn_id}{_TXN_SEPARATOR}{redacts}"


def txn_id_of_delay(delay_id: str) -> str:
    """Returns what is stored as the transaction ID of an event that was sent as a delayed event, for no device."""
    return f"{_DELAY_MARK}{delay_id}"


def own_fields(event: StoredEvent, device_id: str) -> dict[str, str]:
    """Returns the part of `unsigned` that only the event's sender gets, on one of the sender's devices.

    That is the transaction ID on the device that sent it, or on all devices the ID of a delayed event. Spec: MSC4140
    """
    if event.txn_id is None:
        return {}
    if event.txn_id.startswith(_DELAY_MARK):
        return {"org.matrix.msc4140.delay_id": event.txn_id[1:]}
    return {"transaction_id": txn_id_of_client(event.txn_id)} if event.device_id == device_id else {}


def txn_id_of_client(stored: str) -> str:
    """Returns the transaction ID as the client sent it."""
    return stored.partition(_TXN_SEPARATOR)[0]


def find_txn(
    tx: Transaction, sender: UserID, device_id: str, room_id: RoomID, event_type: str, txn_id: str
) -> EventID | None:
    """Returns the event that this device sent to this endpoint with this transaction ID, or None."""
    key = (tx.find(sender), txn_id, device_id, tx.find(room_id), tx.find(event_type))
    row = tx.one(
        "SELECT event_id FROM events WHERE sender_nid = ? AND txn_id = ? AND device_id = ? AND room_nid = ?"
        " AND type_nid = ?",
        *key,
    )
    if row is not None:
        return event_id_of_key(bytes(row[0]))
    position = find_archived_txn(tx, key)
    return None if position is None else list_event_ids(tx, (position,)).get(position)
