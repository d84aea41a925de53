"""Delayed events, as clients schedule them."""

from __future__ import annotations

from typing import Any

from homeserver.federation.identifiers import RoomID
from tests.support.homeservers import Client
from tests.support.people import (
    all_messages,
    path_of,
    public_room,
    texts,
)

UNSTABLE = "/_matrix/client/unstable/org.matrix.msc4140"
CALL = "org.matrix.msc3401.call.member"
HOUR = 3600.0

Json = dict[str, Any]


async def send_later(client: Client, room_id: str, delay_ms: int, text: str = "later", txn_id: str = "t1") -> str:
    path = path_of(room_id, "send", "m.room.message", txn_id)
    body = {"msgtype": "m.text", "body": text}
    params = {"org.matrix.msc4140.delay": delay_ms}
    return str((await client.ok("PUT", path, json=body, params=params))["delay_id"])


async def set_state_later(
    client: Client, room_id: str, delay_ms: int, content: Json, *, kind: str = CALL, state_key: str | None = None
) -> str:
    path = path_of(room_id, "state", kind, client.user_id if state_key is None else state_key)
    params = {"org.matrix.msc4140.delay": delay_ms}
    return str((await client.ok("PUT", path, json=content, params=params))["delay_id"])


async def act(client: Client, delay_id: str, action: str) -> None:
    assert await client.ok("POST", f"{UNSTABLE}/delayed_events/{delay_id}/{action}", json={}) == {}


async def refused(client: Client, delay_id: str, action: str) -> tuple[int, str]:
    return await client.refused("POST", f"{UNSTABLE}/delayed_events/{delay_id}/{action}", json={})


async def scheduled(client: Client) -> list[Json]:
    events: list[Json] = (await client.ok("GET", f"{UNSTABLE}/delayed_events"))["delayed_events"]
    return events


async def find(client: Client, delay_id: str) -> Json:
    found: Json = await client.ok("GET", f"{UNSTABLE}/delayed_events/{delay_id}")
    return found


async def said(client: Client, room_id: str) -> list[str]:
    return texts(await all_messages(client, room_id, "f"))


async def call_room(alice: Client, *others: Client) -> RoomID:
    """A room in which everybody may say that they are in a call."""
    return await public_room(alice, *others, power_level_content_override={"events": {CALL: 0}})
