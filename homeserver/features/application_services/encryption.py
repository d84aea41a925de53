"""What application services need for end-to-end encryption: to-device messages, device lists and counts of keys.

Their users have devices, but do not sync: what `/sync` would tell these devices is part of transactions.

- To-device messages come from the inboxes of the devices. They stay there until the transaction is taken, in case it
  has to be read again; those of devices that may sync as well stay until the device has synced.
- A service is told whose keys to ask for again, and with whom its users share no room any more.
- It gets the counts of a device's keys whenever one of them was claimed, or a message came for the device.

Spec: MSC4203, MSC3202; application-service-api/#device-management
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.feature import JsonObject
from homeserver.features.application_services.interest import Interest
from homeserver.federation.identifiers import UserID
from homeserver.rooms.membership import list_members
from homeserver.rooms.storage import StoredEvent, TimelineEvent
from homeserver.users.encryption.device_lists import list_changed_users
from homeserver.users.encryption.inbox import Received, delete_inbox_upto, list_contents, list_received
from homeserver.users.encryption.one_time_keys import count_keys, list_claimed


class Keys(msgspec.Struct, frozen=True):
    """What a transaction says of keys. counts, fallback: by user and device ID."""

    changed: Collection[UserID] = ()
    left: Collection[UserID] = ()
    counts: Mapping[UserID, Mapping[str, Mapping[str, int]]] = msgspec.field(default_factory=dict)
    fallback: Mapping[UserID, Mapping[str, Collection[str]]] = msgspec.field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changed or self.left or self.counts)

    def body(self) -> JsonObject:
        """Returns the fields of the transaction, under the names that they have until MSC3202 is accepted."""
        body: JsonObject = {}
        if self.changed or self.left:
            lists = {"changed": sorted(self.changed), "left": sorted(self.left)}
            body["org.matrix.msc3202.device_lists"] = lists
        if self.counts:
            body["org.matrix.msc3202.device_one_time_keys_count"] = self.counts
            body["org.matrix.msc3202.device_unused_fallback_key_types"] = self.fallback
        return body


# --- to-device messages ---


def list_for_service(tx: Transaction, service: ApplicationService, since: int, upto: int) -> list[Received]:
    """Returns which messages came for devices of the service's users in since < position ≤ upto."""
    if not service.receives_to_device:
        return []
    return [each for each in list_received(tx, since, upto) if service.covers(each.user_id)]


def read_messages(tx: Transaction, received: Iterable[Received]) -> list[JsonObject]:
    """Returns the messages as a transaction has them. Leaves out damaged ones, and those that are gone by now."""
    received = list(received)
    contents = list_contents(tx, [each.position for each in received])
    return [
        {**contents[each.position], "to_user_id": each.user_id, "to_device_id": each.device_id}
        for each in received
        if each.position in contents
    ]


def delete_taken(tx: Transaction, service: ApplicationService, since: int, upto: int) -> None:
    """Deletes messages that the service has taken, in the inboxes of devices that it alone acts for."""
    if service.has_encryption:
        devices = {(each.user_id, each.device_id) for each in list_for_service(tx, service, since, upto)}
        for user_id, device_id in devices:
            if user_id == service.sender or service.users.is_exclusive(user_id):
                delete_inbox_upto(tx, user_id, device_id, upto)


# --- keys ---


def read_keys(
    tx: Transaction,
    interest: Interest,
    service: ApplicationService,
    since: int,
    upto: int,
    received: Iterable[Received],
    moves: Iterable[tuple[TimelineEvent, StoredEvent | None]],
    *,
    has_more: bool,
) -> Keys:
    """Returns what changed about keys in since < position ≤ upto.

    moves: the member events of that span that concern the service, each with the one before it. has_more: whether there
    is anything but events in the span.
    """
    if not service.receives_to_device:
        return Keys()
    updated = list_changed_users(tx, since, upto) if has_more else ()
    changed = {user_id for user_id in updated if interest.has_user(user_id)}
    left: set[UserID] = set()
    for event, before in moves:
        is_in = event.content.get("membership") == "join"
        was_in = before is not None and before.content.get("membership") == "join"
        if is_in != was_in:
            moved = _list_moved(tx, interest, service, event, is_in=is_in)
            changed |= {user_id for user_id in moved if is_in and interest.has_user(user_id)}
            left |= {user_id for user_id in moved if not is_in and not interest.has_user(user_id)}
    counts: dict[UserID, dict[str, Mapping[str, int]]] = {}
    fallback: dict[UserID, dict[str, Collection[str]]] = {}
    devices = {(each.user_id, each.device_id) for each in received}
    claimed = list_claimed(tx, since, upto) if has_more else ()
    devices |= {each for each in claimed if service.covers(each[0])}
    for user_id, device_id in sorted(devices):
        count = count_keys(tx, user_id, device_id)
        counts.setdefault(user_id, {})[device_id] = count.one_time
        fallback.setdefault(user_id, {})[device_id] = count.unused_fallback
    return Keys(changed, left - changed, counts, fallback)


def _list_moved(
    tx: Transaction, interest: Interest, service: ApplicationService, event: TimelineEvent, *, is_in: bool
) -> Collection[UserID]:
    """Returns who may share a room with the service's users from an event on, or may not any more."""
    user_id = UserID(event.state_key or "")
    if not service.covers(user_id):
        return (user_id,)
    if interest.is_first_in(event) if is_in else not interest.has_room(event.room_id):
        return list_members(tx, event.room_id, "join")
    return ()
