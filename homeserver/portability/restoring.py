"""What an imported room gets at the end of its import: the rules of the exported room, its bans, invites and aliases.

Theory of operation. All of it is one write, after the history: until then everyone may enter the new room. Bans come
first, then invites and aliases, then the rules, because these may take the keeper's power away. What is not valid in
the new room is left out.

- Bans are of the exported user IDs, also those of other servers: no placeholder can enter a room anyway.
- Invites are only those of users of this server, in a folder that this server has signed: others cannot have been
  invited to a room that they have never heard of.
- An alias becomes one of this server, with the same name, unless another room has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import (
    InvalidIdentifier,
    RoomAlias,
    RoomID,
    UserID,
    parse_room_alias,
    parse_user_id,
)
from homeserver.portability.replaying import IMPORTED, Line, Replay
from homeserver.portability.schema import delete_imported
from homeserver.portability.senders import get_sender
from homeserver.rooms.aliases import find_alias, read_canonical_aliases, store_alias
from homeserver.rooms.append import append_local
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import find_membership
from homeserver.users.accounts import is_active

RULES = Replay.RULES


def is_restored(line: Line) -> bool:
    """Returns whether a state event of the exported room is needed at the end of an import."""
    if line.type == "m.room.member":
        return line.content.get("membership") in ("ban", "invite")
    return line.type in RULES or line.type == "m.room.canonical_alias"


def finish_room(tx: Transaction, replay: Replay, room_id: RoomID, keeper: UserID, state: Sequence[Line]) -> None:
    """Restores what `is_restored`. A room without join rules of its own is for invited people."""
    for line in state:
        if line.type == "m.room.member":
            _restore_member(tx, replay, room_id, keeper, line)
    for line in state:
        if line.type == "m.room.canonical_alias" and line.state_key == "":
            _restore_aliases(tx, room_id, keeper, line.content)
    contents = {line.type: line.content for line in state if line.type in RULES}
    contents.setdefault("m.room.join_rules", {"join_rule": "invite"})
    last = "m.room.power_levels"  # it may ask for more power than the keeper has
    for event_type in (*sorted(contents.keys() - {last}), *(contents.keys() & {last})):
        content = contents[event_type]
        if event_type == last:
            content = _levels(tx, replay, room_id, keeper, content)
        _send(tx, Draft(room_id, keeper, event_type, content, state_key=""))
    delete_imported(tx, room_id)


def _send(tx: Transaction, draft: Draft) -> None:
    try:
        append_local(tx, draft, is_history=True)
    except MatrixError:  # invalid rules, such as levels that are words, change nothing
        return


def _restore_member(tx: Transaction, replay: Replay, room_id: RoomID, keeper: UserID, line: Line) -> None:
    try:
        user_id = parse_user_id(line.state_key)
    except InvalidIdentifier:
        return
    membership = line.content["membership"]
    if user_id == keeper or (membership == "invite" and not (replay.is_own and is_active(tx, user_id))):
        return
    if membership == "invite" and find_membership(tx, room_id, user_id) == "join":
        return
    content: dict[str, Any] = {"membership": membership, IMPORTED: {"sender": line.sender, "event_id": line.event_id}}
    if isinstance(reason := line.content.get("reason"), str):
        content["reason"] = reason
    if membership == "invite" and line.content.get("is_direct") is True:
        content["is_direct"] = True
    _send(tx, Draft(room_id, keeper, "m.room.member", content, state_key=user_id))


def _restore_aliases(tx: Transaction, room_id: RoomID, keeper: UserID, exported: dict[str, Any]) -> None:
    try:
        names = read_canonical_aliases(exported)
    except MatrixError:
        return
    new = {name: alias for name in names if (alias := _take_alias(tx, room_id, keeper, name)) is not None}
    main = new.get(RoomAlias(str(exported.get("alias"))))
    others = [alias for alias in _unique(new.values()) if alias != main]
    content: dict[str, Any] = {} if main is None else {"alias": main}
    if others:
        content["alt_aliases"] = others
    if content:
        _send(tx, Draft(room_id, keeper, "m.room.canonical_alias", content, state_key=""))


def _take_alias(tx: Transaction, room_id: RoomID, keeper: UserID, exported: RoomAlias) -> RoomAlias | None:
    """Returns the alias of this server with the same name, None if another room has it."""
    try:
        alias = parse_room_alias(f"{exported.partition(':')[0]}:{tx.server.name}")
    except InvalidIdentifier:  # it would be too long
        return None
    found = find_alias(tx, alias)
    if found is None:
        store_alias(tx, alias, room_id, keeper)
    return alias if found is None or found[0] == room_id else None


def _unique(aliases: Iterable[RoomAlias]) -> list[RoomAlias]:
    return list(dict.fromkeys(aliases))


def _levels(
    tx: Transaction, replay: Replay, room_id: RoomID, keeper: UserID, content: dict[str, Any]
) -> dict[str, Any]:
    """Returns power levels with the senders of the new room."""
    listed = content.get("users")
    if not isinstance(listed, dict):
        return content
    users: dict[UserID, Any] = {}
    for exported, level in listed.items():
        try:
            users[get_sender(tx, parse_user_id(exported), is_own=replay.is_own)] = level
        except InvalidIdentifier:
            continue
    if get_head(tx, room_id).version.creators_privileged:
        users.pop(keeper, None)
    else:
        users[keeper] = 100
    return {**content, "users": users}
