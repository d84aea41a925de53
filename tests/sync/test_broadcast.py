"""A broadcast tells each client the same as the engine would."""

from __future__ import annotations

from typing import Any

import orjson

from homeserver.api.filters import parse_filter
from homeserver.authenticate import Requester
from homeserver.encoding import to_json
from homeserver.features import FEATURES
from homeserver.sync import Syncs
from homeserver.sync.broadcast import Listener, can_listen
from homeserver.sync.engine import SyncRequest, body_of
from homeserver.users.filters import find_filter
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
        self.listener = Listener(self.request, answer.keys, answer.ignored or frozenset(), always, counts)
        shown: dict[str, Any] = orjson.loads(to_json(body_of(self._server.hs, answer)))
        return shown

    async def hear(self) -> dict[str, Any] | None:
        """Returns what a broadcast tells the client; None if it leaves that to the engine."""
        assert self.listener is not None
        if not can_listen(self.request):
            return None
        (told,) = await self._syncs.broadcast(self._server.hs, [self.listener])
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
