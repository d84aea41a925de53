"""Invites across servers. Spec: server-server-api/#inviting-to-a-room"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.build import countersign
from homeserver.federation.event import parse_event
from homeserver.federation.identifiers import RoomID, ServerName
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.events import find_event
from homeserver.rooms.heads import insert_room
from homeserver.rooms.membership import store_membership
from tests.support.federation import (
    Federation,
    create_room,
    invite,
    join,
    membership_in,
    send_text,
    state_of,
    sync,
    until,
    wait_text,
)
from tests.support.stranger import Stranger


@pytest.mark.parametrize("version", ["1", "3", "6", "9", "10", "11", "12"])
async def test_an_invited_user_sees_the_room_and_joins(federation: Federation, version: str) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, name="Tea", room_version=version)
    await invite(alice, room_id, bob.user_id)
    answer = await sync(bob)
    assert membership_in(answer, room_id) == "invite"
    events = answer["rooms"]["invite"][room_id]["invite_state"]["events"]
    assert {"m.room.create", "m.room.name", "m.room.member"} <= {event["type"] for event in events}
    told = {(event["type"], event["state_key"]): event for event in events}
    assert told["m.room.member", alice.user_id]["content"] == {"membership": "join", "displayname": "alice"}
    own = told["m.room.member", bob.user_id]
    assert (own["sender"], own["content"]["membership"]) == (alice.user_id, "invite")
    assert own["event_id"] == (await state_of(alice, room_id))["m.room.member", bob.user_id]
    assert own["unsigned"] == {"age": 0}
    assert answer["rooms"]["invite"][room_id]["state"]["events"] == [own]

    await join(bob, room_id)  # the inviter's server is known
    await send_text(bob, room_id, "thank you")
    await wait_text(alice, room_id, "thank you")
    assert await state_of(alice, room_id) == await state_of(bob, room_id)
    assert membership_in(await sync(bob, answer["next_batch"]), room_id) == "join"


async def test_an_invite_reaches_a_server_that_is_in_the_room(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob, carol = await a.register("alice"), await b.register("bob"), await b.register("carol")
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    await join(bob, room_id)
    await invite(alice, room_id, carol.user_id)

    async def invited() -> bool:
        return membership_in(await sync(carol), room_id) == "invite"

    await until(invited)
    await join(carol, room_id)
    assert await state_of(carol, room_id) == await state_of(bob, room_id)


async def test_the_inviter_sees_that_an_invite_was_rejected(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    before = await sync(bob)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    assert membership_in(await sync(bob, before["next_batch"]), room_id) == "leave"
    content = await alice.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}")
    assert content["membership"] == "leave"


@pytest.mark.parametrize("version", ["10", "12"])
async def test_remaining_members_see_a_rejection_after_all_our_users_left(federation: Federation, version: str) -> None:
    a, c = await federation.start("a.example"), await federation.start("c.example")
    alice, bob, carol = await a.register("alice"), await a.register("bob"), await c.register("carol")
    room_id = await create_room(alice, preset="public_chat", room_version=version)
    await join(carol, room_id, "a.example")
    await invite(alice, room_id, bob.user_id)
    await alice.ok("POST", f"rooms/{quote(room_id)}/leave", json={})

    async def left() -> bool:
        return alice.user_id not in (await carol.ok("GET", f"rooms/{quote(room_id)}/joined_members"))["joined"]

    await until(left)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})
    content = await carol.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}")
    assert content["membership"] == "leave"
    assert room_id not in (await sync(bob)).get("rooms", {}).get("invite", {})


async def test_an_invite_can_be_rejected_after_the_inviter_left(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.leave("a.example")
    before = await sync(bob)
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={"reason": "no"})
    answer = await sync(bob, before["next_batch"])
    (event,) = answer["rooms"]["leave"][room_id]["timeline"]["events"]
    assert (event["type"], event["sender"], event["state_key"]) == ("m.room.member", bob.user_id, bob.user_id)
    assert event["content"] == {"membership": "leave", "reason": "no"}
    assert room_id not in (await sync(bob)).get("rooms", {}).get("invite", {})


def invite_of(
    stranger: Stranger, number: int, user_id: str, state: list[Any], room_version: str = "11"
) -> tuple[str, str, Any]:
    """The room, the path and the body of an invite to a room that only the stranger knows."""
    version = ROOM_VERSIONS[room_version]
    room_id = f"!{number}:{stranger.name}"
    member = {
        "type": "m.room.member", "room_id": room_id, "sender": stranger.user("mallory"), "state_key": user_id,
        "content": {"membership": "invite"}, "origin_server_ts": 5, "depth": 5, "prev_events": ["$a"],
        "auth_events": ["$b"],
    }  # fmt: skip
    event = stranger.sign(member, version)
    path = f"/_matrix/federation/v2/invite/{quote(room_id, safe='')}/{quote(event.event_id, safe='')}"
    return room_id, path, {"room_version": room_version, "event": event.pdu, "invite_room_state": state}


async def test_an_invite_with_another_room_version_replaces_the_first(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    for room_version in ("11", "6", "10"):
        room_id, path, body = invite_of(mallory, 1, alice.user_id, [], room_version)
        status, answer = await mallory.put("a.example", path, body)
        assert status == 200, answer
    assert list((await sync(alice))["rooms"]["invite"]) == [room_id]


async def test_unsigned_stripped_state_is_accepted_for_the_inviter_only(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    mallory = Stranger(federation.network, ServerName("mallory.example"))

    def member(user_id: str, **content: Any) -> dict[str, Any]:
        return {"type": "m.room.member", "sender": user_id, "state_key": user_id, "content": content}

    inviter = member(mallory.user("mallory"), membership="join", displayname="Mallory")
    create = {"type": "m.room.create", "sender": mallory.user("mallory"), "state_key": "", "content": {}}
    others = [member(alice.user_id, membership="join"), member("@bob:b.example", membership="join")]
    room_id, path, body = invite_of(mallory, 1, alice.user_id, [*others, inviter, create])
    status, _ = await mallory.put("a.example", path, body)
    assert status == 200
    *stripped, own = (await sync(alice))["rooms"]["invite"][room_id]["invite_state"]["events"]
    assert stripped == [inviter, create]
    assert (own["sender"], own["origin_server_ts"]) == (mallory.user("mallory"), 5)


async def test_one_server_cannot_flood_a_user_with_invites(federation: Federation) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    mallory, honest = (Stranger(federation.network, ServerName(f"{name}.example")) for name in ("mallory", "honest"))

    async def invited_by(stranger: Stranger, number: int) -> int:
        _, path, body = invite_of(stranger, number, alice.user_id, [])
        status, answer = await stranger.put("a.example", path, body)
        assert status == 200 or answer["errcode"] == "M_FORBIDDEN"
        return status

    most = limits.peers.INVITES_PENDING_PER_SERVER_MAX
    assert {await invited_by(mallory, number) for number in range(most)} == {200}
    assert await invited_by(mallory, most) == 403
    assert await invited_by(mallory, 0) == 200  # it replaces one
    assert await invited_by(honest, 0) == 200
    await alice.ok("POST", f"rooms/{quote(f'!0:{mallory.name}')}/leave", json={})
    assert await invited_by(mallory, most) == 200


@pytest.mark.parametrize(("count", "size"), [(limits.users.PENDING_MAX, 10), (130, limits.peers.STRIPPED_BYTES_MAX)])
async def test_pending_invites_are_limited_in_number_and_bytes(federation: Federation, count: int, size: int) -> None:
    a = await federation.start("a.example")
    alice, bob = await a.register("alice"), await a.register("bob")
    stranger = Stranger(federation.network, ServerName("mallory.example"))

    def fill(tx: Transaction) -> None:
        for number in range(count):
            room_id = RoomID(f"!full{number}:many.example")
            insert_room(tx, room_id, ROOM_VERSIONS["11"])
            stripped = [{"type": "m.room.topic", "sender": "@x:y", "state_key": "", "content": {"topic": "x" * size}}]
            at = tx.next_position()
            store_membership(tx, tx.intern(room_id), alice.user_id, "invite", at, at, stripped)

    await a.write(fill)
    _, path, body = invite_of(stranger, 1, alice.user_id, [])
    status, answer = await stranger.put("a.example", path, body)
    assert (status, answer["errcode"]) == (403, "M_FORBIDDEN")
    path = f"rooms/{quote(await create_room(bob))}/invite"
    assert await bob.refused("POST", path, json={"user_id": alice.user_id}) == (403, "M_FORBIDDEN")
    path = f"knock/{quote(f'!elsewhere:{stranger.name}')}?via={stranger.name}"
    assert await alice.refused("POST", path, json={}) == (403, "M_FORBIDDEN")


async def test_the_inviter_can_withdraw_an_invite(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    before = await sync(bob)
    await alice.ok("POST", f"rooms/{quote(room_id)}/kick", json={"user_id": bob.user_id, "reason": "a mistake"})

    async def gone() -> bool:
        return membership_in(await sync(bob, before["next_batch"]), room_id) == "leave"

    await until(gone)
    (event,) = (await sync(bob, before["next_batch"]))["rooms"]["leave"][room_id]["timeline"]["events"]
    assert (event["sender"], event["state_key"]) == (alice.user_id, bob.user_id)
    assert event["content"] == {"membership": "leave", "reason": "a mistake"}


@pytest.mark.parametrize("version", ["6", "12"])
async def test_only_valid_signatures_of_the_invited_server_are_kept(federation: Federation, version: str) -> None:
    a = await federation.start("a.example")
    alice = await a.register("alice")
    carol = Stranger(federation.network, ServerName("c.example"))
    room_id = await create_room(alice, room_version=version)
    path = f"rooms/{quote(room_id)}/invite"
    junk = {f"ed25519:junk{number}": "A" * 86 for number in range(100)}
    theirs: dict[str, Any] = {}

    def take(uri: str, content: Any) -> Any:
        own = countersign(parse_event(content["event"], ROOM_VERSIONS[version]), carol.name, carol.key).pdu
        given = theirs or {"c.example": {**junk, **own["signatures"]["c.example"]}}
        changed = {"membership": "invite", "displayname": "Carol the Great"}
        return {"event": {**own, "content": changed, "signatures": {**own["signatures"], **given}}}

    carol.take_invite = take
    for given in ({}, {"ed25519:x": "A" * 86}, {carol.key.key_id: "A" * 86}, {carol.key.key_id: 5}, 5):
        theirs = {"c.example": given}
        assert await alice.refused("POST", path, json={"user_id": carol.user("c")}) == (502, "M_UNKNOWN"), given
        assert ("m.room.member", carol.user("c")) not in await state_of(alice, room_id)
    theirs = {}
    await alice.ok("POST", path, json={"user_id": carol.user("c")})
    event_id = (await state_of(alice, room_id))["m.room.member", carol.user("c")]
    event = await a.hs.database.read(find_event, event_id)
    assert event is not None
    assert event.content == {"membership": "invite"}
    assert event.pdu["signatures"].keys() == {"a.example", "c.example"}
    assert event.pdu["signatures"]["c.example"].keys() == {carol.key.key_id}


async def test_an_invite_for_an_unknown_user_is_refused(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice = await a.register("alice")
    await b.register("bob")
    room_id = await create_room(alice)
    path = f"rooms/{quote(room_id)}/invite"
    assert await alice.refused("POST", path, json={"user_id": "@nobody:b.example"}) == (404, "M_NOT_FOUND")
    federation.network.leave("b.example")
    assert await alice.refused("POST", path, json={"user_id": "@bob:b.example"}) == (502, "M_UNKNOWN")
    members = await alice.ok("GET", f"rooms/{quote(room_id)}/members")
    assert [event["state_key"] for event in members["chunk"]] == [alice.user_id]


async def test_a_room_that_all_our_users_left_can_be_joined_again(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id, "a.example")
    await bob.ok("POST", f"rooms/{quote(room_id)}/leave", json={})

    async def left() -> bool:
        content = await alice.ok("GET", f"rooms/{quote(room_id)}/state/m.room.member/{quote(bob.user_id)}")
        return bool(content["membership"] == "leave")

    await until(left)
    await send_text(alice, room_id, "while away")
    await join(bob, room_id, "a.example")
    await send_text(alice, room_id, "welcome back")
    await wait_text(bob, room_id, "welcome back")
    await send_text(bob, room_id, "thanks")
    await wait_text(alice, room_id, "thanks")
    assert await state_of(alice, room_id) == await state_of(bob, room_id)
