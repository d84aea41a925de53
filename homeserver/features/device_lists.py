"""Device lists: whose devices and keys clients must query again, and the updates that servers send each other.

What is recorded of local changes: `homeserver/users/encryption/device_lists.py`. What is cached of the lists of other
servers' users: `homeserver/remote/device_lists.py`.

Spec: client-server-api/#tracking-the-device-list-for-a-user, server-server-api/#device-management
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import msgspec
import orjson

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.feature import (
    UNTIL_NEWS_MS,
    BeforeSync,
    Edu,
    Feature,
    JsonObject,
    OutgoingEdu,
    SyncContext,
    SyncStart,
)
from homeserver.federation.edus import DeviceListUpdateContent, SigningKeyUpdateContent
from homeserver.federation.identifiers import RoomID, ServerName, UserID, server_name_of
from homeserver.remote.device_lists import (
    has_restored_lists,
    set_restored_lists_stale,
    store_device_updates,
    store_signing_key_updates,
)
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import list_joined_rooms, list_joined_servers, list_sharing
from homeserver.rooms.sharing import list_sharing_changes
from homeserver.rooms.timeline import find_since, parse_sync_token
from homeserver.rooms.visibility import list_arrivals
from homeserver.users.devices import find_device
from homeserver.users.encryption.cross_signing import list_cross_signing_keys, list_signed_users
from homeserver.users.encryption.device_keys import find_device_keys
from homeserver.users.encryption.device_lists import (
    DeviceListUpdate,
    find_last_update,
    list_changed_users,
    list_device_list_updates,
)

routes = Routes()


class ChangesQuery(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """`from_`, `to`: tokens of /sync. `to` is only a hint, so that the client misses nothing that came after it."""

    from_: str
    to: str


@routes.get("/_matrix/client/v3/keys/changes")
async def get_keys_changes(hs: Resources, requester: Requester, query: ChangesQuery) -> JsonObject:
    parse_sync_token(query.to)
    return await hs.database.read(_read_changes, requester.user_id, query.from_)


def _read_changes(tx: Transaction, user_id: UserID, from_: str) -> JsonObject:
    # After a restore from a backup the client may be wrong about everyone: then everyone counts as changed.
    since = find_since(tx, parse_sync_token(from_)) or 0
    changed, left = list_news(tx, user_id, since, tx.position)
    return {"changed": sorted(changed), "left": sorted(left)}


def sync_device_lists(tx: Transaction, context: SyncContext) -> None:
    """News: `device_lists`, in incremental syncs. After an initial one clients ask for whose keys they need.

    After a restore from a backup a client may be wrong about everyone, as in `_read_changes`.
    """
    if context.since == 0 and not context.is_anew:
        return
    changed, left = list_news(tx, context.user_id, context.since, context.upto)
    if changed or left:
        context.extra["device_lists"] = {"changed": sorted(changed), "left": sorted(left)}


def _has_restored_lists(tx: Transaction, start: SyncStart) -> bool:
    return start.is_anew and has_restored_lists(tx)


def _set_restored_lists_stale(tx: Transaction, start: SyncStart) -> None:
    set_restored_lists_stale(tx)


def _idle_ms(tx: Transaction, start: SyncStart) -> int:
    """Only the first sync after a restore is due, and that one is never answered without asking."""
    return UNTIL_NEWS_MS


def list_news(tx: Transaction, user_id: UserID, since: int, upto: int) -> tuple[set[UserID], set[UserID]]:
    """Returns whose keys the user has to ask for after position `since`, and with whom no room is shared any more.

    Any room counts, encrypted or not, so that a client knows everybody's devices when a room becomes encrypted.
    """
    begun, ended = list_sharing_changes(tx, user_id, since)
    changed = set(list_changed_users(tx, since, upto))
    signed = set(list_signed_users(tx, user_id, since, upto))  # only the user's own devices see these signatures
    return begun | list_sharing(tx, user_id, changed) | (changed & {user_id}) | signed, ended


# --- to other servers ---


def list_device_edus(tx: Transaction, since: int, upto: int) -> Iterator[OutgoingEdu]:
    """Yields an m.device_list_update for each change of a device, to the other servers in the user's rooms.

    When a user comes into a room, servers that shared none with the user before get the last one again, after the
    user's member event: others ignore it. They do not know the update before it, so they ask for the whole list.
    """
    for update in list_device_list_updates(tx, since, upto):
        servers = _servers_around(tx, update.user_id) if update.device_id is not None else frozenset()
        if servers:
            yield _device_edu(tx, update, servers, update.position)
    for user_id, room_id in list_arrivals(tx, since, upto):
        last = find_last_update(tx, user_id) if server_name_of(user_id) == tx.server.name else None
        if last is not None and last.position <= since:
            others = [other for other in list_joined_rooms(tx, user_id) if other != room_id]
            servers = _servers_in(tx, [room_id]) - _servers_in(tx, others)
            if servers:
                yield _device_edu(tx, last, servers, None)


def list_signing_key_edus(tx: Transaction, since: int, upto: int) -> Iterator[OutgoingEdu]:
    """Yields an m.signing_key_update for each change of cross-signing keys, to the servers in the user's rooms."""
    for update in list_device_list_updates(tx, since, upto):
        if update.device_id is not None:
            continue
        keys = list_cross_signing_keys(tx, [update.user_id]).get(update.user_id, {})
        content: JsonObject = {"user_id": update.user_id}
        for usage, (_, key) in keys.items():
            if usage != "user_signing":
                content[f"{usage}_key"] = orjson.loads(key)
        servers = _servers_around(tx, update.user_id)
        if servers and len(content) > 1:
            yield OutgoingEdu(content, destinations=tuple(sorted(servers)), position=update.position)


def _device_edu(
    tx: Transaction, update: DeviceListUpdate, servers: Collection[ServerName], position: int | None
) -> OutgoingEdu:
    """Returns an update with what holds for the device now."""
    user_id, device_id = update.user_id, update.device_id
    assert device_id is not None
    content: JsonObject = {
        "user_id": user_id,
        "device_id": device_id,
        "stream_id": update.position,
        "prev_id": [] if update.previous is None else [update.previous],
    }
    device = find_device(tx, user_id, device_id)
    keys = None if device is None else find_device_keys(tx, user_id, device_id)
    if device is None:
        content["deleted"] = True
    elif device.display_name is not None:
        content["device_display_name"] = device.display_name
    if keys is not None:
        content["keys"] = keys
    return OutgoingEdu(content, destinations=tuple(sorted(servers)), position=position)


def _servers_around(tx: Transaction, user_id: UserID) -> frozenset[ServerName]:
    return _servers_in(tx, list_joined_rooms(tx, user_id))


def _servers_in(tx: Transaction, room_ids: Iterable[RoomID]) -> frozenset[ServerName]:
    """Returns the other servers in any of the rooms."""
    heads = [head for room_id in room_ids if (head := find_head(tx, room_id)) is not None]
    return frozenset().union(*(list_joined_servers(tx, head) for head in heads)) - {tx.server.name}


# --- from other servers ---


async def receive_device_edus(hs: Resources, origin: ServerName, updates: Sequence[DeviceListUpdateContent]) -> None:
    """Takes in changes of devices of another server's users."""
    await hs.database.write(store_device_updates, updates)


async def receive_signing_key_edus(
    hs: Resources, origin: ServerName, updates: Sequence[SigningKeyUpdateContent]
) -> None:
    """Takes in cross-signing keys of another server's users."""
    await hs.database.write(store_signing_key_updates, updates)


FEATURE = Feature(
    name="device_lists",
    spec="client-server-api/#tracking-the-device-list-for-a-user",
    routes=routes,
    edus={
        "m.device_list_update": Edu(
            DeviceListUpdateContent,
            receive_device_edus,
            user=lambda update: update.user_id,
            room=None,
            source=list_device_edus,
            durable=True,
        ),
        "m.signing_key_update": Edu(
            SigningKeyUpdateContent,
            receive_signing_key_edus,
            user=lambda update: update.user_id,
            room=None,
            source=list_signing_key_edus,
            durable=True,
        ),
    },
    before_sync=BeforeSync(_has_restored_lists, _set_restored_lists_stale, _idle_ms),
    sync=sync_device_lists,
)
