"""Encrypted conversation between people of two servers, each with two devices, all with matrix-nio's cryptography.

    python encryption.py PLAN

PLAN is JSON: {"people": [{"url", "user", "password"}, …]}: Alice of one server, Bob and Carol of the other. Prints each
step. Exits with 1 at the first step that fails.
"""

from __future__ import annotations

import asyncio
import json
import sys

from devices import Device, People, check, require
from nio import EnableEncryptionBuilder, OlmUnverifiedDeviceError, RoomPreset


async def meet(people: People, host: Device, guest: Device) -> str:
    """Returns an encrypted room of both."""
    created = await host.client.room_create(
        preset=RoomPreset.private_chat,
        invite=[guest.user_id],
        initial_state=[EnableEncryptionBuilder().as_dict()],
    )
    room_id = str(require(created).room_id)
    await enter_room(people, room_id, guest, [host])
    return room_id


async def enter_room(people: People, room_id: str, guest: Device, others: list[Device]) -> None:
    await people.until(f"{guest} is invited", lambda: room_id in guest.client.invited_rooms)
    require(await guest.client.join(room_id))
    for device in (guest, *others):
        what = f"{device} sees {guest.user_id} join"
        await people.until(what, lambda: is_member(device, guest, room_id))  # noqa: B023 (called at once)


def is_member(device: Device, member: Device, room_id: str) -> bool:
    """Returns whether the member has joined the room, as the device sees it."""
    room = device.client.rooms.get(room_id)
    return room is not None and member.user_id in room.users and member.user_id not in room.invited_users


async def add_devices(
    people: People, plan: list[dict[str, str]], room_id: str, alice: Device, bob: Device
) -> list[Device]:
    """A second device each. They get no keys until they are verified, and then all."""
    early = await people.say(alice, room_id, "early")
    await people.read([alice, bob], early)
    alice2, bob2 = await people.enter(plan[0]), await people.enter(plan[1])
    everyone = [alice, alice2, bob, bob2]
    for device in everyone:
        for other in everyone:
            if other is not device:
                what = f"{device} hears of {other}"
                await people.until(what, lambda: device.known(other) is not None)  # noqa: B023 (called at once)
    try:
        await people.say(bob, room_id, "to a device that nobody knows")
    except OlmUnverifiedDeviceError as error:
        check("no key for a device that is not verified", error.device.id in (alice2.device_id, bob2.device_id))
    else:
        raise AssertionError("matrix-nio sent keys to a device that nobody has verified")
    await people.unreadable(alice2, early)
    for one, other in ((alice2, alice), (bob2, bob), (alice2, bob), (alice, bob2), (alice2, bob2)):
        await people.compare_emoji(one, other)
    for sender in everyone:
        await people.read(everyone, await people.say(sender, room_id, f"to four devices, {sender}"))
    # Only now: matrix-nio puts off requests of devices that it has no Olm session with until a sync has news.
    require(await alice2.client.request_room_key(alice2.events[early.event_id]))
    await people.read([alice2], early)  # the first device has forwarded the key
    await people.unreadable(bob2, early)  # it has asked for no key
    return [alice2, bob2]


async def lose_device(people: People, room_id: str, lost: Device, others: list[Device]) -> None:
    """A device logs out. All hear of it, and rotate their keys, so it could read nothing that is said from then on."""
    before = [await people.say(device, room_id, f"before, {device}") for device in others]
    await people.lose(lost)
    for device in others:
        await people.until(f"{device} hears that {lost} is gone", lambda: device.known(lost) is None)  # noqa: B023
        device.given.clear()
    for device, old in zip(others, before, strict=True):
        message = await people.say(device, room_id, f"with a device less, {device}")
        check("the key is another one", message.session_id != old.session_id)
        await people.read(others, message)
        check("that the lost device is not given", bool(device.given) and lost.name not in device.given)


async def come_and_go(people: People, room_id: str, host: Device, guest: Device, others: list[Device]) -> None:
    """A guest reads what is said between coming and going, and nothing else."""
    before = await people.say(host, room_id, "before the guest")
    require(await host.client.room_invite(room_id, guest.user_id))
    await enter_room(people, room_id, guest, [host, *others])
    await people.compare_emoji(host, guest)
    during = await people.say(host, room_id, "to the guest")
    await people.read([guest, *others], during)
    require(await host.client.room_kick(room_id, guest.user_id))
    for device in (host, *others):
        what = f"{device} sees the guest go"
        await people.until(what, lambda: guest.user_id not in device.client.rooms[room_id].users)  # noqa: B023
    host.given.clear()
    after = await people.say(host, room_id, "after the guest")
    await people.read([host, *others], after)
    check("each with a key of its own", len({message.session_id for message in (before, during, after)}) == 3)
    check("that only members are given", bool(host.given) and guest.name not in host.given)
    check("the guest has read one of three", [guest.reads(each) for each in (before, during, after)] == [0, 1, 0])


async def main(plan: list[dict[str, str]]) -> None:
    """The whole story."""
    people = People()
    try:
        alice, bob = await people.enter(plan[0]), await people.enter(plan[1])
        room_id = await meet(people, alice, bob)
        await people.compare_emoji(alice, bob)
        for sender in (alice, bob):
            await people.read([alice, bob], await people.say(sender, room_id, f"to two devices, {sender}"))
        alice2, bob2 = await add_devices(people, plan, room_id, alice, bob)
        old = await people.say(bob2, room_id, "old key")
        bob2.client.invalidate_outbound_session(room_id)
        new = await people.say(bob2, room_id, "new key")
        check("keys rotate on request", old.session_id != new.session_id)
        for message in (old, new):
            await people.read([alice, alice2, bob], message)
        await lose_device(people, room_id, alice2, [alice, bob, bob2])
        carol = await people.enter(plan[2])
        await come_and_go(people, room_id, alice, carol, [bob, bob2])
    finally:
        for device in people.devices:
            await device.client.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])["people"]))
