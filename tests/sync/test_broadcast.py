"""A broadcast tells each client the same as the engine would."""

from __future__ import annotations

from random import Random
from typing import Any

import orjson
from trio.testing import wait_all_tasks_blocked

from homeserver.api.filters import parse_filter
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.features import FEATURES
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.rooms.append import append_local
from homeserver.rooms.storage import find_stored_by_id
from homeserver.sync import Syncs
from homeserver.sync.answer import body_of
from homeserver.sync.broadcast import Listener, can_listen
from homeserver.sync.request import SyncRequest
from homeserver.users.filters import find_filter
from homeserver.users.push.counts import TOLD_MAX
from homeserver.users.receipts import DELIVERED, store_receipt
from tests.friends.people import befriend
from tests.support.federation import create_room, join, send_state, send_text
from tests.support.homeservers import Client, Server, homeserver, homeservers

__all__ = ["homeserver", "homeservers"]


class Waiting:
    """A client that has everything up to its last answer."""

    def __init__(self, server: Server, syncs: Syncs, client: Client, filter_: Any) -> None:
        self._server, self._syncs = server, syncs
        requester = Requester(client.user_id, client.device_id)
        self.request = SyncRequest(requester, None, parse_filter(filter_), set_presence="offline")
        self.listener: Listener | None = None

    async def read(self) -> dict[str, Any]:
        """Returns the engine's answer, which the client has from now on."""
        answer = await self._syncs.engine.read(self._server.hs, self.request)
        rooms = answer.body.get("rooms", {}).get("join", {})
        counts = dict(self.listener.counts) if self.listener is not None else {}
        counts |= {name: room["unread_notifications"] for name, room in rooms.items() if "unread_notifications" in room}
        self.request = SyncRequest(
            self.request.requester, answer.upto, self.request.filter, set_presence="offline"
        )  # fmt: skip
        always = b"".join(b",%b:%b" % (to_json(name), to_json(each)) for name, each in answer.always.items())
        ignored = answer.ignored  # None if nothing had to be read
        if ignored is None:
            ignored = frozenset() if self.listener is None else self.listener.ignored
        self.listener = Listener(self.request, answer.upto, answer.keys, ignored, always, counts)
        shown: dict[str, Any] = orjson.loads(to_json(body_of(self._server.hs, answer)))
        return shown

    async def hear(self) -> dict[str, Any] | None:
        """Returns what a broadcast tells the client; None if it leaves that to the engine."""
        assert self.listener is not None
        if not can_listen(self.request):
            return None
        (told,) = await self._syncs.engine.together.read(self._server.hs, [self.listener])
        return None if told is None else orjson.loads(told.body or b"{}")


FILTERS: dict[str, Any] = {
    "bob": {},
    "lazy": {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 5}}},
    "mentioned": {},
    "muting": {},
    "ignoring": {},
    "filtering": {"room": {"timeline": {"not_types": ["org.example"]}}},
    "threads": {"room": {"timeline": {"unread_thread_notifications": True}}},
    "elsewhere": {},
}


async def test_a_broadcast_tells_each_client_what_the_engine_would(homeserver: Server) -> None:
    syncs = Syncs(FEATURES, find_filter)
    alice = await homeserver.register("alice")
    room_id, other = [await create_room(alice, preset="public_chat", name=name) for name in ("Tea", "Coffee")]
    people = {name: await homeserver.register(name) for name in FILTERS}
    for name, client in people.items():
        await join(client, other if name == "elsewhere" else room_id)
    await people["muting"].ok("PUT", f"pushrules/global/room/{room_id}", json={"actions": []})
    ignored = {"ignored_users": {alice.user_id: {}}}
    await people["ignoring"].ok(
        "PUT", f"user/{people['ignoring'].user_id}/account_data/m.ignored_user_list", json=ignored
    )
    clients = {name: Waiting(homeserver, syncs, people[name], filter_) for name, filter_ in FILTERS.items()}
    clients["alice"] = Waiting(homeserver, syncs, alice, {})
    for client in clients.values():
        await client.read()
    heard: dict[str, int] = dict.fromkeys(clients, 0)

    async def compare() -> None:
        for name, client in clients.items():
            told = await client.hear()
            answer = await client.read()
            if told:
                heard[name] += 1
                assert told == answer, name
            elif told is not None:
                assert answer.keys() <= {"next_batch", "device_one_time_keys_count", "device_unused_fallback_key_types"}

    for number in range(3):
        await send_text(alice, room_id, f"message {number}")
        await compare()
    content = {"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": [people["mentioned"].user_id]}}
    await alice.ok("PUT", f"rooms/{room_id}/send/m.room.message/mention", json=content)
    await send_text(alice, other, "coffee?")
    await compare()
    await send_state(alice, room_id, "m.room.topic", {"topic": "Tea"})
    await compare()
    redacted = await send_text(alice, room_id, "gone soon")
    await alice.ok("PUT", f"rooms/{room_id}/redact/{redacted}/r1", json={})
    await compare()
    await send_text(alice, room_id, "the last one")
    await compare()

    assert {name for name, number in heard.items() if number >= 5} >= {"bob", "mentioned", "muting"}
    assert heard["lazy"] >= 3
    assert [heard[name] for name in ("alice", "ignoring", "filtering", "threads")] == [0, 0, 0, 0]


class Group:
    """A room whose members listen, and do at random what all are told, or nearly all."""

    def __init__(self, server: Server, room_id: RoomID, people: dict[str, Client], random: Random) -> None:
        self.server, self.room_id, self.people, self._random = server, room_id, people, random
        self.sent: list[EventID] = []

    async def do_something(self) -> None:
        random, write = self._random, self.server.hs.database.write
        client = random.choice(list(self.people.values()))
        path = f"rooms/{self.room_id}"
        what = random.choice(["say"] * 4 + ["type"] * 3 + ["read"] * 2 + ["private"] + ["delivered"] * 6)
        if what == "say" or not self.sent:
            self.sent.append(await send_text(client, self.room_id, "hello"))
        elif what == "type":
            body = {"typing": random.random() < 0.6, "timeout": 30_000}
            await client.ok("PUT", f"{path}/typing/{client.user_id}", json=body)
        elif what in ("read", "private"):
            kind = "m.read" if what == "read" else "m.read.private"
            thread = random.choice([{}, {}, {"thread_id": "main"}])
            await client.ok("POST", f"{path}/receipt/{kind}/{random.choice(self.sent[-3:])}", json=thread)
        else:
            event_id = random.choice(self.sent[-3:])

            def deliver(tx: Transaction) -> None:
                event = find_stored_by_id(tx, event_id)
                assert event is not None
                store_receipt(
                    tx, self.room_id, client.user_id, DELIVERED, "", event_id, event.ordering, tx.now_ms, is_local=True
                )

            await write(deliver)


async def test_receipts_and_typing_are_broadcast_as_the_engine_would_tell_them(homeserver: Server) -> None:
    random = Random(9)
    syncs = Syncs(FEATURES, find_filter)
    names = ("alice", "bob", "carol", "ignoring", "shy", "close", "filtering")
    people = {name: await homeserver.register(name) for name in names}
    room_id = await create_room(people["alice"], preset="public_chat")
    for name in names[1:]:
        await join(people[name], room_id)
    ignored = {"ignored_users": {people["bob"].user_id: {}}}
    path = f"user/{people['ignoring'].user_id}/account_data/m.ignored_user_list"
    await people["ignoring"].ok("PUT", path, json=ignored)
    for name, audience in (("shy", "nobody"), ("close", "friends")):
        path = f"user/{people[name].user_id}/account_data/org.homeserver.privacy"
        await people[name].ok("PUT", path, json={"delivery": audience})
    await befriend(people["close"], people["carol"])
    filters = {"filtering": {"room": {"ephemeral": {"not_types": ["m.typing"]}}}}
    clients = {name: Waiting(homeserver, syncs, people[name], filters.get(name, {})) for name in names}
    for client in clients.values():
        await client.read()
    group = Group(homeserver, room_id, people, random)
    heard = shown = 0
    for _ in range(80):
        for _ in range(random.choice((1, 1, 2, 4))):
            await group.do_something()
        for name, client in clients.items():
            if random.random() < 0.3:
                continue  # this one learns of it later
            told = await client.hear()
            answer = await client.read()
            if told is not None:
                heard += 1
                shown += bool(told) and any("ephemeral" in room for room in told["rooms"]["join"].values())
                assert ("rooms" in answer) == bool(told), name
                assert not told or told == answer, name
    assert heard > 150 and shown > 75


async def test_more_unread_messages_than_are_counted_are_broadcast(homeserver: Server) -> None:
    syncs = Syncs(FEATURES, find_filter)
    alice, bob = await homeserver.register("alice"), await homeserver.register("bob")
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    client = Waiting(homeserver, syncs, bob, {"room": {"timeline": {"limit": 1}}})

    def say(tx: Transaction, number: int) -> None:
        for _ in range(number):
            append_local(tx, Draft(room_id, alice.user_id, "m.room.message", {"msgtype": "m.text", "body": "hello"}))

    for number in (249, TOLD_MAX - 2 - 249):
        await homeserver.hs.database.write(say, number)
        await wait_all_tasks_blocked()  # the tail judges them
    await client.read()
    counts = []
    for _ in range(4):
        await homeserver.hs.database.write(say, 1)
        told = await client.hear()
        assert told is not None and told == await client.read()
        counts.append(told["rooms"]["join"][room_id]["unread_notifications"]["notification_count"])
    assert counts == [TOLD_MAX - 1, TOLD_MAX, TOLD_MAX, TOLD_MAX]
