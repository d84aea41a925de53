"""Events that relate to others, as requests of the client-server API."""

from __future__ import annotations

from typing import Any

from homeserver.federation.identifiers import EventID
from tests.support.homeservers import Client
from tests.support.people import Json, get_event, path_of, send

V1 = "/_matrix/client/v1/"


async def relate(
    client: Client, room_id: str, parent: str, rel_type: str, *, kind: str = "m.room.message", **content: Any
) -> EventID:
    """Sends an event that relates to another one."""
    relates_to = {"rel_type": rel_type, "event_id": parent, **content.pop("relates_to", {})}
    return await send(
        client, room_id, {"msgtype": "m.text", "body": "related", **content, "m.relates_to": relates_to}, kind=kind
    )


async def edit(client: Client, room_id: str, parent: str, text: str) -> EventID:
    return await relate(client, room_id, parent, "m.replace", **{"m.new_content": {"msgtype": "m.text", "body": text}})


async def reply(client: Client, room_id: str, root: str) -> EventID:
    """Sends a message in a thread."""
    return await relate(client, room_id, root, "m.thread")


async def react(client: Client, room_id: str, parent: str, key: str = "👍") -> EventID:
    return await relate(client, room_id, parent, "m.annotation", kind="m.reaction", relates_to={"key": key})


async def relations(client: Client, room_id: str, event_id: str, *path: str, start: str = "", **query: Any) -> Json:
    params = {**query, **({"from": start} if start else {})}
    return await client.ok("GET", V1 + path_of(room_id, "relations", event_id, *path), params=params)


async def threads(client: Client, room_id: str, *, start: str = "", **query: Any) -> Json:
    params = {**query, **({"from": start} if start else {})}
    return await client.ok("GET", V1 + path_of(room_id, "threads"), params=params)


async def ignore(client: Client, *users: Client) -> None:
    content = {"ignored_users": {user.user_id: {} for user in users}}
    await client.ok("PUT", f"user/{client.user_id}/account_data/m.ignored_user_list", json=content)


async def bundle(client: Client, room_id: str, event_id: str) -> Json:
    """The `m.relations` of an event."""
    return dict((await get_event(client, room_id, event_id))["unsigned"].get("m.relations", {}))
