"""Knocking, and rooms that the members of others may join.

Spec: server-server-api/#knocking-rooms, #restricted-rooms
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
import trio
import trio.testing

from homeserver.federation.identifiers import ServerName
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
    until,
    wait_text,
)
from tests.support.homeservers import Client
from tests.support.stranger import Stranger


def rules(join_rule: str, *allowed: str) -> dict[str, Any]:
    """An initial m.room.join_rules."""
    content: dict[str, Any] = {"join_rule": join_rule}
    if allowed:
        content["allow"] = [{"type": "m.room_membership", "room_id": room_id} for room_id in allowed]
    return {"type": "m.room.join_rules", "state_key": "", "content": content}


async def _membership(client: Client, room_id: str, user_id: str) -> str:
    content = await client.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(user_id)}")
    return str(content["membership"])


async def _own_leave(client: Client, since: str, room_id: str) -> tuple[str, str]:
    """Sender and membership of the one event by which a sync tells that the user is out of the room."""
    (event,) = (await sync(client, since))["rooms"]["leave"][room_id]["timeline"]["events"]
    assert (event["type"], event["state_key"]) == ("m.room.member", client.user_id)
    return event["sender"], event["content"]["membership"]


async def test_a_knock_is_visible_and_can_be_accepted(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, name="Tea", initial_state=[rules("knock")])
    await bob.ok("POST", f"knock/{quote(room_id)}?via=a.example", json={"reason": "tea?"})
    answer = await sync(bob)
    assert membership_in(answer, room_id) == "knock"
    events = answer["rooms"]["knock"][room_id]["knock_state"]["events"]
    assert {"m.room.create", "m.room.name", "m.room.join_rules"} <= {event["type"] for event in events}
    content = await alice.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}")
    assert (content["membership"], content["reason"]) == ("knock", "tea?")
    await invite(alice, room_id, bob.user_id)
    assert membership_in(await sync(bob, answer["next_batch"]), room_id) == "invite"
    await join(bob, room_id)
    await send_text(bob, room_id, "thanks")
    await wait_text(alice, room_id, "thanks")


async def test_a_knock_can_be_denied(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, initial_state=[rules("knock")])
    await bob.ok("POST", f"knock/{quote(room_id)}?via=a.example", json={})
    since = (await sync(bob))["next_batch"]
    await alice.ok("POST", f"rooms/{quote(room_id)}/kick", json={"user_id": bob.user_id})

    async def gone() -> bool:
        return membership_in(await sync(bob, since), room_id) == "leave"

    await until(gone)
    assert await _own_leave(bob, since, room_id) == (alice.user_id, "leave")


async def test_a_knock_survives_a_late_refusal_of_an_earlier_one(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, initial_state=[rules("knock")])
    await bob.ok("POST", f"knock/{quote(room_id)}?via=a.example", json={})
    await trio.testing.wait_all_tasks_blocked()
    sent_before = _transactions(federation)
    federation.network.latency_s = 1.0
    await alice.ok("POST", f"rooms/{quote(room_id)}/kick", json={"user_id": bob.user_id})
    await trio.testing.wait_all_tasks_blocked()
    federation.network.latency_s = 0.0
    await bob.ok("POST", f"knock/{quote(room_id)}?via=a.example", json={})

    async def arrived() -> bool:
        return _transactions(federation) > sent_before

    await until(arrived)
    assert membership_in(await sync(bob), room_id) == "knock"
    assert await _membership(alice, room_id, bob.user_id) == "knock"


def _transactions(federation: Federation) -> int:
    """Returns the number of transactions from a.example to b.example."""
    return sum(
        each.origin == "a.example" and each.path.startswith("/_matrix/federation/v1/send/")
        for each in federation.network.exchanges
    )


async def test_a_knock_can_be_withdrawn(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, initial_state=[rules("knock")])
    await bob.ok("POST", f"knock/{quote(room_id)}?via=a.example", json={})
    since = (await sync(bob))["next_batch"]
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    assert await _own_leave(bob, since, room_id) == (bob.user_id, "leave")
    assert await _membership(alice, room_id, bob.user_id) == "leave"


async def test_a_knock_is_refused_if_the_join_rules_forbid_it(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    path = f"knock/{quote(room_id)}?via=a.example"
    assert await bob.refused("POST", path, json={}) == (403, "M_FORBIDDEN")


@pytest.mark.parametrize("version", ["8", "9", "10", "12"])
async def test_a_member_of_the_allowed_room_may_join(federation: Federation, version: str) -> None:
    a, b, c = [await federation.start(f"{name}.example") for name in "abc"]
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await c.register("carol")
    club = await create_room(alice, preset="public_chat", room_version=version)
    room_id = await create_room(alice, room_version=version, initial_state=[rules("restricted", club)])
    path = f"join/{quote(room_id)}?via=a.example"
    assert await bob.refused("POST", path, json={}) == (403, "M_FORBIDDEN")
    await join(bob, club, "a.example")
    await join(bob, room_id, "a.example")
    await send_text(bob, room_id, "I am of the club")
    await wait_text(alice, room_id, "I am of the club")
    content = await alice.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}")
    assert content["join_authorised_via_users_server"] == alice.user_id
    # Bob's server has nobody in the room who may invite, so it sends carol on to one that has.
    await send_state(
        alice, room_id, "m.room.power_levels",
        {"invite": 50, "users": {} if version == "12" else {alice.user_id: 100}},
    )  # fmt: skip
    await join(carol, club, "a.example")
    await send_text(alice, room_id, "mark")
    await wait_text(bob, room_id, "mark")
    await join(carol, room_id, "b.example", "a.example")
    assert await state_of(carol, room_id) == await state_of(alice, room_id)


async def test_second_user_of_a_server_that_cannot_vouch_joins_through_another(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await b.register("carol")
    club = await create_room(alice, preset="public_chat")
    levels = {"invite": 50}
    room_id = await create_room(alice, initial_state=[rules("restricted", club)], power_level_content_override=levels)
    for user in (bob, carol):
        await join(user, club, "a.example")
        await trio.sleep(1)  # until a.example has heard of it
        await join(user, room_id, "a.example")
        await send_text(user, room_id, f"{user.user_id} is here")
        await wait_text(alice, room_id, f"{user.user_id} is here")
    assert await state_of(carol, room_id) == await state_of(alice, room_id)


async def test_a_join_that_the_rules_forbid_is_not_signed(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    club = await create_room(alice, preset="public_chat")
    room_id = await create_room(alice, initial_state=[rules("restricted", club)])
    lobby = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    place = f"{quote(room_id, safe='')}/{quote(mallory.user('mallory'), safe='')}"
    status, answer = await mallory.get("a.example", f"/_matrix/federation/v1/make_join/{place}?ver=12")
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    # Mallory makes the join themselves, and names alice as the one who vouches for it.
    seen = await mallory.join("a.example", lobby, "mallory")
    keys = await state_of(alice, room_id)
    join_event = {
        "type": "m.room.member",
        "room_id": room_id,
        "sender": seen.user_id,
        "state_key": seen.user_id,
        "content": {"membership": "join", "join_authorised_via_users_server": alice.user_id},
        "origin_server_ts": 0,
        "depth": 100,
        "prev_events": [keys["m.room.guest_access", ""]],
        "auth_events": [
            keys["m.room.power_levels", ""], keys["m.room.join_rules", ""], keys["m.room.member", alice.user_id]
        ],
    }  # fmt: skip
    status, answer = await mallory.send_join("a.example", mallory.sign(join_event, seen.version))
    assert status == 403, answer
    assert "event" not in answer
    results = await mallory.send("a.example", "1", [mallory.sign(join_event, seen.version).pdu])
    assert all("error" in result for result in results.values())
    assert ("m.room.member", seen.user_id) not in await state_of(alice, room_id)
