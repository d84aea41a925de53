"""Joins that a resident accepted and that the joining server could not complete: they are undone at the resident.

Spec: server-server-api/#joining-rooms
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest
import trio

from tests.support.federation import (
    Federation,
    checked,
    create_room,
    invite,
    join,
    membership_in,
    send_text,
    sync,
    until,
    wait_text,
)
from tests.support.homeservers import Client, Server

App = Callable[[Any, Any, Any], Awaitable[None]]


def _on_send_join(server: Server, answer: Callable[[App, Any, Any, Any], Awaitable[None]]) -> App:
    """The server, where `answer` deals with a send_join."""
    inner = checked(server.app)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if "/send_join/" in scope["path"]:
            await answer(inner, scope, receive, send)
        else:
            await inner(scope, receive, send)

    return app


async def _swallow(message: Any) -> None:
    pass


async def _answer_nonsense(inner: App, scope: Any, receive: Any, send: Any) -> None:
    """The join is accepted, and the answer is of no use."""
    await inner(scope, receive, _swallow)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b'{"state": [], "auth_chain": []}'})


async def _answer_nothing(inner: App, scope: Any, receive: Any, send: Any) -> None:
    """The join is accepted, and the answer never comes."""
    await inner(scope, receive, _swallow)
    await trio.sleep_forever()


async def _refuse(inner: App, scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 403, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps({"errcode": "M_FORBIDDEN", "error": "No."}).encode()})


async def _fail(inner: App, scope: Any, receive: Any, send: Any) -> None:
    """The server fails before it has taken the join."""
    await send({"type": "http.response.start", "status": 500, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def _join_path(room_id: str) -> str:
    return f"join/{quote(room_id)}?via=a.example"


def _is(client: Client, room_id: str, user_id: str, membership: str) -> Callable[[], Awaitable[bool]]:
    """Returns whether the client sees the user in the room as `membership`."""

    async def is_so() -> bool:
        path = f"rooms/{quote(room_id)}/state/m.room.member/{quote(user_id)}"
        return bool((await client.ok("GET", path))["membership"] == membership)

    return is_so


@pytest.mark.parametrize("answer", [_answer_nonsense, _answer_nothing])
async def test_a_join_that_cannot_be_completed_is_undone(federation: Federation, answer: Any) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    federation.network.join("a.example", _on_send_join(a, answer))
    assert await bob.refused("POST", _join_path(room_id), json={}) == (502, "M_UNKNOWN")
    await until(_is(alice, room_id, bob.user_id, "leave"), seconds=60)
    assert membership_in(await sync(bob), room_id) is None
    federation.network.join("a.example", checked(a.app))
    await join(bob, room_id, "a.example")
    await trio.sleep(3600)
    assert await _is(alice, room_id, bob.user_id, "join")()


async def test_a_join_is_undone_even_if_the_resident_is_away_and_the_server_restarts(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    federation.network.join("a.example", _on_send_join(a, _answer_nonsense))
    assert (await bob.refused("POST", _join_path(room_id), json={}))[0] == 502
    federation.network.leave("a.example")
    await trio.sleep(600)
    await federation.kill("b.example")
    await federation.start("b.example")
    await trio.sleep(600)
    federation.network.join("a.example", checked(a.app))
    assert await _is(alice, room_id, bob.user_id, "join")()
    await until(_is(alice, room_id, bob.user_id, "leave"), seconds=1200)


async def test_a_join_is_undone_if_the_server_dies_in_the_middle_of_it(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice, preset="public_chat")
    federation.network.join("a.example", _on_send_join(a, _answer_nothing))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.post, _join_path(room_id))
        await trio.sleep(5)
        await federation.kill("b.example")
        nursery.cancel_scope.cancel()
    assert await _is(alice, room_id, bob.user_id, "join")()
    await federation.start("b.example")
    await until(_is(alice, room_id, bob.user_id, "leave"), seconds=1200)


async def test_a_user_who_joins_again_in_time_stays(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.join("a.example", _on_send_join(a, _answer_nonsense))
    assert (await bob.refused("POST", _join_path(room_id), json={}))[0] == 502
    federation.network.join("a.example", checked(a.app))
    await join(bob, room_id, "a.example")
    await trio.sleep(3600)
    assert await _is(alice, room_id, bob.user_id, "join")()
    await send_text(alice, room_id, "still there?")
    await wait_text(bob, room_id, "still there?")


async def test_an_invitation_used_for_an_undone_join_is_no_longer_shown(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.join("a.example", _on_send_join(a, _answer_nonsense))
    since = (await sync(bob))["next_batch"]
    assert (await bob.refused("POST", _join_path(room_id), json={}))[0] == 502
    await until(_is(alice, room_id, bob.user_id, "leave"), seconds=60)
    await trio.sleep(1)
    assert membership_in(await sync(bob, since), room_id) == "leave"
    assert membership_in(await sync(bob), room_id) is None


@pytest.mark.parametrize("answer", [_refuse, _fail])
async def test_a_refused_join_keeps_the_invitation(federation: Federation, answer: Any) -> None:
    a, _, alice, bob = await federation.start_two()
    room_id = await create_room(alice)
    await invite(alice, room_id, bob.user_id)
    federation.network.join("a.example", _on_send_join(a, answer))
    assert (await bob.refused("POST", _join_path(room_id), json={}))[0] in (403, 502)
    await trio.sleep(3600)
    assert await _is(alice, room_id, bob.user_id, "invite")()
    assert membership_in(await sync(bob), room_id) == "invite"
    federation.network.join("a.example", checked(a.app))
    await join(bob, room_id, "a.example")
