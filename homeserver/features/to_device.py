"""To-device messages: between devices, without a room, such as the keys that decrypt a room's events.

A message is kept in the inbox of each device that is to get it, until a `/sync` shows by its token that the device has
it. For users of other servers it is kept in the outbox of the server, until the server has acknowledged it.

Spec: client-server-api/#send-to-device-messaging, server-server-api/#send-to-device-messaging
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, charge_requester, limit_requester
from homeserver.database import Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, bad_json, invalid_param
from homeserver.feature import UNTIL_NEWS_MS, BeforeSync, Edu, EduQueue, Feature, JsonObject, SyncContext, SyncStart
from homeserver.federation import canonical_json
from homeserver.federation.edus import DirectToDeviceContent
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, UserID, parse_user_id, server_name_of
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.users.encryption.inbox import delete_inbox_upto, has_inbox_upto, list_inbox, note_request
from homeserver.users.encryption.outbox import count_unknown, delete_edus_upto, insert_edu, list_edus, list_first_edus
from homeserver.users.encryption.to_device import Posting, store_messages

_log = logging.getLogger(__name__)

DROPPED_COUNTER = "homeserver_to_device_dropped_total"

# The latest messages of each origin, by a hash of their ID, so that one that comes again is ignored.
SCHEMA = Schema(
    "to_device",
    (
        Step(
            "001_create",
            """
            CREATE TABLE to_device_received (
                origin_nid INTEGER NOT NULL,
                message_hash BLOB NOT NULL,
                number INTEGER NOT NULL,
                PRIMARY KEY (origin_nid, message_hash)
            );
            CREATE INDEX to_device_received_by_number ON to_device_received (origin_nid, number);
            """,
        ),
    ),
)

routes = Routes()

Contents = Mapping[UserID, Mapping[str, bytes]]
"""Contents as JSON, by user and device ID."""


class SendBody(msgspec.Struct, frozen=True):
    """`messages`: contents by user ID and device ID, where "*" stands for all devices of the user."""

    messages: dict[str, dict[str, dict[str, Any]]]


@routes.put("/_matrix/client/v3/sendToDevice/{event_type}/{txn_id}", rate_limit="to_device", allow_guest=True)
async def send_to_device(hs: Resources, requester: Requester, event_type: str, txn_id: str, body: SendBody) -> Empty:
    if max(len(event_type.encode()), len(txn_id.encode())) > limits.TXN_ID_BYTES_MAX:
        raise invalid_param(f"An event type and a transaction ID are at most {limits.TXN_ID_BYTES_MAX} bytes each.")
    limit_requester(hs, requester, "to_device_kib", 0)
    contents = _parse_contents(body)
    if requester.is_shadow_banned:  # what the user's own devices tell one another
        contents = {user_id: each for user_id, each in contents.items() if user_id == requester.user_id}
    local = {user_id: each for user_id, each in contents.items() if server_name_of(user_id) == hs.server_name}
    edus = _build_edus(requester.user_id, event_type, contents, hs.server_name) if hs.config.federation.enabled else []
    if edus:
        unknown = await hs.database.read(count_unknown, {server for server, _ in edus})
        limit_requester(hs, requester, "to_device_servers", unknown)
    request = f"{event_type}/{txn_id}"
    posting, dropped = await hs.database.write(_send, requester, event_type, request, local, edus)
    stored_bytes = posting.bytes + sum(len(content) for _, content in edus)
    charge_requester(hs, requester, "to_device_kib", stored_bytes / 1024)
    _note_dropped(hs, "inbox", posting.dropped, {"user_id": requester.user_id})
    _note_dropped(hs, "outbox", dropped, {"user_id": requester.user_id})
    return Empty()


def _parse_contents(body: SendBody) -> Contents:
    """Raises MatrixError if there is anything in it that cannot be delivered."""
    contents: dict[UserID, dict[str, bytes]] = {}
    count = 0
    for user_id, by_device in body.messages.items():
        try:
            of_user = contents[parse_user_id(user_id)] = {}
        except InvalidIdentifier as error:
            raise invalid_param(f"Messages are sent to users: {error}") from None
        count += len(by_device)
        if count > limits.users.TO_DEVICE_MESSAGES_MAX:
            raise MatrixError(
                413, "M_TOO_LARGE", f"A request may have at most {limits.users.TO_DEVICE_MESSAGES_MAX} messages."
            )
        for device_id, content in by_device.items():
            if len(device_id.encode()) > limits.DEVICE_ID_BYTES_MAX:
                raise invalid_param(f"A device ID is at most {limits.DEVICE_ID_BYTES_MAX} bytes.")
            of_user[device_id] = _encode(content)
    return contents


def _encode(content: JsonObject) -> bytes:
    try:
        canonical_json.check(content, strict=False)
    except canonical_json.NotCanonical as error:
        raise bad_json(f"The content of a message is not valid: {error}") from None
    data = to_json(content)
    if len(data) > limits.users.TO_DEVICE_CONTENT_BYTES_MAX:
        most = limits.users.TO_DEVICE_CONTENT_BYTES_MAX >> 10
        raise MatrixError(413, "M_TOO_LARGE", f"The content of a message is limited to {most} KiB.")
    return data


def _send(
    tx: Transaction,
    requester: Requester,
    event_type: str,
    request: str,
    local: Contents,
    edus: Sequence[tuple[ServerName, bytes]],
) -> tuple[Posting, int]:
    """Stores the messages, unless the device has sent them before. Returns what was dropped from full queues."""
    posting, dropped = Posting(), 0
    if note_request(tx, requester.user_id, requester.device_id, request):
        for recipient, contents in local.items():
            store_messages(tx, requester.user_id, event_type, recipient, contents, posting)
        for server, content in edus:
            dropped += insert_edu(tx, server, requester.user_id, content)
    return posting, dropped


def _note_dropped(hs: Resources, queue: str, dropped: int, about: Mapping[str, str]) -> None:
    if dropped:
        hs.metrics.describe(DROPPED_COUNTER, "To-device messages dropped from queues that nobody has emptied.")
        hs.metrics.count(DROPPED_COUNTER, (("queue", queue),), dropped)
        _log.warning("oldest to-device messages dropped: a queue is full", extra={"queue": queue, **about})


# --- federation ---


def _build_edus(sender: UserID, event_type: str, contents: Contents, own: ServerName) -> list[tuple[ServerName, bytes]]:
    """Returns the EDUs to other servers: one for each, unless its messages are too large for one."""
    by_server: dict[ServerName, dict[UserID, Mapping[str, bytes]]] = {}
    for user_id, of_user in contents.items():
        if of_user and server_name_of(user_id) != own:
            by_server.setdefault(server_name_of(user_id), {})[user_id] = of_user
    return [
        (server, _encode_edu(sender, event_type, part))
        for server, of_server in by_server.items()
        for part in _split(of_server)
    ]


def _split(contents: Contents) -> Iterator[dict[UserID, dict[str, bytes]]]:
    """Yields the contents in parts that fit into an EDU, if they do on their own."""
    part: dict[UserID, dict[str, bytes]] = {}
    size_bytes = 0
    for user_id, by_device in contents.items():
        for device_id, content in by_device.items():
            more_bytes = len(content) + len(user_id) + len(device_id)
            if part and size_bytes + more_bytes > limits.users.TO_DEVICE_CONTENT_BYTES_MAX:
                yield part
                part, size_bytes = {}, 0
            part.setdefault(user_id, {})[device_id] = content
            size_bytes += more_bytes
    yield part


def _encode_edu(sender: UserID, event_type: str, contents: Contents) -> bytes:
    messages = {
        user_id: {device_id: msgspec.Raw(content) for device_id, content in by_device.items()}
        for user_id, by_device in contents.items()
    }
    message_id = secrets.token_urlsafe(18)
    return msgspec.json.encode({"sender": sender, "type": event_type, "message_id": message_id, "messages": messages})


async def receive_messages(hs: Resources, origin: ServerName, edus: Sequence[DirectToDeviceContent]) -> None:
    """Stores messages of another server's users for devices of this server, unless they have come before.

    Raises M_LIMIT_EXCEEDED while the origin has stored too much. It sends the transaction again later.
    """
    for edu in edus:
        hs.rate_limits.require("federation_to_device_kib", origin, hs.now_ms())
        contents = {
            user_id: {device_id: to_json(content) for device_id, content in by_device.items()}
            for user_id, by_device in edu.messages.items()
            if server_name_of(user_id) == hs.server_name
        }
        if sum(len(by_device) for by_device in contents.values()) > limits.users.TO_DEVICE_MESSAGES_MAX:
            raise MatrixError(413, "M_TOO_LARGE", "The EDU has too many messages.")
        if contents:
            posting = await hs.database.write(_receive, origin, edu, contents)
            hs.rate_limits.charge("federation_to_device_kib", origin, hs.now_ms(), posting.bytes / 1024)
            _note_dropped(hs, "inbox", posting.dropped, {"origin": origin})


def _receive(tx: Transaction, origin: ServerName, edu: DirectToDeviceContent, contents: Contents) -> Posting:
    posting = Posting()
    if not is_received(tx, origin, edu.message_id):
        for recipient, by_device in contents.items():
            store_messages(tx, edu.sender, edu.type, recipient, by_device, posting)
        if posting.messages:
            note_received(tx, origin, edu.message_id)
    return posting


# --- sync ---


def has_acknowledged(tx: Transaction, start: SyncStart) -> bool:
    """Returns whether the device has received messages that are still in its inbox."""
    return start.queue_since > 0 and has_inbox_upto(tx, start.user_id, start.device_id, start.queue_since)


def empty_for_ms(tx: Transaction, start: SyncStart) -> int:
    """Returns for how long there is nothing to acknowledge: with an empty inbox, until a message comes."""
    return 0 if has_inbox_upto(tx, start.user_id, start.device_id, tx.position) else UNTIL_NEWS_MS


def acknowledge(tx: Transaction, start: SyncStart) -> None:
    """Deletes the messages that the device has received."""
    delete_inbox_upto(tx, start.user_id, start.device_id, start.queue_since)


def sync_to_device(tx: Transaction, context: SyncContext) -> None:
    """News: the first messages of the inbox. If there are more, the token says so, and the next sync has those."""
    context.queue_upto = context.queue_since  # if the inbox cannot be read, the next sync must not acknowledge it
    page = list_inbox(tx, context.user_id, context.device_id, context.queue_since, context.upto)
    context.to_device += page.messages
    context.queue_upto = page.upto


# --- storage ---


def is_received(tx: Transaction, origin: ServerName, message_id: str) -> bool:
    """Returns whether a message with that ID has come from the origin lately."""
    found = tx.one(
        "SELECT 1 FROM to_device_received WHERE origin_nid = ? AND message_hash = ?",
        tx.find(origin), _hash(message_id),
    )  # fmt: skip
    return found is not None


def note_received(tx: Transaction, origin: ServerName, message_id: str) -> None:
    """Records that the message has come, and forgets the oldest ones."""
    nid = tx.intern(origin)
    (number,) = tx.one(
        "SELECT number FROM to_device_received WHERE origin_nid = ? ORDER BY number DESC LIMIT 1", nid
    ) or (0,)
    tx.run(
        "INSERT INTO to_device_received (origin_nid, message_hash, number) VALUES (?, ?, ?)",
        nid, _hash(message_id), number + 1,
    )  # fmt: skip
    tx.run(
        "DELETE FROM to_device_received WHERE origin_nid = ? AND number <= ?",
        nid, number + 1 - limits.peers.TO_DEVICE_IDS_KEPT,
    )  # fmt: skip


def _hash(message_id: str) -> bytes:
    return blake2b(message_id.encode(), digest_size=16).digest()


FEATURE = Feature(
    name="to_device",
    spec="client-server-api/#send-to-device-messaging",
    schema=SCHEMA,
    routes=routes,
    limits={
        "to_device_servers": Bucket(100, 0.1),  # servers unknown so far, which are tried for ever
        "to_device": Bucket(500, 50),  # keys for a room of thousands of devices, 20 to a request
        # What is stored, in KiB: a rotation of keys takes 10 MiB in a room of 10,000 devices. Nobody fills the disk
        # faster than by 6 GB a day, which can be noticed.
        "to_device_kib": Bucket(65_536, 64),
        # … per origin: all devices of a large server change their keys in turn, for many of our devices.
        "federation_to_device_kib": Bucket(262_144, 128),
    },
    edus={
        "m.direct_to_device": Edu(
            DirectToDeviceContent,
            receive_messages,
            user=lambda content: content.sender,
            room=None,
            source=list_edus,
            durable=True,
            queue=EduQueue(list_first_edus, delete_edus_upto),
        )
    },
    before_sync=BeforeSync(has_acknowledged, acknowledge, empty_for_ms),
    sync=sync_to_device,
)
