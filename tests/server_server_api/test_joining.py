"""Joining rooms of other servers. Spec: server-server-api/#joining-rooms"""

from __future__ import annotations

from tests.support.federation import (
    Federation,
    create_room,
    join,
    send_text,
    state_of,
    texts,
    wait_text,
)


async def test_user_of_another_server_joins_and_both_talk(federation: Federation) -> None:
    a, b = await federation.start("a.example"), await federation.start("b.example")
    alice, bob = await a.register("alice"), await b.register("bob")
    room_id = await create_room(alice, preset="public_chat", name="Tea")
    await send_text(alice, room_id, "before")
    await join(bob, room_id, "a.example")
    await send_text(alice, room_id, "hello")
    await wait_text(bob, room_id, "hello")
    await send_text(bob, room_id, "hi")
    await wait_text(alice, room_id, "hi")
    assert (await texts(alice, room_id))[-2:] == ["hello", "hi"]
    assert await state_of(alice, room_id) == await state_of(bob, room_id)
