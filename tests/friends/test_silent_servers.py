"""Not in the spec: docs/friends.md. A server that does not answer holds up nobody but those who ask people on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import trio

from tests.friends.people import ask, states_of
from tests.support.federation import Federation, until
from tests.support.homeservers import Client

SILENT = "silent.example"


async def _never_answers(
    scope: MutableMapping[str, Any],
    receive: Callable[[], Awaitable[Any]],
    send: Callable[[Any], Awaitable[None]],
) -> None:
    await trio.sleep_forever()


async def _ask_in_background(client: Client, user_id: str) -> None:
    await ask(client, user_id)


def _attempts(federation: Federation, destination: str) -> int:
    exchanges = federation.network.exchanges
    return sum(each.destination == destination and "/invite/" in each.path for each in exchanges)


async def test_a_silent_server_holds_up_no_request_to_another_one(federation: Federation) -> None:
    _, _, alice, bob = await federation.start_two()
    for number in range(25):
        federation.network.join(f"silent{number}.example", _never_answers)
    async with trio.open_nursery() as nursery:
        for number in range(25):
            nursery.start_soon(_ask_in_background, alice, f"@dan:silent{number}.example")
    federation.network.cut("a.example", "b.example")
    assert (await ask(alice, bob))["state"] == "outgoing"
    await federation.kill("a.example")
    await federation.start("a.example")
    await trio.sleep(1)  # all requests are tried again after a start; those to silent servers take half a minute
    federation.network.heal()

    async def has_arrived() -> bool:
        return await states_of(bob) == {alice.user_id: "incoming"}

    await until(has_arrived, seconds=8)


async def test_a_silent_server_is_asked_once_for_all_who_wait_for_it(federation: Federation) -> None:
    a = await federation.start("a.example")
    federation.network.join(SILENT, _never_answers)
    people = [await a.register(f"person{number}") for number in range(30)]
    async with trio.open_nursery() as nursery:
        for person in people:
            nursery.start_soon(_ask_in_background, person, f"@dan:{SILENT}")
    await trio.sleep(120)
    before = _attempts(federation, SILENT)
    await trio.sleep(3600)
    assert 5 <= _attempts(federation, SILENT) - before <= 40


async def test_requests_to_a_server_that_is_back_arrive_together(federation: Federation) -> None:
    a, _, alice, bob = await federation.start_two()
    carol = await a.register("carol")
    federation.network.cut("a.example", "b.example")
    await ask(alice, bob)
    await ask(carol, bob)
    await trio.sleep(24 * 3600)
    federation.network.heal()

    async def have_arrived() -> bool:
        return await states_of(bob) == {alice.user_id: "incoming", carol.user_id: "incoming"}

    await until(have_arrived, seconds=600)


async def test_a_request_that_a_server_fails_on_holds_up_no_other_one_there(federation: Federation) -> None:
    """A server may fail on one invitation again and again, and take the next one."""
    a, b, alice, bob = await federation.start_two()
    carol = await a.register("carol")

    async def fail_for_alice(
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        if "/invite/" in scope["path"] and any(alice.user_id.encode() in each.get("body", b"") for each in messages):
            body = b'{"errcode":"M_UNKNOWN","error":"Internal error"}'
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 500, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        waiting = iter(messages)

        async def replay() -> Any:
            return next(waiting, None) or await receive()

        await b.app(scope, replay, send)

    federation.network.join("b.example", fail_for_alice)
    federation.network.cut("a.example", "b.example")
    await ask(alice, bob)
    await ask(carol, bob)
    federation.network.heal()

    async def has_arrived() -> bool:
        return carol.user_id in await states_of(bob)

    await until(has_arrived, seconds=60)
    assert await states_of(bob) == {carol.user_id: "incoming"}
    assert await states_of(alice) == {bob.user_id: "outgoing"}
