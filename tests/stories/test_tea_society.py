"""The tea society: three villages, one room, a storm in between. Read it from top to bottom.

Alice lives at a.example and has founded the society; Bob lives at b.example, Carol and Chris at c.example.
"""

from __future__ import annotations

from urllib.parse import quote

import trio

from tests.support.federation import (
    Federation,
    create_room,
    invite,
    join,
    membership_in,
    send_state,
    send_text,
    state_of,
    sync,
    texts,
    until,
    wait_text,
)
from tests.support.homeservers import Client


async def _name_of(client: Client, room_id: str) -> str:
    content = await client.ok("GET", f"rooms/{quote(room_id)}/state/m.room.name/")
    return str(content["name"])


async def test_the_tea_society(federation: Federation) -> None:
    federation.network.latency_s = 0.03
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, bob = await a.register("alice"), await b.register("bob")
    carol, chris = await c.register("carol"), await c.register("chris")

    # Alice founds the society, and gives it a name that others can find it by.
    room_id = await create_room(
        alice, preset="public_chat", name="Tea society", room_alias_name="tea",
        power_level_content_override={"users": {bob.user_id: 50}},
    )  # fmt: skip
    await send_text(alice, room_id, "Welcome to the tea society")

    # Bob has heard of it, and joins by its name. He reads what was said before.
    assert await join(bob, "#tea:a.example") == room_id
    assert await texts(bob, room_id) == ["Welcome to the tea society"]
    await send_text(bob, room_id, "Good evening")
    await wait_text(alice, room_id, "Good evening")

    # He invites Carol, who sees what she is invited to before she comes.
    await invite(bob, room_id, carol.user_id)
    invitation = (await sync(carol))["rooms"]["invite"][room_id]["invite_state"]["events"]
    assert {"type": "m.room.name", "content": {"name": "Tea society"}}.items() <= next(
        event for event in invitation if event["type"] == "m.room.name"
    ).items()
    await join(carol, room_id)
    await send_text(carol, room_id, "What a lovely place")
    await wait_text(alice, room_id, "What a lovely place")
    await wait_text(bob, room_id, "What a lovely place")

    # A storm: b.example is cut off from everyone. Both sides go on, and both find a better name.
    federation.network.cut("a.example", "b.example")
    federation.network.cut("b.example", "c.example")
    await send_text(bob, room_id, "Hello? Is anybody there?")
    await send_state(bob, room_id, "m.room.name", {"name": "Bob's lonely tea"})
    await send_text(alice, room_id, "Where is Bob?")
    await join(chris, "#tea:a.example")
    await send_text(chris, room_id, "I am new here")
    await wait_text(alice, room_id, "I am new here")
    await send_state(alice, room_id, "m.room.name", {"name": "Tea society (without Bob)"})
    await trio.sleep(6 * 3600)
    assert await _name_of(bob, room_id) == "Bob's lonely tea"
    assert await _name_of(carol, room_id) == "Tea society (without Bob)"

    # The storm is over. Nothing that anyone said is lost, and all know one name.
    federation.network.heal()
    everyone = (alice, bob, carol, chris)
    for reader in everyone:
        for text in ("Hello? Is anybody there?", "Where is Bob?", "I am new here"):
            await wait_text(reader, room_id, text)

    async def agree() -> bool:
        states = [await state_of(person, room_id) for person in everyone]
        return all(state == states[0] for state in states)

    await until(agree)
    assert len({await _name_of(person, room_id) for person in everyone}) == 1

    # c.example burns down, and is built up again from what lies on its disk. Meanwhile the others talk.
    await federation.kill("c.example")
    await send_text(alice, room_id, "Carol, Chris?")
    await send_text(bob, room_id, "They will come back")
    await trio.sleep(3600)
    c = await federation.start("c.example")
    carol, chris = Client(c, carol.token, carol.user_id), Client(c, chris.token, chris.user_id)
    await wait_text(carol, room_id, "They will come back")
    await send_text(chris, room_id, "Here we are")
    await wait_text(alice, room_id, "Here we are")

    # Chris spills tea on purpose and is shown the door by Bob, who may do that. He is not let in again.
    since = (await sync(chris))["next_batch"]
    await bob.ok("POST", f"rooms/{quote(room_id)}/ban", json={"user_id": chris.user_id, "reason": "spilled tea"})

    async def shown_the_door() -> bool:
        return membership_in(await sync(chris, since), room_id) == "leave"

    await until(shown_the_door)
    path = f"join/{quote(room_id)}?via=a.example"
    assert (await chris.refused("POST", path, json={}))[0] == 403
    assert (await chris.refused("PUT", f"rooms/{quote(room_id)}/send/m.room.message/x", json={}))[0] == 403

    # The society dissolves: all leave, Alice last. The room stays as it was for those who remember it.
    for person in (carol, bob, alice):
        await person.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
        await trio.sleep(1)
    assert (await texts(bob, room_id))[-1] == "Here we are"


async def test_two_strangers_find_each_other(federation: Federation) -> None:
    """A direct chat between people who share no room yet, and whose servers have never met."""
    a, b, alice, bob = await federation.start_two()
    await alice.ok("PUT", f"profile/{quote(alice.user_id)}/displayname", json={"displayname": "Alice"})
    profile = await bob.ok("GET", f"profile/{quote(alice.user_id)}")
    assert profile["displayname"] == "Alice"
    room_id = await create_room(
        bob, preset="trusted_private_chat", is_direct=True, invite=[alice.user_id], room_version="11"
    )
    invited = (await sync(alice))["rooms"]["invite"][room_id]["invite_state"]["events"]
    own = next(event for event in invited if event.get("state_key") == alice.user_id)
    assert own["content"]["is_direct"] is True
    await join(alice, room_id)
    await send_text(alice, room_id, "How do you know me?")
    await wait_text(bob, room_id, "How do you know me?")
    members = await bob.ok("GET", f"rooms/{quote(room_id)}/joined_members")
    assert members["joined"][alice.user_id]["display_name"] == "Alice"

    # Alice changes her mind about her name; Bob sees it in the room.
    await alice.ok("PUT", f"profile/{quote(alice.user_id)}/displayname", json={"displayname": "Al"})

    async def renamed() -> bool:
        answer = await bob.ok("GET", f"rooms/{quote(room_id)}/joined_members")
        return bool(answer["joined"][alice.user_id]["display_name"] == "Al")

    await until(renamed)

    # She takes something back that she has said; it is gone for Bob too.
    regretted = await send_text(alice, room_id, "forget this")
    await wait_text(bob, room_id, "forget this")
    await alice.ok("PUT", f"rooms/{quote(room_id)}/redact/{quote(regretted)}/1", json={})

    async def forgotten() -> bool:
        return "forget this" not in await texts(bob, room_id)

    await until(forgotten)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})

    async def alone() -> bool:
        answer = await alice.ok("GET", f"rooms/{quote(room_id)}/joined_members")
        return list(answer["joined"]) == [alice.user_id]

    await until(alone)
