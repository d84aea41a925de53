"""Deletes everything that is stored of a room, in short writes. Safe to interrupt anywhere.

Theory of operation. Nobody of this server is in the room any more, and it is blocked, so that nobody comes back
meanwhile (`blocking.py`). `homeserver/features/administration/room_deletion.py` calls these steps, each in a write that
also stores how far it has come:

    step                  in one write
    `begin_deletion`      the room gets a new key, as if it was to be forgotten (`forgetting.py`)
    `delete_members`      some memberships: from then on nobody can read the room
    `delete_block_of`     one block of the archive, whose blob becomes garbage
    `delete_events`       the events at some positions, with the state before them, and their relations
    `finish_forgetting`   what features keep of the room's contents; its old key; caches and search indexes of all nodes
                          hear of it
    `delete_rest`         the rows of one table after the other, at last the room itself

A step that was done before the process ended finds nothing more to do.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.resources import ForgetRoom
from homeserver.rooms import state_tree
from homeserver.rooms.archive.blocks import delete_block, delete_lost_block, insert_garbage, list_blocks, load_block
from homeserver.rooms.archive.format import STATE_BEFORE
from homeserver.rooms.forgetting import note_forgetting, note_forgotten
from homeserver.rooms.heads import find_head
from homeserver.rooms.inventory import ROOM_TABLES, delete_rows_of_room
from homeserver.rooms.keys import delete_keys
from homeserver.rooms.relations import forget_relations
from homeserver.rooms.rewrites import note_rewrite

_log = logging.getLogger(__name__)

EVENTS_PER_WRITE = 200  # each takes about 0.1 ms with its state, for which other writes wait
_POSITIONS_PER_WRITE = 20_000  # a row that is passed over costs a microsecond
_MEMBERS_PER_WRITE = 2_000


def begin_deletion(tx: Transaction, room_id: RoomID) -> tuple[int, int]:
    """Returns the room's number, and the position up to which events are to be deleted. Raises MatrixError 404."""
    return note_forgetting(tx, room_id), tx.position


def delete_members(tx: Transaction, room_nid: int) -> bool:
    """Deletes some memberships. Returns whether there may be more."""
    nids = tx.values("SELECT user_nid FROM memberships WHERE room_nid = ? LIMIT ?", room_nid, _MEMBERS_PER_WRITE)
    tx.many("DELETE FROM memberships WHERE user_nid = ? AND room_nid = ?", [(nid, room_nid) for nid in nids])
    tx.run("UPDATE rooms SET members_position = ? WHERE room_nid = ?", tx.next_position(), room_nid)
    tx.wake(*tx.names(nids).values())
    return len(nids) == _MEMBERS_PER_WRITE


def delete_block_of(tx: Transaction, room_nid: int) -> bool:
    """Deletes a block of the room's archive. Returns False if there is none."""
    rows = list_blocks(tx, room_nid)
    if not rows:
        return False
    row = rows[0]
    try:
        block = load_block(tx, row)
    except DatabaseDamaged as error:
        _log.error("a lost block is deleted", extra={"blob": row.blob, "damage": str(error)})
        delete_lost_block(tx, row)
    else:
        positions = list(block.positions)
        forget_relations(tx, positions)
        _delete_state_before(tx, [block.row(index)[STATE_BEFORE] for index in range(len(block))])
        delete_block(tx, row, [block.key(index) for index in range(len(block))], positions)
    insert_garbage(tx, [row.blob], tx.now_ms)
    note_rewrite(tx, room_nid)
    return True


def delete_events(tx: Transaction, room_nid: int, reached: int, upto: int) -> int:
    """Deletes the room's events at some of the positions after `reached`. Returns the position that is reached now."""
    end = min(reached + _POSITIONS_PER_WRITE, upto)
    rows = tx.all(
        "SELECT position, state_before FROM events WHERE position > ? AND position <= ? AND room_nid = ?"
        " ORDER BY position LIMIT ?",
        reached, end, room_nid, EVENTS_PER_WRITE,
    )  # fmt: skip
    if len(rows) == EVENTS_PER_WRITE:
        end = rows[-1][0]
    positions = [position for position, _ in rows]
    forget_relations(tx, positions)
    _delete_state_before(tx, [root for _, root in rows])
    tx.many("DELETE FROM withheld_redactions WHERE position = ?", [(position,) for position in positions])
    if positions:
        tx.run("DELETE FROM pending_redactions WHERE redaction >= ? AND redaction <= ?", positions[0], positions[-1])
    tx.many("DELETE FROM events WHERE position = ?", [(position,) for position in positions])
    note_rewrite(tx, room_nid)
    return end


def _delete_state_before(tx: Transaction, roots: Collection[object]) -> None:
    """Deletes states. Their nodes hold positions of this room's events, so no other room has the same."""
    for root in {bytes(root) for root in roots if isinstance(root, (bytes, memoryview))}:
        state_tree.delete_tree(tx, root)


def finish_forgetting(tx: Transaction, room_nid: int, forgetters: Sequence[ForgetRoom]) -> None:
    """Has features delete what they keep of the room's contents, and deletes its old keys."""
    room_id = RoomID(tx.name(room_nid))
    head = find_head(tx, room_id)
    if head is None:
        return
    for forget in forgetters:
        forget(tx, room_id)
    note_forgotten(tx, room_nid)
    _delete_state_before(tx, [head.state_root, *_list_resolved(tx, room_nid)])


def _list_resolved(tx: Transaction, room_nid: int) -> list[bytes]:
    return tx.values("SELECT state_root FROM resolved_heads WHERE room_nid = ?", room_nid)


def delete_rest(tx: Transaction, room_nid: int, done: int) -> int:
    """Deletes the rows of another table. Returns how many tables are done. The room itself ends with the last one."""
    tables = list(ROOM_TABLES)
    if done < len(tables):
        delete_rows_of_room(tx, tables[done], room_nid)
        return done + 1
    delete_keys(tx, room_nid)
    tx.run("DELETE FROM rooms WHERE room_nid = ?", room_nid)
    tx.drop_caches()
    return done + 1


def count_steps() -> int:
    """Returns how many tables `delete_rest` goes through, the room's own row included."""
    return len(ROOM_TABLES) + 1
