"""Bodies and answers of other servers share one budget of memory: many large ones at once stay within it.

Answers keep a part of it, and those that a person waits for another: a body may be held until an answer has come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack

import httpx
import pytest
import trio

from homeserver import limits
from homeserver.federation.canonical_json import encode
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import build_authorization
from homeserver.process.peers import PERSON, Cause, peer
from homeserver.remote.answers import ask_many
from homeserver.remote.requests import Unreachable, send_signed
from tests.support.federation import Federation, create_room, texts, until
from tests.support.homeservers import Server
from tests.support.stranger import Stranger
from tests.support.streaming import StreamingServer

HERE = ServerName("a.example")
MIB = 1 << 20
BACKGROUND = peer(ServerName("busy.example"))
MOST = (
    limits.http.PEER_BODIES_BYTES_MAX
    + limits.http.PEER_BODIES_BYTES_EACH  # the one that goes ahead
    + sum(limits.http.PEER_ANSWERS_BYTES.values())
)


class Teller:
    """A server that answers with a JSON string of this many bytes. The last one waits for `go_on`."""

    def __init__(
        self, federation: Federation, name: str, size: int, *, before: bytes = b"", after: bytes = b""
    ) -> None:
        self.name = ServerName(name)
        self.go_on = trio.Event()
        self._size, self._before, self._after = size, before, after
        StreamingServer(federation.network, name, self._chunks)

    async def _chunks(self) -> AsyncIterator[bytes]:
        yield self._before + b'"'
        for _ in range(0, self._size, 16 * 1024):
            yield b"x" * min(self._size, 16 * 1024)
        await self.go_on.wait()
        yield b'"' + self._after


async def ask(server: Server, teller: Teller, cause: Cause = PERSON) -> int:
    """The status, 0 if there was no answer."""
    try:
        return (await send_signed(server.hs, teller.name, "GET", "/x", cause=cause, timeout_s=300)).status
    except Unreachable:
        return 0


def fill(server: Server, stack: ExitStack) -> None:
    """Takes all that bodies may have."""
    budget = server.hs.budgets.peers
    each = limits.http.PEER_BODIES_BYTES_EACH
    for number in range(limits.http.PEER_BODIES_BYTES_MAX // each):
        stack.enter_context(budget.hold(f"192.0.2.{number}")).become(each)
    assert not budget.has_room("somebody", 1)


async def ask_all(server: Server, tellers: Sequence[Teller], ask_one: Callable[[Teller], Awaitable[None]]) -> None:
    """Asks all at once, and lets them end their answers while as much is held as may be."""
    async with trio.open_nursery() as nursery:
        for teller in tellers:
            nursery.start_soon(ask_one, teller)
        await trio.sleep(5)
        assert MOST // 2 < server.hs.budgets.peers.held <= MOST
        for teller in tellers:
            teller.go_on.set()


@pytest.mark.parametrize("cause", [PERSON, BACKGROUND])
async def test_many_large_answers_at_once_stay_within_the_budget(federation: Federation, cause: Cause) -> None:
    server = await federation.start(HERE)
    tellers = [Teller(federation, f"teller{number}.example", 1_000_000) for number in range(100)]
    statuses: list[int] = []

    async def ask_one(teller: Teller) -> None:
        statuses.append(await ask(server, teller, cause))

    await ask_all(server, tellers, ask_one)
    assert statuses == [200] * 100, "they have waited for one another, and one after another got room"
    assert server.hs.budgets.peers.held == 0


async def test_answers_that_do_not_fit_the_budget_are_abandoned(federation: Federation) -> None:
    server = await federation.start(HERE)
    tellers = [Teller(federation, f"teller{number}.example", 1_000_000) for number in range(100)]
    statuses: list[int] = []

    async def ask_one(teller: Teller) -> None:
        statuses.append(await ask(server, teller))

    async with trio.open_nursery() as nursery:
        for teller in tellers:
            nursery.start_soon(ask_one, teller)
        await trio.sleep(100)
        assert server.hs.budgets.peers.held <= MOST
        assert 0 < len(statuses) < 100
        for teller in tellers:
            teller.go_on.set()
    assert set(statuses) == {0, 200}


async def test_abandoning_an_answer_for_memory_does_not_back_off_the_server(federation: Federation) -> None:
    server = await federation.start(HERE)
    teller = Teller(federation, "teller.example", 1_000_000)
    teller.go_on.set()
    with ExitStack() as stack:
        fill(server, stack)
        stack.enter_context(server.hs.budgets.peers.hold("other.example", "person")).become(8 * MIB)
        assert await ask(server, teller) == 0
    assert await ask(server, teller, BACKGROUND) == 200


async def test_a_small_answer_needs_no_budget(federation: Federation) -> None:
    server = await federation.start(HERE)
    teller = Teller(federation, "teller.example", 10_000)
    teller.go_on.set()
    with ExitStack() as stack:
        fill(server, stack)
        for share, size in limits.http.PEER_ANSWERS_BYTES.items():
            stack.enter_context(server.hs.budgets.peers.hold(share, share)).become(size)
        began_s = trio.current_time()
        assert await ask(server, teller) == 200
        assert trio.current_time() - began_s < 1


async def test_requests_of_users_have_a_reserved_budget(federation: Federation) -> None:
    server = await federation.start(HERE)
    teller = Teller(federation, "teller.example", 500_000)
    teller.go_on.set()
    with ExitStack() as stack:
        fill(server, stack)
        stack.enter_context(server.hs.budgets.peers.hold("b.example", "background")).become(8 * MIB)
        assert await ask(server, teller, BACKGROUND) == 0
        assert await ask(server, teller) == 200


async def test_streamed_answers_reserve_budget_for_one_element_each(federation: Federation) -> None:
    server = await federation.start(HERE)
    tellers = [
        Teller(federation, f"teller{number}.example", 100_000, before=b'{"pdus":[', after=b"]}")
        for number in range(300)
    ]
    answers: list[int] = []

    async def ask_one(teller: Teller) -> None:
        try:
            answer = await ask_many(
                server.hs, teller.name, "GET", "/x",
                cause=PERSON, take={"pdus": lambda _: "taken"}, timeout_s=300, max_bytes=10 * MIB,
            )  # fmt: skip
            answers.append(answer.status)
        except Unreachable:
            answers.append(0)

    await ask_all(server, tellers, ask_one)
    assert answers == [200] * 300
    assert server.hs.budgets.peers.held == 0


async def test_incoming_bodies_cannot_starve_the_answers_they_depend_on(
    federation: Federation,
) -> None:
    """Many large transactions come at once, and what comes before their events has to be fetched."""
    server = await federation.start(HERE)
    alice = await server.register("alice")
    room_id = await create_room(alice, preset="public_chat")
    mallory = Stranger(federation.network, ServerName("mallory.example"))
    room = await mallory.join(HERE, room_id, "mallory")
    padding = "x" * (9 * MIB)
    results: list[int] = []

    async def send(number: int) -> None:
        uri = f"/_matrix/federation/v1/send/{number}"
        body = {
            "origin": mallory.name, "origin_server_ts": 1, "padding": padding,
            "pdus": [message.pdu for message in messages[number : number + 1]],
        }  # fmt: skip
        header = build_authorization("PUT", uri, mallory.name, HERE, mallory.key, body)
        transport = httpx.ASGITransport(server.app, client=(f"192.0.2.{number}", 1))
        async with httpx.AsyncClient(transport=transport, base_url="https://a.example", timeout=600) as http:
            answer = await http.put(uri, content=encode(body), headers={"authorization": header})
        results.append(answer.status_code)

    messages = [room.text(f"message {number}") for number in range(8)]
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, server.hs.budgets.peers.held)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        async with trio.open_nursery() as senders:
            for number in range(8):
                senders.start_soon(send, number)
        nursery.cancel_scope.cancel()
    assert results == [200] * 8

    async def all_are_there() -> bool:
        return {f"message {number}" for number in range(8)} <= set(await texts(alice, room_id))

    await until(all_are_there)
    assert most <= MOST
    assert server.hs.budgets.peers.held == 0
