"""What a sync may leave out: members sent before, rooms without news, names that the filter excludes.

Spec: client-server-api/#lazy-loading-room-members, #filtering, #syncing
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import trio

from tests.support.homeservers import Client, Server
from tests.support.people import (
    ALWAYS_TOLD,
    act,
    join,
    leave,
    path_of,
    public_room,
    room_in,
    say,
    send,
    set_state,
    sync,
    texts,
)

LAZY = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 3}}}
REDUNDANT = {"room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}}
# Neither messages nor members: only a state event of the client's own making.
OWN_STATE_ONLY = {
    "room": {
        "timeline": {"types": []},
        "state": {"types": ["org.example.state"]},
        "ephemeral": {"types": []},
        "account_data": {"types": []},
    },
    "presence": {"types": []},
    "account_data": {"types": []},
}


def told(answer: dict[str, Any], room_id: str) -> list[str]:
    """Returns the users whose member events are in the state of a sync."""
    events = room_in(answer, room_id).get("state", {}).get("events", [])
    return sorted(event["state_key"] for event in events if event["type"] == "m.room.member")


async def rename(client: Client, name: str) -> None:
    await client.ok("PUT", f"profile/{client.user_id}/displayname", json={"displayname": name})


async def a_room_of_four(server: Server, **body: Any) -> tuple[str, list[Client]]:
    """A room and its members. Their joins lie too far back to be in a short timeline."""
    people = [await server.register(name) for name in ("alice", "bob", "carol", "dave")]
    room_id = await public_room(*people, **body)
    await say(people[0], room_id, *(f"m{number}" for number in range(5)))
    return room_id, people


# Lazily loaded members


async def test_lazy_loading_sends_each_sender_once(server: Server) -> None:
    room_id, (alice, bob, carol, dave) = await a_room_of_four(server, name="Room")
    since = (await sync(alice, filter=LAZY))["next_batch"]
    seen = []
    for _ in range(3):
        await send(bob, room_id)
        answer = await sync(alice, since, filter=LAZY)
        since = answer["next_batch"]
        seen.append(told(answer, room_id))
    assert seen == [[bob.user_id], [], []]
    await send(carol, room_id)
    await send(bob, room_id)
    assert told(await sync(alice, since, filter=LAZY), room_id) == [carol.user_id]
    assert told(await sync(alice, since, filter=REDUNDANT), room_id) == [bob.user_id, carol.user_id]

    phone = await server.log_in("alice")
    since = (await sync(phone, filter=LAZY))["next_batch"]
    await send(dave, room_id)
    assert told(await sync(phone, since, filter=LAZY), room_id) == [dave.user_id]
    assert {bob.user_id, dave.user_id} <= set(told(await sync(alice, filter=LAZY), room_id))


async def test_a_lost_answer_is_repeated(server: Server) -> None:
    room_id, (alice, bob, *_) = await a_room_of_four(server, name="Room")
    since = (await sync(alice, filter=LAZY))["next_batch"]
    await send(bob, room_id)
    for _ in range(2):
        answer = await sync(alice, since, filter=LAZY)
        assert told(answer, room_id) == [bob.user_id]
    await send(bob, room_id)
    assert told(await sync(alice, answer["next_batch"], filter=LAZY), room_id) == []


async def test_changed_profiles_and_returning_members_are_sent_again(server: Server) -> None:
    room_id, (alice, bob, *_) = await a_room_of_four(server, name="Room")
    since = (await sync(alice, filter=LAZY))["next_batch"]
    await send(bob, room_id)
    since = (await sync(alice, since, filter=LAZY))["next_batch"]
    await rename(bob, "Bobby")
    await say(bob, room_id, *"abcdef")  # so that the new member event is not in the timeline
    answer = await sync(alice, since, filter=LAZY)
    assert told(answer, room_id) == [bob.user_id]
    since = answer["next_batch"]
    await leave(alice, room_id)
    since = (await sync(alice, since, filter=LAZY))["next_batch"]
    await join(alice, room_id)
    await say(bob, room_id, *"ghijkl")
    assert bob.user_id in told(await sync(alice, since, filter=LAZY), room_id)


# Heroes


async def test_only_a_nameless_room_has_heroes(server: Server) -> None:
    room_id, (alice, *others) = await a_room_of_four(server)
    everyone = sorted(each.user_id for each in others)
    answer = await sync(alice, filter=LAZY)
    assert sorted(room_in(answer, room_id)["summary"]["m.heroes"]) == everyone
    assert set(everyone) <= set(told(answer, room_id))
    since = answer["next_batch"]
    await set_state(alice, room_id, "m.room.name", {"name": "Room"})
    answer = await sync(alice, since, filter=LAZY)
    assert "m.heroes" not in room_in(answer, room_id)["summary"]
    room = room_in(await sync(alice, filter=LAZY), room_id)
    assert room["summary"] == {"m.joined_member_count": 4, "m.invited_member_count": 0}
    assert told({"rooms": {"join": {room_id: room}}}, room_id) == [alice.user_id]
    await set_state(alice, room_id, "m.room.name", {"name": ""})
    answer = await sync(alice, answer["next_batch"], filter=LAZY)
    assert sorted(room_in(answer, room_id)["summary"]["m.heroes"]) == everyone


@pytest.mark.parametrize("name", [7, True, ["Room"], {"en": "Room"}])
async def test_a_room_name_that_is_not_a_string_counts_as_missing(server: Server, name: object) -> None:
    room_id, (alice, *others) = await a_room_of_four(server)
    await set_state(alice, room_id, "m.room.name", {"name": name})
    room = room_in(await sync(alice, filter=LAZY), room_id)
    assert sorted(room["summary"]["m.heroes"]) == sorted(each.user_id for each in others)


async def test_a_changed_display_name_does_not_change_the_summary(server: Server) -> None:
    room_id, (alice, bob, *_) = await a_room_of_four(server)
    since = (await sync(alice))["next_batch"]
    await rename(bob, "Bobby")
    answer = await sync(alice, since)
    assert "summary" not in room_in(answer, room_id)
    await leave(bob, room_id)
    assert room_in(await sync(alice, answer["next_batch"]), room_id)["summary"]["m.joined_member_count"] == 3


# What the filter hides


@pytest.mark.parametrize(
    "what", ["messages", "a name in the room", "a name", "a topic", "a join", "typing", "a receipt"]
)
async def test_filtered_events_neither_add_a_room_nor_end_the_wait(server: Server, what: str) -> None:
    room_id, (alice, bob, *_) = await a_room_of_four(server)
    erin = await server.register("erin")
    await server.make_room(alice, erin)  # else the join would be news of device lists
    (message,) = await say(alice, room_id, "here")
    since = (await sync(alice, filter=OWN_STATE_ONLY))["next_batch"]

    async def change() -> None:
        if what == "messages":
            await say(bob, room_id, *(f"m{number}" for number in range(150)))
        elif what == "a name in the room":
            await set_state(bob, room_id, "m.room.member", {"membership": "join", "displayname": "B"}, bob.user_id)
        elif what == "a name":
            await rename(bob, "Bobby")
        elif what == "a topic":
            await set_state(alice, room_id, "m.room.topic", {"topic": "T"})
        elif what == "a join":
            await join(erin, room_id)
        elif what == "typing":
            await bob.ok("PUT", path_of(room_id, "typing", bob.user_id), json={"typing": True})
        else:
            await bob.ok("POST", path_of(room_id, "receipt", "m.read", message), json={})

    await assert_quiet(alice, since, change, filter=OWN_STATE_ONLY)
    await set_state(alice, room_id, "org.example.state", {"n": 1})
    room = room_in(await sync(alice, since, filter=OWN_STATE_ONLY), room_id)
    assert [event["type"] for event in room["state"]["events"]] == ["org.example.state"]


async def assert_quiet(client: Client, since: str, change: Callable[[], Awaitable[None]], **query: Any) -> None:
    """Checks that a change is in no answer, neither to a waiting sync nor to a later one."""
    answers = []

    async def wait() -> None:
        answers.append(await sync(client, since, timeout=20_000, set_presence="offline", **query))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(2)
        await change()
    assert trio.current_time() - began >= 20
    assert answers[0].keys() == {"next_batch"} | ALWAYS_TOLD
    assert (await sync(client, since, set_presence="offline", **query)).keys() == {"next_batch"} | ALWAYS_TOLD


async def test_many_filtered_messages_still_leave_the_timeline_limited(server: Server) -> None:
    """Whoever wants one kind of event among hundreds of others is not told that nothing is missing where it is."""
    room_id, (alice, bob, *_) = await a_room_of_four(server)
    filter_ = {"room": {"timeline": {"types": ["org.example.rare"], "limit": 1}, "state": {"types": []}}}
    since = (await sync(alice, filter=filter_))["next_batch"]
    await send(bob, room_id, {"n": 1}, kind="org.example.rare")
    await say(bob, room_id, *(f"m{number}" for number in range(60)))
    assert room_in(await sync(alice, since, filter=filter_), room_id)["timeline"]["limited"]


async def test_events_that_pass_the_filter_are_sent(server: Server) -> None:
    room_id, (alice, bob, carol, _) = await a_room_of_four(server)
    since = (await sync(alice))["next_batch"]
    await act(alice, room_id, "kick", carol)
    await send(bob, room_id, "so?")
    room = room_in(await sync(alice, since), room_id)
    assert texts(room["timeline"]["events"]) == ["so?"]
    assert room["summary"]["m.joined_member_count"] == 3


# What memory knows


@contextmanager
def counted_reads(server: Server) -> Iterator[list[str]]:
    """Yields the names of the functions that are run as reads of the database."""
    names: list[str] = []
    database = server.hs.database
    read = database.read

    async def counting(fn: Callable[..., Any], *args: Any) -> Any:
        names.append(fn.__name__)
        return await read(fn, *args)

    database.read = counting  # type: ignore[method-assign, assignment]
    try:
        yield names
    finally:
        database.read = read  # type: ignore[method-assign]


async def test_a_client_that_is_up_to_date_costs_no_read(server: Server) -> None:
    """Also after a silence that is longer than other nodes trust a token. With other nodes, only the database knows."""
    alice = await server.register("alice")
    since = (await sync(alice, set_presence="offline"))["next_batch"]
    since = (await sync(alice, since, set_presence="offline"))["next_batch"]
    await trio.sleep(30)
    with counted_reads(server) as reads:
        assert (await alice.ok("GET", "account/whoami"))["user_id"] == alice.user_id
        assert (await sync(alice, since, set_presence="offline"))["next_batch"] == since
    assert bool(reads) == server.hs.database.is_shared


async def test_a_sync_that_waited_looks_at_its_token_only_if_one_of_the_user_has_ended(server: Server) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    other = await server.log_in("alice")
    room_id = await public_room(alice, bob)
    with counted_reads(server) as reads:
        for end_other in (False, True):
            since = (await sync(alice, set_presence="offline"))["next_batch"]
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(sync, alice, since, timeout=30_000, set_presence="offline"))
                await trio.sleep(5)
                reads.clear()
                if end_other:
                    await other.ok("POST", "logout")
                await say(bob, room_id, "hello")
            assert ("_compute_again" in reads) == (end_other or server.hs.database.is_shared)
