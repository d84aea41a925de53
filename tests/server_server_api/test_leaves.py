"""Rejected invites and retracted knocks while the other server is away.

Spec: server-server-api/#leaving-rooms-rejecting-invites
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio

from homeserver.database import Transaction
from tests.support.clock import let_days_pass
from tests.support.federation import (
    Federation,
    checked,
    create_room,
    invite,
    join,
    membership_in,
    send_state,
    send_text,
    sync,
    until,
    wait_text,
)
from tests.support.homeservers import Client
from tests.support.storage import list_parked


async def _leave(client: Client, room_id: str) -> None:
    await client.ok("POST", f"rooms/{quote(room_id)}/leave", json={"reason": "no, thank you"})


async def _membership(client: Client, room_id: str, user_id: str) -> Any:
    return await client.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(user_id)}")


def _has(client: Client, room_id: str, user_id: str, membership: str) -> Any:
    async def is_so() -> bool:
        return (await _membership(client, room_id, user_id))["membership"] == membership

    return is_so


async def test_rejection_reaches_a_server_that_was_away(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.leave("a.example")
    start = trio.current_time()
    await _leave(bob, room_id)
    assert trio.current_time() - start < 1
    assert membership_in(await sync(bob), room_id) is None
    await trio.sleep(5)
    federation.network.join("a.example", checked(a.app))
    await until(_has(alice, room_id, bob.user_id, "leave"), seconds=60)
    assert (await _membership(alice, room_id, bob.user_id))["reason"] == "no, thank you"


@pytest.mark.parametrize("away_s", [600, 24 * 3600])
async def test_rejection_survives_a_restart_and_a_long_absence(federation: Federation, away_s: int) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.leave("a.example")
    await _leave(bob, room_id)
    await federation.kill("b.example")
    b = await federation.start("b.example")
    await trio.sleep(away_s)
    assert membership_in(await sync(b.with_token(bob.token)), room_id) is None
    federation.network.join("a.example", checked(a.app))
    await until(_has(alice, room_id, bob.user_id, "leave"), seconds=1200)


async def test_rejecting_does_not_wait_for_an_unresponsive_server(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    federation.network.join("a.example", silent)
    start = trio.current_time()
    await _leave(bob, room_id)
    assert trio.current_time() - start < 15
    assert membership_in(await sync(bob), room_id) is None
    federation.network.join("a.example", checked(a.app))
    await until(_has(alice, room_id, bob.user_id, "leave"), seconds=600)


async def test_rejecting_an_invitation_does_not_affect_a_newer_one(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    for _ in range(3):
        await invite(alice, room_id, bob.user_id)
        assert membership_in(await sync(bob), room_id) == "invite"
        federation.network.leave("a.example")
        await _leave(bob, room_id)
        assert membership_in(await sync(bob), room_id) is None
        federation.network.join("a.example", checked(a.app))
    await invite(alice, room_id, bob.user_id)
    await trio.sleep(7200)
    assert membership_in(await sync(bob), room_id) == "invite"
    await join(bob, room_id)
    await trio.sleep(7200)
    await send_text(bob, room_id, "still here")
    await wait_text(alice, room_id, "still here")


async def test_a_late_rejection_does_not_remove_a_user_who_has_joined(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await invite(alice, room_id, bob.user_id)
    federation.network.leave("a.example")
    await _leave(bob, room_id)
    federation.network.join("a.example", checked(a.app))
    await join(bob, room_id, "a.example")
    await trio.sleep(7200)
    await send_text(bob, room_id, "still here")
    await wait_text(alice, room_id, "still here")


async def test_a_withdrawn_knock_reaches_a_server_that_was_away(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="private_chat")
    await send_state(alice, room_id, "m.room.join_rules", {"join_rule": "knock"})
    await bob.ok("POST", f"knock/{quote(room_id)}?via=a.example", json={})
    federation.network.leave("a.example")
    await _leave(bob, room_id)
    federation.network.join("a.example", checked(a.app))
    await until(_has(alice, room_id, bob.user_id, "leave"), seconds=60)


async def test_a_rejection_is_dropped_once_it_no_longer_matters(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.leave("a.example")
    await _leave(bob, room_id)
    await alice.ok("POST", f"rooms/{quote(room_id)}/kick", json={"user_id": bob.user_id})
    federation.network.join("a.example", checked(a.app))
    await trio.sleep(7200)
    asked = len(federation.network.exchanges)
    await let_days_pass(1)
    later = [each for each in federation.network.exchanges[asked:] if "make_leave" in each.path]
    assert later == []


async def test_an_undeliverable_rejection_is_parked_and_blocks_nothing(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    bad_room, room_id = await create_room(alice), await create_room(alice)
    await invite(alice, bad_room, bob.user_id)
    await invite(alice, room_id, bob.user_id)
    federation.network.leave("a.example")
    await _leave(bob, bad_room)
    await b.write(_damage_leaves)
    await _leave(bob, room_id)
    federation.network.join("a.example", checked(a.app))
    await until(_has(alice, room_id, bob.user_id, "leave"), seconds=600)
    # Virtual time goes on only while the server has nothing to do.
    await trio.sleep(3600)
    assert [lane for lane, _, _, _ in await b.read(list_parked)] == ["leaves"]
    assert (await _membership(alice, bad_room, bob.user_id))["membership"] == "invite"


def _damage_leaves(tx: Transaction) -> None:
    tx.run("UPDATE pending_leaves SET servers = ?", b"[[]]")


async def test_one_silent_server_does_not_delay_others(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    c = await federation.start("c.example")
    carol = await c.register("carol")
    rooms = [await create_room(alice) for _ in range(30)]
    for room_id in rooms:
        await invite(alice, room_id, bob.user_id)
    other = await create_room(carol)
    await invite(carol, other, bob.user_id)
    federation.network.leave("a.example")
    federation.network.leave("c.example")
    for room_id in (*rooms, other):
        await _leave(bob, room_id)

    async def silent(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    federation.network.join("a.example", silent)
    federation.network.join("c.example", checked(c.app))
    await until(_has(carol, other, bob.user_id, "leave"), seconds=300)
