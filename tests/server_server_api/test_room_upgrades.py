"""Upgrading a room that other servers are in. Spec: client-server-api/#room-upgrades"""

from __future__ import annotations

from urllib.parse import quote

from tests.support.federation import Federation, create_room, join, state_of, until


async def test_members_on_other_servers_follow_with_their_settings(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    old = await create_room(alice, preset="public_chat")
    await join(bob, old, "a.example")
    path = f"user/{quote(bob.user_id)}/rooms/{quote(old, safe='')}/tags/m.favourite"
    await bob.ok("PUT", path, json={})
    await bob.ok("PUT", f"pushrules/global/room/{quote(old, safe='')}", json={"actions": ["notify"]})
    upgraded = await alice.ok("POST", f"rooms/{quote(old)}/upgrade", json={"new_version": "12"})
    new = upgraded["replacement_room"]

    async def is_told() -> bool:
        return ("m.room.tombstone", "") in await state_of(bob, old)

    await until(is_told)
    content = await bob.ok("GET", f"rooms/{quote(old)}/state/m.room.tombstone")
    assert content["replacement_room"] == new
    await join(bob, new, "a.example")
    tags = await bob.ok("GET", f"user/{quote(bob.user_id)}/rooms/{quote(new, safe='')}/tags")
    assert tags == {"tags": {"m.favourite": {}}}
    assert (await bob.ok("GET", f"pushrules/global/room/{quote(new, safe='')}"))["actions"] == ["notify"]
