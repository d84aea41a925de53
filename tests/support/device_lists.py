"""Users whose device lists other servers follow, and how to find out what is known of them.

await upload(bob)
await follow(alice, bob.user_id)
"""

from __future__ import annotations

from typing import Any

from homeserver.database import Transaction
from tests.support.federation import sync, until
from tests.support.homeservers import Client, Server
from tests.support.keys import Device


async def upload(client: Client, secret: str = "") -> Device:
    device = Device(client.user_id, client.device_id, secret)
    await client.ok("POST", "keys/upload", json={"device_keys": device.keys()})
    return device


async def query(client: Client, user_id: str) -> dict[str, Any]:
    """The keys of a user's devices as a client is shown them."""
    answer = await client.ok("POST", "keys/query", json={"device_keys": {user_id: []}, "timeout": 1000})
    devices: dict[str, Any] = answer["device_keys"].get(user_id, {})
    return devices


async def is_followed(server: Server) -> bool:
    """Returns whether every list that was asked for has been fetched and is fresh."""

    def read(tx: Transaction) -> bool:
        lists = tx.values("SELECT is_fresh FROM remote_device_lists")
        return bool(lists) and all(lists) and not tx.all("SELECT user_nid FROM device_list_resyncs")

    return bool(await server.read(read))


async def follow(client: Client, user_id: str) -> None:
    await query(client, user_id)
    await until(lambda: is_followed(client.server), "the list is followed")


async def told(client: Client, since: str, user_id: str) -> None:
    """Waits until the client is told that the user's keys have changed."""

    async def is_told() -> bool:
        return user_id in (await sync(client, since)).get("device_lists", {}).get("changed", [])

    await until(is_told, f"{client.user_id} is told of {user_id}")


async def now(client: Client) -> str:
    return str((await sync(client))["next_batch"])
