"""Not in the spec: docs/status.md. The status of people on other servers is seen by those who may see it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.federation.identifiers import ServerName
from homeserver.testing import FakeNetwork, one_server, run
from homeserver.users.receipts import DELIVERED
from tests.client_server_api.test_message_status import catch_up, status_for
from tests.client_server_api.test_privacy import PRIVACY, presence_in
from tests.client_server_api.test_status import status_of
from tests.friends.people import ask, end
from tests.friends.test_two_servers import are_friends, is_incoming
from tests.support.federation import Federation, create_room, join, send_text, sync, until, wait_text
from tests.support.homeservers import Client
from tests.support.stranger import Stranger


async def befriend(alice: Client, bob: Client) -> None:
    """Makes friends of two people on two servers."""
    await ask(alice, bob)
    await until(lambda: is_incoming(bob, alice))
    await ask(bob, alice)
    await until(lambda: are_friends(alice, bob))


@pytest.mark.parametrize("audience", ["everyone", "friends"])
async def test_a_person_who_accepts_sees_at_once_that_the_friend_is_online(
    federation: Federation, audience: str
) -> None:
    federation.network.latency_s = 0.2  # the presence overtakes the answer to the join
    _, b, alice, bob = await federation.start_two()
    await alice.ok("PUT", PRIVACY, json={"status": audience})
    await sync(alice)
    await sync(bob)
    await befriend(alice, bob)
    await trio.sleep(10)
    status = await status_of(b, alice, bob)
    assert status is not None and status.online


async def test_a_person_who_accepts_sees_when_an_absent_friend_was_there(federation: Federation) -> None:
    _, b, alice, bob = await federation.start_two()
    await sync(alice)
    await ask(alice, bob)
    await until(lambda: is_incoming(bob, alice))
    await trio.sleep(3 * 3600)
    await ask(bob, alice)
    await until(lambda: are_friends(alice, bob))
    await trio.sleep(10)
    status = await status_of(b, alice, bob)
    assert status is not None and not status.online and status.text == "Active 3 hours ago"


async def test_a_status_for_friends_is_hidden_from_strangers_on_the_server_of_a_friend(federation: Federation) -> None:
    _, b, alice, bob = await federation.start_two()
    carol = await b.register("carol")
    room_id = await create_room(alice, preset="public_chat")
    for person in (bob, carol):
        await join(person, room_id, "a.example")
    await befriend(alice, bob)
    await sync(alice)
    await until(lambda: is_online(b, alice, carol))
    since = {person.user_id: (await sync(person))["next_batch"] for person in (bob, carol)}

    await alice.ok("PUT", PRIVACY, json={"status": "friends"})
    await trio.sleep(10)
    assert presence_in(await sync(carol, since[carol.user_id]), alice) == ["offline"]
    assert presence_in(await sync(bob, since[bob.user_id]), alice) == ["online"]
    assert await status_of(b, alice, carol) is None
    assert await is_online(b, alice, bob)
    path = f"presence/{quote(alice.user_id)}/status"
    assert (await carol.ok("GET", path)) == {"presence": "offline"}
    assert (await bob.ok("GET", path))["presence"] == "online"

    await alice.ok("PUT", path, json={"presence": "online", "status_msg": "among friends"})
    await trio.sleep(10)
    assert "among friends" in str((await sync(bob))["presence"])
    assert "among friends" not in str((await sync(carol)).get("presence"))

    since = {person.user_id: (await sync(person))["next_batch"] for person in (bob, carol)}
    await end(bob, alice)
    await trio.sleep(10)
    assert presence_in(await sync(bob, since[bob.user_id]), alice) == ["offline"]
    assert await status_of(b, alice, bob) is None

    await alice.ok("PUT", PRIVACY, json={"status": "everyone"})
    await trio.sleep(10)
    assert presence_in(await sync(carol, since[carol.user_id]), alice) == ["online"]
    assert await is_online(b, alice, carol)


async def is_online(server: Any, person: Client, asker: Client) -> bool:
    status = await status_of(server, person, asker)
    return status is not None and status.online


async def test_a_person_who_hides_has_no_status_on_other_servers(federation: Federation) -> None:
    _, b, alice, bob = await federation.start_two()
    await befriend(alice, bob)
    await sync(alice)
    await until(lambda: is_online(b, alice, bob))
    await alice.ok("PUT", PRIVACY, json={"status": "nobody"})
    await trio.sleep(10)
    assert await status_of(b, alice, bob) is None


async def test_servers_that_know_nothing_of_audiences_get_nothing_that_is_for_friends(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, preset="public_chat")
    await carol.join("a.example", room_id, "carol")
    got: list[Any] = []

    async def take(body: Any) -> Any:
        got.extend(edu["content"] for edu in body.get("edus", ()) if edu["edu_type"] == "m.presence")
        return {"pdus": {}}

    carol.take = take
    await sync(alice)
    await trio.sleep(10)
    await alice.ok("PUT", PRIVACY, json={"status": "friends"})
    await alice.ok("PUT", f"presence/{quote(alice.user_id)}/status", json={"presence": "online", "status_msg": "x"})
    await trio.sleep(10)
    states = [each["presence"] for content in got for each in content["push"]]
    assert states == ["online", "offline"] and "status_msg" not in str(got)


async def test_deliveries_for_friends_are_hidden_from_strangers_on_the_server_of_a_friend(
    federation: Federation,
) -> None:
    _, b, alice, bob = await federation.start_two()
    carol = await b.register("carol")
    room_id = await create_room(alice, preset="public_chat")
    for person in (bob, carol):
        await join(person, room_id, "a.example")
    await befriend(alice, bob)
    await alice.ok("PUT", PRIVACY, json={"delivery": "friends"})
    event_id = await send_text(carol, room_id, "hello")
    await wait_text(alice, room_id, "hello")
    since = {person.user_id: (await sync(person))["next_batch"] for person in (bob, carol)}
    await catch_up(alice)
    await trio.sleep(10)
    assert await status_for(bob, room_id, event_id, alice) == "delivered"
    assert await status_for(carol, room_id, event_id, alice) == "sent"
    assert DELIVERED in str(await sync(bob, since[bob.user_id]))
    assert DELIVERED not in str(await sync(carol, since[carol.user_id]))


# All settings, for all people who ask

NAMES = ("@alice:a.example", "@bob:a.example", "@bert:b.example", "@carol:b.example")
FRIENDS = {"@bob:a.example", "@bert:b.example"}
STATUS = st.sampled_from(["everyone", "friends", "nobody"])


async def _live(settings_of_status: list[str], settings_of_delivery: list[str]) -> None:
    network = FakeNetwork(latency_s=0.05)
    async with one_server("a.example", network=network) as a, one_server("b.example", network=network) as b:
        servers = {"a.example": a, "b.example": b}
        people = {name: await servers[name.partition(":")[2]].register(name.partition(":")[0][1:]) for name in NAMES}
        alice = people[NAMES[0]]
        room_id = (await alice.call("create_room", body={"preset": "public_chat"}))["room_id"]
        for name in NAMES[1:]:
            await people[name].call("join_room", room_id, query={"via": "a.example"}, body={})
        for name in FRIENDS:
            await alice.call("set_friend", name, body={})
            await trio.sleep(30)
            await people[name].call("set_friend", NAMES[0], body={})
        await alice.call("sync_events")
        await trio.sleep(60)
        for status, delivery in zip(settings_of_status, settings_of_delivery, strict=True):
            await alice.call("put_privacy", body={"status": status, "delivery": delivery})
            await alice.call("heartbeat")
            await alice.call("set_presence", NAMES[0], body={"presence": "online"})
            event_id = await people["@carol:b.example"].send(room_id, "hello")
            await trio.sleep(30)
            token = (await alice.call("sync_events"))["next_batch"]
            await alice.call("sync_events", query={"since": token})
            await trio.sleep(30)
            for name in NAMES[1:]:
                asker = people[name]
                sees = {"everyone": True, "friends": name in FRIENDS, "nobody": False}
                presence = await asker.call("get_presence", NAMES[0])
                assert presence["presence"] == ("online" if sees[status] else "offline"), (name, status)
                told = [
                    each["content"]["presence"]
                    for each in (await asker.call("sync_events")).get("presence", {}).get("events", [])
                    if each["sender"] == NAMES[0]
                ]
                assert told == (["online"] if sees[status] else []), (name, status)
                answer = await asker.call("get_message_status", room_id, event_id)
                assert answer["recipients"][NAMES[0]]["status"] == ("delivered" if sees[delivery] else "sent")
                if name in FRIENDS:
                    (friend,) = (await asker.call("get_friends"))["friends"]
                    assert (friend["status"] is not None) == sees[status], (name, status)


@given(st.lists(st.tuples(STATUS, STATUS), min_size=3, max_size=3))
@settings(max_examples=3)
def test_everybody_sees_of_a_person_what_that_person_lets_them_see(chosen: list[tuple[str, str]]) -> None:
    run(lambda: _live([status for status, _ in chosen], [delivery for _, delivery in chosen]))
