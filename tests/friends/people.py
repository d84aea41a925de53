"""What the tests of friends ask and compare."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from tests.support.federation import until
from tests.support.homeservers import Client

OURS = "/_homeserver/client/v1"


def path_of(user_id: str) -> str:
    return f"{OURS}/friends/{quote(user_id, safe='')}"


async def ask(client: Client, other: Client | str, **body: Any) -> dict[str, Any]:
    """Asks, and returns the answer."""
    user_id = other if isinstance(other, str) else other.user_id
    answer: dict[str, Any] = await client.ok("PUT", path_of(user_id), json=body)
    return answer


async def end(client: Client, other: Client) -> None:
    await client.ok("DELETE", path_of(other.user_id))


async def block(client: Client, other: Client) -> None:
    await client.ok("PUT", f"{path_of(other.user_id)}/block")


async def unblock(client: Client, other: Client) -> None:
    await client.ok("DELETE", f"{path_of(other.user_id)}/block")


async def friends_of(client: Client) -> list[dict[str, Any]]:
    friends: list[dict[str, Any]] = (await client.ok("GET", f"{OURS}/friends"))["friends"]
    return friends


async def states_of(client: Client) -> dict[str, str]:
    return {each["user_id"]: each["state"] for each in await friends_of(client)}


async def wait_states(client: Client, states: dict[str, str]) -> None:
    """Waits until the list says exactly this."""

    async def is_so() -> bool:
        return await states_of(client) == states

    await until(is_so, f"{client.user_id}: {states}")


async def wait_joined(client: Client, *room_ids: str) -> None:
    """Waits until the user is in exactly these rooms."""

    async def is_so() -> bool:
        return set((await client.ok("GET", "joined_rooms"))["joined_rooms"]) == set(room_ids)

    await until(is_so, f"{client.user_id} in {room_ids}")


async def direct_rooms(client: Client, other: Client) -> list[str]:
    response = await client.get(f"user/{client.user_id}/account_data/m.direct")
    rooms: list[str] = response.json().get(other.user_id, []) if response.status_code == 200 else []
    return rooms


async def say(client: Client, room_id: str, body: str) -> str:
    content = {"msgtype": "m.text", "body": body}
    txn = f"t{abs(hash(body))}"
    event_id: str = (await client.ok("PUT", f"rooms/{room_id}/send/m.room.message/{txn}", json=content))["event_id"]
    return event_id


async def state_content(client: Client, room_id: str, event_type: str) -> dict[str, Any]:
    content: dict[str, Any] = await client.ok("GET", f"rooms/{room_id}/state/{event_type}/")
    return content


async def befriend(alice: Client, bob: Client) -> str:
    """Makes the two friends. Returns the room of their conversation, which is not end-to-end encrypted."""
    room_id: str = (await ask(alice, bob, encrypted=False))["room_id"]
    await ask(bob, alice)
    return room_id
