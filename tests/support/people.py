"""Actions of users in rooms, as requests of the client-server API.

alice, bob = await server.register("alice"), await server.register("bob")
room_id = await create(alice, invite=[bob.user_id])
await join(bob, room_id)

Names in tests: users are alice, bob, carol, dave and erin, in this order; mallory is hostile. A server alone is
test.example. Several servers are a.example, b.example and c.example; alice lives at a.example, bob at b.example. A
hostile server is mallory.example, an honest one without a homeserver behind it stranger.example. Tests of the pure
protocol (`tests/federation`) use alpha.test and beta.test. Tests of rooms whose members come from there call the users
of test.example OUR_ALICE, OUR_BOB and OUR_CAROL. If roles matter more than names, name the roles (`notary.example`).
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.federation.identifiers import EventID, RoomID
from tests.support.consistency import check_consistency
from tests.support.homeservers import Client, Server

_numbers = itertools.count(1)

Json = dict[str, Any]


def path_of(room_id: str, *parts: str) -> str:
    """`rooms/{roomId}/…`, percent-encoded."""
    return "/".join(["rooms", *(quote(part, safe="") for part in (room_id, *parts))])


async def create(client: Client, **body: Any) -> RoomID:
    return RoomID((await client.ok("POST", "createRoom", json=body))["room_id"])


async def public_room(creator: Client, *members: Client, **body: Any) -> RoomID:
    """A room that anyone may join, and these have joined."""
    room_id = await create(creator, **{"preset": "public_chat", **body})
    for member in members:
        await join(member, room_id)
    return room_id


async def send(
    client: Client, room_id: str, content: str | Json = "hello", *, kind: str = "m.room.message", txn_id: str = ""
) -> EventID:
    """Sends a text, or any content."""
    body = {"msgtype": "m.text", "body": content} if isinstance(content, str) else content
    path = path_of(room_id, "send", kind, txn_id or f"m{next(_numbers)}")
    return EventID((await client.ok("PUT", path, json=body))["event_id"])


async def say(client: Client, room_id: str, *texts: str) -> list[EventID]:
    return [await send(client, room_id, text) for text in texts]


async def set_state(client: Client, room_id: str, kind: str, content: Json, state_key: str = "") -> EventID:
    path = path_of(room_id, "state", kind, state_key)
    return EventID((await client.ok("PUT", path, json=content))["event_id"])


async def redact(client: Client, room_id: str, event_id: str, **body: Any) -> EventID:
    path = path_of(room_id, "redact", event_id, f"r{next(_numbers)}")
    return EventID((await client.ok("PUT", path, json=body))["event_id"])


async def join(client: Client, room: str, **body: Any) -> RoomID:
    """By id or alias."""
    return RoomID((await client.ok("POST", f"join/{quote(room, safe='')}", json=body))["room_id"])


async def knock(client: Client, room: str, **body: Any) -> RoomID:
    return RoomID((await client.ok("POST", f"knock/{quote(room, safe='')}", json=body))["room_id"])


async def act(client: Client, room_id: str, what: str, target: Client | str | None = None, **body: Any) -> None:
    """leave, forget; invite, kick, ban, unban somebody."""
    if target is not None:
        body["user_id"] = target if isinstance(target, str) else target.user_id
    await client.ok("POST", path_of(room_id, what), json=body)


async def invite(client: Client, room_id: str, *targets: Client | str) -> None:
    for target in targets:
        await act(client, room_id, "invite", target)


async def leave(client: Client, room_id: str, **body: Any) -> None:
    await act(client, room_id, "leave", **body)


ALWAYS_TOLD = frozenset({"device_one_time_keys_count", "device_unused_fallback_key_types"})
"""The parts of /sync that every answer has, also one without news."""


async def sync(client: Client, since: str | None = None, *, filter: Json | None = None, **query: Any) -> Json:
    """The answer of /sync. `filter` is sent as JSON."""
    params = {name: str(value).lower() if isinstance(value, bool) else value for name, value in query.items()}
    if since is not None:
        params["since"] = since
    if filter is not None:
        params["filter"] = json.dumps(filter)
    return await client.ok("GET", "sync", params=params)


async def messages(client: Client, room_id: str, direction: str = "b", **query: Any) -> Json:
    if isinstance(query.get("filter"), dict):
        query["filter"] = json.dumps(query["filter"])
    if "start" in query:
        query["from"] = query.pop("start")
    return await client.ok("GET", path_of(room_id, "messages"), params={"dir": direction, **query})


async def all_messages(client: Client, room_id: str, direction: str = "b", **query: Any) -> list[Json]:
    """Every page, up to the end."""
    found: list[Json] = []
    while True:
        page = await messages(client, room_id, direction, **query)
        found += page["chunk"]
        if "end" not in page:
            return found
        query["start"] = page["end"]


async def state(client: Client, room_id: str) -> dict[tuple[str, str], Json]:
    """The state by (type, state_key)."""
    events = await client.ok("GET", path_of(room_id, "state"))
    return {(event["type"], event["state_key"]): event for event in events}


async def get_state(client: Client, room_id: str, kind: str, state_key: str = "") -> Json:
    """The content of one event of the state."""
    return await client.ok("GET", path_of(room_id, "state", kind, state_key))


async def get_event(client: Client, room_id: str, event_id: str) -> Json:
    return await client.ok("GET", path_of(room_id, "event", event_id))


async def membership(client: Client, room_id: str, user_id: str) -> str | None:
    """The membership that a member sees in the state."""
    event = (await state(client, room_id)).get(("m.room.member", user_id))
    return None if event is None else event["content"]["membership"]


def ids(events: list[Json]) -> list[str]:
    return [event["event_id"] for event in events]


def texts(events: list[Json]) -> list[str]:
    """The messages among events."""
    return [event["content"].get("body", "") for event in events if event["type"] == "m.room.message"]


def room_in(answer: Mapping[str, Any], room_id: str, kind: str = "join") -> Json:
    """A room's part of an answer of /sync; {} if it is not there."""
    return answer.get("rooms", {}).get(kind, {}).get(room_id, {})


def timeline(answer: Mapping[str, Any], room_id: str, kind: str = "join") -> list[Json]:
    return room_in(answer, room_id, kind).get("timeline", {}).get("events", [])


def ephemeral(answer: Mapping[str, Any], room_id: str, kind: str) -> Json | None:
    """The content of the room's m.typing or m.receipt event."""
    events = room_in(answer, room_id).get("ephemeral", {}).get("events", [])
    found = [event["content"] for event in events if event["type"] == kind]
    return found[-1] if found else None


@pytest.fixture
async def server(homeserver: Server) -> AsyncIterator[Server]:
    """One homeserver, test.example, whose rooms are consistent at the end."""
    yield homeserver
    await homeserver.read(check_consistency)
