"""What clients do in rooms, by the client-server API, in one line each.

    room_id = await create_room(alice, preset="public_chat")
    event_id = await say(alice, room_id, "hello")
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from federation.identifiers import EventID, RoomID
from tests.support.homeservers import Client


def segment(name: str) -> str:
    """One segment of a path: with nothing in it that has a meaning in URLs."""
    return quote(name, safe="")


async def create_room(client: Client, **body: Any) -> RoomID:
    """A new room; by default nobody but its creator is in it."""
    return RoomID((await client.ok("POST", "createRoom", json=body))["room_id"])


async def public_room(creator: Client, *members: Client, **body: Any) -> RoomID:
    """A room that anyone may join, and these have joined."""
    room_id = await create_room(creator, **{"preset": "public_chat", **body})
    for member in members:
        await join(member, room_id)
    return room_id


async def join(client: Client, room_id: str) -> None:
    await client.ok("POST", f"rooms/{segment(room_id)}/join", json={})


async def leave(client: Client, room_id: str) -> None:
    await client.ok("POST", f"rooms/{segment(room_id)}/leave", json={})


async def act(client: Client, action: str, room_id: str, target: Client, **body: Any) -> None:
    """invite, kick, ban or unban."""
    await client.ok("POST", f"rooms/{segment(room_id)}/{action}", json={"user_id": target.user_id, **body})


async def say(client: Client, room_id: str, text: str, **content: Any) -> EventID:
    """A message; the text must be one that this device has not said in the room yet."""
    path = f"rooms/{segment(room_id)}/send/m.room.message/{segment(text)}"
    body = {"msgtype": "m.text", "body": text, **content}
    return EventID((await client.ok("PUT", path, json=body))["event_id"])


async def say_all(client: Client, room_id: str, *texts: str) -> list[EventID]:
    return [await say(client, room_id, text) for text in texts]


def state_path(room_id: str, event_type: str, state_key: str = "") -> str:
    path = f"rooms/{segment(room_id)}/state/{segment(event_type)}"
    return f"{path}/{segment(state_key)}" if state_key else path


async def set_state(client: Client, room_id: str, event_type: str, state_key: str = "", **content: Any) -> EventID:
    answer = await client.ok("PUT", state_path(room_id, event_type, state_key), json=content)
    return EventID(answer["event_id"])


async def get_state(client: Client, room_id: str, event_type: str, state_key: str = "") -> dict[str, Any]:
    """The content."""
    return dict(await client.ok("GET", state_path(room_id, event_type, state_key)))


async def all_state(client: Client, room_id: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The state events, by type and state key."""
    events = await client.ok("GET", f"rooms/{segment(room_id)}/state")
    return {(event["type"], event["state_key"]): event for event in events}


async def membership_of(client: Client, room_id: str, who: Client) -> str:
    return str((await get_state(client, room_id, "m.room.member", who.user_id))["membership"])


async def messages(client: Client, room_id: str, direction: str = "b", **query: Any) -> dict[str, Any]:
    """A page of history. `from_` is the query's `from`."""
    query = {"dir": direction, **{key.rstrip("_"): value for key, value in query.items()}}
    return dict(await client.ok("GET", f"rooms/{segment(room_id)}/messages", params=query))


async def sync(client: Client, since: str | None = None, **query: Any) -> dict[str, Any]:
    parameters = query if since is None else {"since": since, **query}
    return dict(await client.ok("GET", "sync", params=parameters))


def texts(events: list[dict[str, Any]]) -> list[str]:
    """The bodies of the messages among the events."""
    return [event["content"].get("body", "") for event in events if event["type"] == "m.room.message"]
