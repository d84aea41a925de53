"""Two friends who have lost sight of each other, on two servers. Read it from top to bottom.

Alice lives at a.example, Bob at b.example, and so does Mallory. None of them uses anything but a list of friends.
"""

from __future__ import annotations

import trio

from tests.friends.people import ask, block, end, friends_of, say, states_of, wait_joined, wait_states
from tests.support.federation import Federation, until
from tests.support.homeservers import Client


async def _text_of_status(client: Client) -> str | None:
    (friend,) = await friends_of(client)
    text: str | None = None if friend["status"] is None else friend["status"]["text"]
    return text


async def _sees(client: Client, text: str) -> None:
    async def is_so() -> bool:
        return await _text_of_status(client) == text

    await until(is_so, text)


async def _hears(client: Client, text: str) -> None:
    async def has_heard() -> bool:
        (friend,) = await friends_of(client)
        return friend["last_message"] is not None and friend["last_message"]["text"] == text

    await until(has_heard, text)


async def test_two_friends_find_each_other(federation: Federation) -> None:
    federation.network.latency_s = 0.03
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob, mallory = await a.register("alice"), await b.register("bob"), await b.register("mallory")
    await alice.ok("PUT", f"profile/{alice.user_id}/displayname", json={"displayname": "Alice from school"})

    # Both think of each other on the same evening, while a storm keeps their servers apart. Each asks the other.
    federation.network.cut("a.example", "b.example")
    first = await ask(alice, bob, message="Is it you, Bob?", encrypted=False)
    second = await ask(bob, alice, message="Alice, from school?", encrypted=False)
    assert (first["state"], second["state"]) == ("outgoing", "outgoing")
    await federation.kill("b.example")
    await trio.sleep(4 * 3600)

    # In the morning the storm is over, and Bob's server has been started again. They are friends, in one conversation.
    federation.network.heal()
    b = await federation.start("b.example")
    bob, mallory = await b.log_in("bob"), await b.log_in("mallory")
    await wait_states(alice, {bob.user_id: "friend"})
    await wait_states(bob, {alice.user_id: "friend"})
    room_id = min(first["room_id"], second["room_id"])
    await wait_joined(alice, room_id)
    await wait_joined(bob, room_id)

    # Bob opens his client. Each sees who the other is, that they are there, what they said last, and what is unread.
    await bob.ok("GET", "sync")
    (friend,) = await friends_of(bob)
    assert friend["display_name"] == "Alice from school"
    await _sees(alice, "Online")
    await say(alice, room_id, "It was the maths teacher who kept us friends.")
    await _hears(bob, "It was the maths teacher who kept us friends.")
    (friend,) = await friends_of(bob)
    assert (friend["room_id"], friend["unread"]) == (room_id, 1)
    await say(bob, room_id, "And the bus that never came.")
    await _hears(alice, "And the bus that never came.")

    # Two hours later Alice wonders whether he is still there.
    await trio.sleep(2 * 3600 + 60)
    await _sees(alice, "Active 2 hours ago")

    # Mallory asks her, and asks again. She does not want to hear from him. For him, she has simply not answered yet.
    await ask(mallory, alice, message="Buy my watches!")
    await wait_states(alice, {bob.user_id: "friend", mallory.user_id: "incoming"})
    await block(alice, mallory)
    assert await states_of(alice) == {bob.user_id: "friend"}
    await end(mallory, alice)
    assert (await ask(mallory, alice, message="Cheap watches!"))["state"] == "outgoing"
    await trio.sleep(3600)
    assert await states_of(mallory) == {alice.user_id: "outgoing"}
    assert await states_of(alice) == {bob.user_id: "friend"}

    # Years pass, and they part. What they said stays with both.
    await end(bob, alice)
    await wait_states(bob, {})
    await wait_states(alice, {})
    for client in (alice, bob):
        messages = (await client.ok("GET", f"rooms/{room_id}/messages?dir=b"))["chunk"]
        assert "And the bus that never came." in [event["content"].get("body") for event in messages]
