"""Spec: client-server-api/#guest-access"""

from __future__ import annotations

import pytest
import trio

from homeserver.config import Registration
from homeserver.federation.identifiers import UserID
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.keys import Device
from tests.support.people import act, create, join, membership, path_of, public_room, redact, set_state

FORBIDDEN = (403, "M_GUEST_ACCESS_FORBIDDEN")


@pytest.fixture
async def open_to_guests(homeservers: Homeservers) -> Server:
    """A server that has guests."""
    return await homeservers.start(registration=Registration(enabled=True, guests=True))


async def new_guest(server: Server) -> Client:
    answer = await server.anonymous.ok("POST", "register?kind=guest", json={})
    return Client(server, answer["access_token"], UserID(answer["user_id"]), answer["device_id"])


async def test_guests_join_rooms_that_allow_guests(open_to_guests: Server) -> None:
    alice, guest = await open_to_guests.register("alice"), await new_guest(open_to_guests)
    room_id = await public_room(alice)
    assert await guest.refused("POST", path_of(room_id, "join"), json={}) == FORBIDDEN
    path = path_of(room_id, "state", "m.room.member", guest.user_id)
    assert await guest.refused("PUT", path, json={"membership": "join"}) == FORBIDDEN
    assert await guest.refused("POST", "createRoom", json={}) == FORBIDDEN
    await set_state(alice, room_id, "m.room.guest_access", {"guest_access": "can_join"})
    await join(guest, room_id)
    invited_to = await create(alice, preset="private_chat", invite=[guest.user_id])
    await join(guest, invited_to)


@pytest.mark.parametrize("how", ["forbidden", "redacted", "nonsense"])
async def test_guests_are_removed_from_a_room_that_no_longer_allows_them(open_to_guests: Server, how: str) -> None:
    alice, bob = await open_to_guests.register("alice"), await open_to_guests.register("bob")
    guests = [await new_guest(open_to_guests) for _ in range(25)]
    room_id = await public_room(alice, bob)
    other = await create(alice, preset="private_chat", invite=[guests[0].user_id])
    event_id = await set_state(alice, room_id, "m.room.guest_access", {"guest_access": "can_join"})
    for guest in guests:
        await join(guest, room_id)
    await join(guests[0], other)
    if how == "redacted":
        await redact(alice, room_id, event_id)
    else:
        content = {"guest_access": "forbidden"} if how == "forbidden" else {"guest_access": ["can_join"]}
        await set_state(alice, room_id, "m.room.guest_access", content)
    await trio.sleep(1)
    assert {await membership(alice, room_id, guest.user_id) for guest in guests} == {"leave"}
    assert await membership(alice, room_id, bob.user_id) == "join"
    assert await membership(alice, other, guests[0].user_id) == "join"


async def test_a_guest_who_became_a_user_stays_in_the_room(open_to_guests: Server) -> None:
    alice, guest = await open_to_guests.register("alice"), await new_guest(open_to_guests)
    room_id = await public_room(alice)
    await set_state(alice, room_id, "m.room.guest_access", {"guest_access": "can_join"})
    await join(guest, room_id)
    localpart = guest.user_id[1:].partition(":")[0]
    await open_to_guests.register(localpart, guest_access_token=guest.token)
    await set_state(alice, room_id, "m.room.guest_access", {"guest_access": "forbidden"})
    await trio.sleep(1)
    assert await membership(alice, room_id, guest.user_id) == "join"
    await act(alice, room_id, "kick", guest)


async def test_guests_have_encryption_keys(open_to_guests: Server) -> None:
    guest = await new_guest(open_to_guests)
    device = Device(guest.user_id, guest.device_id)
    body = {"device_keys": device.keys(), "one_time_keys": device.one_time_keys(1)}
    await guest.ok("POST", "keys/upload", json=body)
    answer = await guest.ok("POST", "keys/query", json={"device_keys": {guest.user_id: []}})
    assert answer["device_keys"] == {guest.user_id: {guest.device_id: device.keys()}}
    body = {"one_time_keys": {guest.user_id: {guest.device_id: "signed_curve25519"}}}
    assert (await guest.ok("POST", "keys/claim", json=body))["one_time_keys"].keys() == {guest.user_id}
