"""The in-process client. docs/embedding.md shows it at work; here is what it promises."""

from __future__ import annotations

import math
from functools import partial

import pytest
import trio

from homeserver import MatrixError
from homeserver.client import Client, RoomEvent
from tests.embedding.conftest import Open


async def _take(client: Client, count: int) -> list[RoomEvent]:
    """The first `count` events of a client."""
    taken: list[RoomEvent] = []
    async for event in client.events():
        taken.append(event)
        if len(taken) == count:
            break
    return taken


async def test_no_event_is_missed_if_one_sync_cannot_hold_all(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice, bob = await a.register("alice"), await a.register("bob")
        room_id = await alice.create_room(invite=[bob.user_id])
        await bob.join(room_id)
        listener = await a.log_in(bob.user_id, "LISTENER")
        said = [f"message {number}" for number in range(250)]
        for text in said:
            await alice.send(room_id, text)
        assert [event.body for event in await _take(listener, len(said))] == said


async def test_the_events_of_a_room_begin_with_our_own_join(homeservers: Open) -> None:
    async with homeservers("a.example") as a, homeservers("b.example") as b:
        alice, bob = await a.register("alice"), await b.register("bob")
        room_id = await alice.create_room(preset="public_chat")
        for number in range(30):
            await alice.send(room_id, f"before {number}")
        await bob.join(room_id, via=("a.example",))
        await alice.send(room_id, "after")
        first, second = await _take(bob, 2)
        assert (first.type, first.sender, first.content["membership"]) == ("m.room.member", bob.user_id, "join")
        assert second.body == "after"


async def test_an_invitation_is_yielded_once_whether_old_or_new(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice, bob = await a.register("alice"), await a.register("bob")
        waiting = await alice.create_room(invite=[bob.user_id])
        told: list[str] = []

        async def listen() -> None:
            async for event in bob.events():
                told.append(event.room_id)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await trio.sleep(1)
            coming = await alice.create_room(invite=[bob.user_id])
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        assert told == [waiting, coming]


async def test_a_removed_member_still_gets_earlier_events(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice, bob = await a.register("alice"), await a.register("bob")
        room_id = await alice.create_room(invite=[bob.user_id])
        await bob.join(room_id)
        listener = await a.log_in(bob.user_id, "LISTENER")
        for number in range(30):
            await alice.send(room_id, f"message {number}")
        await alice.call("kick", room_id, body={"user_id": bob.user_id, "reason": "too quiet"})
        await alice.send(room_id, "He cannot hear this.")
        heard = await _take(listener, 31)
        assert [event.body for event in heard[:30]] == [f"message {number}" for number in range(30)]
        assert heard[30].content == {"membership": "leave", "reason": "too quiet"}


async def test_a_room_is_joined_through_any_server_that_answers(homeservers: Open) -> None:
    async with homeservers("a.example") as a, homeservers("b.example") as b:
        alice, bob = await a.register("alice"), await b.register("bob")
        room_id = await alice.create_room(preset="public_chat")
        assert await bob.join(room_id, via=("gone.example", "a.example")) == room_id


async def test_refusals_are_matrix_errors(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        with pytest.raises(MatrixError) as refused:
            await alice.send("!nowhere:a.example", "Anybody?")
        assert (refused.value.status, refused.value.errcode) == (404, "M_NOT_FOUND")
        with pytest.raises(MatrixError) as unknown:
            await alice.call("make_tea")
        assert unknown.value.status == 404
        with pytest.raises(MatrixError) as taken:
            await a.register("alice")
        assert taken.value.errcode == "M_USER_IN_USE"
        with pytest.raises(MatrixError):
            await a.log_in("@nobody:a.example")


async def test_a_cancelled_listener_leaves_nothing_waiting(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        with trio.move_on_after(5) as scope:
            await _take(alice, 1)
        assert scope.cancelled_caught
        room_id = await alice.create_room()
        assert (await _take(alice, 1))[0].room_id == room_id


async def test_an_abandoned_wait_for_an_event_loses_none(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        room_id = await alice.create_room()
        listener = await a.log_in("alice", "LISTENER")
        events = listener.events()
        for number in range(3):
            with trio.move_on_after(5) as scope:
                await anext(events)
            assert scope.cancelled_caught
            await alice.send(room_id, f"message {number}")
            assert (await anext(events)).body == f"message {number}"


async def test_an_exception_of_the_program_is_raised_unwrapped(homeservers: Open) -> None:
    with pytest.raises(ZeroDivisionError):
        async with homeservers("a.example") as a:
            await a.register("alice")
            math.floor(1 / 0)


async def test_many_programs_can_write_at_once(homeservers: Open) -> None:
    async with homeservers("a.example") as a:
        alice = await a.register("alice")
        room_id = await alice.create_room()
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(partial(alice.send, room_id, f"message {number}"))
        texts = {event.body for event in await alice.messages(room_id, limit=50)}
        assert texts == {f"message {number}" for number in range(50)}
