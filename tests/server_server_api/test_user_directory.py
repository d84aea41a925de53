"""Users of other servers in the user directory. Spec: client-server-api/#user-directory"""

from __future__ import annotations

from tests.support.federation import Federation, join, until
from tests.support.homeservers import Client
from tests.support.people import create, public_room, set_state


async def search(client: Client, term: str) -> list[str]:
    """The user IDs that a search finds."""
    answer = await client.ok("POST", "user_directory/search", json={"search_term": term})
    return [result["user_id"] for result in answer["results"]]


async def test_users_of_other_servers_are_called_as_their_member_events_say(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    carol = await a.register("carol")
    room_id = await public_room(alice)
    await bob.ok("PUT", f"profile/{bob.user_id}/displayname", json={"displayname": "Robert"})
    await join(bob, room_id, "a.example")
    assert await search(carol, "robert") == await search(alice, "rob") == [bob.user_id]
    closed = await create(alice, preset="private_chat", invite=[bob.user_id])
    await join(bob, closed, "a.example")
    secret = {"membership": "join", "displayname": "Secret Name"}
    await set_state(bob, closed, "m.room.member", secret, bob.user_id)

    async def is_told() -> bool:
        return await search(alice, "secret") == [bob.user_id]

    await until(is_told)
    assert await search(carol, "secret") == [], "only the closed room knows this name"
    assert await search(carol, "robert") == [bob.user_id]
