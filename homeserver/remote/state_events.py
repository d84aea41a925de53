"""State events of users that may need another server: invites of its users, and aliases that it must know.

Spec: client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from homeserver.authenticate import Requester, check_not_suspended, limit_requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomAlias, RoomID, UserID, server_name_of
from homeserver.remote.directory import resolve_alias
from homeserver.remote.inviting import invite_user
from homeserver.resources import Resources
from homeserver.rooms.access import find_in_state
from homeserver.rooms.aliases import find_alias, read_canonical_aliases
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import check_joined, find_membership
from homeserver.rooms.power import check_may_send_state
from homeserver.rooms.resolve import StateAt
from homeserver.users.sending import set_state
from homeserver.users.shadow_bans import write_and_undo


async def put_state(
    hs: Resources,
    requester: Requester,
    draft: Draft,
    then: Callable[[Transaction, EventID], object],
    *,
    stored_txn_id: str | None = None,
) -> EventID:
    """Sends a state event, or finds that the current one is identical. Returns its ID.

    then(tx, event_id): called in the same write, and may undo it by raising; after an invitation of another server's
    user, which is a write by itself, in the next one. Raises MatrixError.
    """
    room_id, content = draft.room_id, draft.content
    assert room_id is not None
    membership = content.get("membership") if draft.type == "m.room.member" else None
    if draft.type == "m.room.member":
        # the user who authorises a join must be a local one that we choose, not the client
        content = {key: value for key, value in content.items() if key != "join_authorised_via_users_server"}
        draft = replace(draft, content=content)
    if membership != "leave" or draft.state_key != draft.sender:
        check_not_suspended(requester)
    if membership in ("invite", "join"):
        limit_requester(hs, requester, membership)
    if draft.type == "m.room.canonical_alias":
        await _check_canonical_alias(hs, requester, room_id, content)
    if requester.is_shadow_banned and not await hs.database.read(_is_coming_or_going, draft):
        event_id = await write_and_undo(hs, set_state, requester, draft, None)
        await hs.database.write(then, event_id)
        return event_id
    if membership == "invite" and _is_remote(hs, draft):
        event_id = (await invite_user(hs, draft)).event_id
        await hs.database.write(then, event_id)
        return event_id
    return await hs.database.write(_set_state, requester, draft, then, stored_txn_id)


def _set_state(
    tx: Transaction,
    requester: Requester,
    draft: Draft,
    then: Callable[[Transaction, EventID], object],
    stored_txn_id: str | None,
) -> EventID:
    event_id = set_state(tx, requester, draft, stored_txn_id)
    then(tx, event_id)
    return event_id


def _is_coming_or_going(tx: Transaction, draft: Draft) -> bool:
    """Returns whether the sender enters or leaves the room."""
    if draft.type != "m.room.member" or draft.state_key != draft.sender:
        return False
    membership = draft.content.get("membership")
    was_in_room = find_membership(tx, draft.room_id or "", draft.sender) == "join"
    return membership == "leave" or (membership == "join" and not was_in_room)


def _is_remote(hs: Resources, draft: Draft) -> bool:
    try:
        return server_name_of(draft.state_key or "") != hs.server_name
    except InvalidIdentifier:
        raise invalid_param("The state key of an invitation must be a user ID.") from None


async def _check_canonical_alias(hs: Resources, requester: Requester, room_id: RoomID, content: dict[str, Any]) -> None:
    """Raises unless every alias that the event adds leads to the room. Spec: client-server-api/#mroomcanonical_alias"""
    names = read_canonical_aliases(content)
    old = await hs.database.read(_read_aliases, room_id, requester.user_id)
    for name in names:
        if name not in old and await _resolve(hs, name) != room_id:
            raise MatrixError(400, "M_BAD_ALIAS", f"{name} does not point to this room.")


async def _resolve(hs: Resources, alias: RoomAlias) -> RoomID | None:
    if server_name_of(alias) == hs.server_name:
        found = await hs.database.read(find_alias, alias)
        return None if found is None else found[0]
    try:
        return (await resolve_alias(hs, alias))[0]
    except MatrixError:
        return None


def _read_aliases(tx: Transaction, room_id: RoomID, user_id: UserID) -> set[str]:
    """Returns the event's current aliases. Raises MatrixError 403 if the user may not change them."""
    head = get_head(tx, room_id)
    check_joined(tx, room_id, user_id)
    check_may_send_state(tx, head, user_id, "m.room.canonical_alias")
    event = find_in_state(tx, StateAt(head.state_root), "m.room.canonical_alias", "")
    content = {} if event is None else event.content
    alternatives = content.get("alt_aliases")
    names = [content.get("alias"), *(alternatives if isinstance(alternatives, list) else ())]
    return {name for name in names if isinstance(name, str)}
