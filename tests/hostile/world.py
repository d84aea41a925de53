"""A small world for hostile requests: people, a room, an event, a file; for each operation a request that is right."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.api.routes import Operation
from homeserver.database import Transaction
from homeserver.federation.identifiers import EventID, RoomAlias, RoomID, ServerName, UserID
from homeserver.server import all_features
from tests.hostile.asking import Answer, ask
from tests.hostile.values import encode, sample
from tests.support.contract import contract_check
from tests.support.engine import list_tables
from tests.support.homeservers import PASSWORD, Client, Server
from tests.support.keys import CrossSigning, Device

OPERATIONS: tuple[Operation, ...] = tuple(operation for feature in all_features() for operation in feature.routes)
# Their answers go on for minutes, so they have tests of their own.
STREAMS = frozenset({"stream_sync_events"})
CLIENT_OPERATIONS = tuple(
    operation
    for operation in OPERATIONS
    if operation.group in ("client", "media") and not operation.plan.origin and operation.name not in STREAMS
)
FEDERATION_OPERATIONS = tuple(operation for operation in OPERATIONS if operation.plan.origin)

ENDING = frozenset(
    {"logout", "logout_all", "deactivate_account", "change_password", "leave_room", "forget_room", "delete_device",
     "delete_devices", "ban", "kick", "invite_user", "redact_event", "set_room_state", "set_room_state_with_key",
     "send_delayed_event", "cancel_delayed_event", "update_delayed_event"}
)  # fmt: skip
"""Operations after whose success the world has to be made again."""

# Tables in which a request that is refused may leave something, and why.
MAY_CHANGE = frozenset({
    "user_interactive_sessions",  # a refusal is how such a session begins
    "strings",  # numbers for texts, given out once and for ever
    "devices",  # when a device was last seen
    "presence", "heartbeats",  # asking is being there
    "outgoing_mail",  # it is tried again and again while the mail server is away
    "server_keys",  # who claims to sign with a key that is not known makes us ask for it
    "tails", "stream_position",
    # Tails write these after other requests, which were not refused.
    "active_people", "daily_figures", "figures_clock", "hourly_figures",
    "directory_rooms", "directory_words", "notified_events", "own_notifications", "profile_renames", "written_up_to",
})  # fmt: skip


GROUP_SIZE = 15


def identify(operation: Operation) -> str:
    """How an operation is called in the names of tests."""
    return f"{operation.method} {operation.path}"


def in_groups(operations: Sequence[Operation]) -> pytest.MarkDecorator:
    """Parametrizes a test by `operations`, a few of these at a time.

    It is for requests that change nothing: one world serves many of them, and making it takes longer than asking.
    """
    groups = [operations[start : start + GROUP_SIZE] for start in range(0, len(operations), GROUP_SIZE)]
    return pytest.mark.parametrize("operations", groups, ids=[f"{identify(group[0])} …" for group in groups])


@dataclass(slots=True)
class World:
    """Everything that a request may name, in one server."""

    server: Server
    alice: Client
    bob: Client
    room_id: RoomID
    event_id: str
    alias: str
    media_id: str
    filter_id: str
    backup_version: str
    delay_id: str
    numbers: Any = field(default_factory=itertools.count)
    _digested: tuple[int, Mapping[str, str]] = (-1, {})

    @property
    def known(self) -> dict[Any, Any]:
        """Returns a known identifier of each kind."""
        return {
            UserID: self.bob.user_id,
            RoomID: self.room_id,
            EventID: self.event_id,
            RoomAlias: self.alias,
            ServerName: self.server.name,
        }

    def path(self, operation: Operation, **other: str) -> str:
        """The path of an operation with things that there are, percent-encoded. `other` goes into it as it is."""
        values = {
            "user_id": self.alice.user_id,
            "room_id": self.room_id,
            "room_id_or_alias": self.room_id,
            "event_id": self.event_id,
            "room_alias": self.alias,
            "server_name": self.server.name,
            "media_id": self.media_id,
            "device_id": self.alice.device_id,
            "filter_id": self.filter_id,
            "version": self.backup_version,
            "session_id": "session",
            "rel_type": "m.thread",
            "profile_tag": "tag",
            "key_name": "displayname",
            "data_type": "org.example.data",
            "tag": "u.work",
            "kind": "override",
            "protocol": "irc",
            "rule_id": "rule",
            "event_type": "org.example.event",
            "state_key": "key",
            "txn_id": f"txn{next(self.numbers)}",
            "receipt_type": "m.read",
            "query_type": "profile",
            "file_name": "file.txt",
            "upload_id": "upload",
            "appservice_id": "bridge",
            "network_id": "irc",
            "delay_id": self.delay_id,
            "rendezvous_id": "rendezvous",
            "idp_id": "provider",
            "auth_type": "m.login.dummy",
        }

        def fill(match: re.Match[str]) -> str:
            return other[match[1]] if match[1] in other else quote(values[match[1]], safe="")

        return re.sub(r"\{(\w+)\}", fill, operation.path)

    def body(self, operation: Operation) -> dict[str, Any]:
        """A body for an operation as it should be, with as many of its fields as go together."""
        plan = operation.plan.body
        assert plan is not None
        special = self._bodies().get(operation.name)
        if special is not None:
            return special
        return dict(sample(plan.kind, self.known))

    def _bodies(self) -> dict[str, dict[str, Any]]:
        number = next(self.numbers)
        creation = {
            "preset": "public_chat", "visibility": "private", "name": "x", "topic": "x", "room_version": "12",
            "room_alias_name": f"room{number}", "is_direct": False, "invite": [self.bob.user_id],
            "creation_content": {"m.federate": False, "type": "m.space"},
            "initial_state": [{"type": "m.room.topic", "state_key": "", "content": {"topic": "x"}}],
            "power_level_content_override": {"users": {self.bob.user_id: 50}, "events": {"m.room.name": 5}, "ban": 50},
        }  # fmt: skip
        login = {
            "type": "m.login.password", "identifier": {"type": "m.id.user", "user": self.alice.user_id},
            "password": PASSWORD, "device_id": "D", "initial_device_display_name": "x", "refresh_token": True,
        }  # fmt: skip
        register = {
            "username": f"user{number}", "password": PASSWORD, "auth": {"type": "m.login.dummy"}, "device_id": "D",
            "initial_device_display_name": "x", "inhibit_login": False, "refresh_token": True,
        }  # fmt: skip
        timeline = {"limit": 5, "types": ["m.*"], "not_senders": ["@x:y"]}
        rooms = {"rooms": ["!a:b"], "not_rooms": [], "timeline": timeline}
        user = {"type": "m.id.user", "user": self.alice.user_id}
        auth = {"type": "m.login.password", "identifier": user, "password": "wrong"}
        conditions = [{"kind": "event_match", "key": "type", "pattern": "x"}, {"kind": "room_member_count", "is": "2"}]
        device, keys = Device(self.alice.user_id, self.alice.device_id), CrossSigning(self.alice.user_id)
        upload = {"device_keys": device.keys(), "one_time_keys": device.one_time_keys(2)}
        signed = keys.by_self_signing(device.keys())
        rule = {"actions": ["notify", {"set_tweak": "sound", "value": "x"}], "conditions": conditions, "pattern": "x"}
        return {
            "create_room": creation,
            "invite_user": {"user_id": self.bob.user_id, "reason": "x"},  # an address would be looked up elsewhere
            "login": login,
            "register": register,
            "send_message": {"msgtype": "m.text", "body": "x", "m.mentions": {"user_ids": [self.bob.user_id]}},
            "define_filter": {"room": rooms, "presence": {"limit": 3}, "event_fields": ["content.body"]},
            "set_profile_field": {"displayname": "Alice"},
            "set_room_tag": {"order": 0.5},
            "query_keys": {"device_keys": {self.bob.user_id: ["D"]}, "timeout": 0},
            "upload_keys": {**upload, "fallback_keys": device.fallback_key("F")},
            "claim_keys": {"one_time_keys": {self.bob.user_id: {"D": "signed_curve25519"}}, "timeout": 0},
            "upload_cross_signing_keys": {**keys.body(), "auth": auth},
            "upload_cross_signing_signatures": {self.alice.user_id: {self.alice.device_id: signed}},
            "set_push_rule": rule,
            "set_push_rule_actions": {"actions": rule["actions"]},
            "deactivate_account": {"auth": auth, "erase": False},
            "request_token_to_3pid_email": {"client_secret": "s", "email": "x@example.org", "send_attempt": 1},
            "request_token_to_register_email": {"client_secret": "s", "email": "y@example.org", "send_attempt": 1},
            "change_password": {"auth": auth, "new_password": "another password", "logout_devices": False},
            "delete_devices": {"auth": auth, "devices": [self.alice.device_id]},
            "delete_device": {"auth": auth},
            "set_presence": {"presence": "online", "status_msg": "x"},
        }

    def schema(self, operation: Operation) -> dict[str, Any]:
        """The contract's JSON schema for the body of an operation; {} where it has none."""
        module = contract_check()
        found = None if module is None else module.match(operation.method, self.path(operation))
        content = ((found or {}).get("request_body") or {}).get("content", {})
        schema: dict[str, Any] = content.get("application/json", {}).get("schema") or {}
        return schema

    async def ask(self, operation: Operation, **options: Any) -> Answer:
        """The answer to a request of alice. Without `path` and `body` they are as they should be."""
        if "path" not in options:
            options["path"] = self.path(operation)
        if "/room_keys/keys" in operation.path:
            options.setdefault("query", f"version={self.backup_version}")
        options.setdefault("headers", [("authorization", f"Bearer {self.alice.token}")])
        if "body" not in options and operation.plan.body is not None:
            options["body"] = encode(self.body(operation))
        return await ask(self.server.app, operation.method, **options)

    async def contents(self) -> Mapping[str, str]:
        """Returns a digest of every table that a refused request must not touch.

        Digests all tables only if anything has been written since the last call: that takes longer than most requests.
        """
        writes = self.server.hs.database.writes
        if self._digested[0] != writes:
            self._digested = writes, await self.server.read(_digest_tables)
        return self._digested[1]


async def make_world(server: Server, name: str = "alice") -> World:
    """People, a room and what is in it."""
    alice = await server.register(name)
    bob = await server.register(f"{name}-bob")
    made = await alice.ok("POST", "createRoom", json={"preset": "public_chat", "room_alias_name": name})
    room_id = RoomID(made["room_id"])
    await bob.ok("POST", f"join/{quote(room_id)}", json={})
    text = {"msgtype": "m.text", "body": "x"}
    sent = await alice.ok("PUT", f"rooms/{quote(room_id)}/send/m.room.message/1", json=text)
    upload = await alice.post("/_matrix/media/v3/upload", content=b"a file", headers={"content-type": "text/plain"})
    stored = await alice.ok("POST", f"user/{quote(alice.user_id)}/filter", json={})
    await alice.ok("PUT", f"user/{quote(alice.user_id)}/account_data/org.example.data", json={"a": 1})
    await alice.ok("PUT", "pushrules/global/override/rule", json={"actions": ["notify"]})
    backup = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {"public_key": "x", "signatures": {}}}
    backed_up = await alice.ok("POST", "room_keys/version", json=backup)
    later = f"rooms/{quote(room_id)}/send/m.room.message/2?org.matrix.msc4140.delay=3600000"
    delayed = await alice.ok("PUT", later, json=text)
    return World(
        server, alice, bob, room_id, sent["event_id"], f"#{name}:{server.name}",
        upload.json()["content_uri"].rpartition("/")[2], stored["filter_id"], backed_up["version"],
        delayed["delay_id"],
    )  # fmt: skip


def _digest_tables(tx: Transaction) -> Mapping[str, str]:
    return {
        name: sha256(repr(sorted(map(repr, tx.all(f"SELECT * FROM {name}")))).encode()).hexdigest()
        for name in list_tables(tx)
        if name not in MAY_CHANGE
    }
