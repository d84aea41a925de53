"""Answers of other servers that are larger, slower or emptier than any honest one.

What they cost is bounded by what is of use in them, never by what a server chooses to send.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.federation.identifiers import ServerName
from homeserver.process.peers import PERSON
from homeserver.remote.answers import Verdict, ask_many
from homeserver.remote.requests import Answer, Unreachable
from tests.support.federation import Federation, create_room, join, state_of
from tests.support.homeservers import Server
from tests.support.stranger import FakeRoom, Stranger
from tests.support.streaming import Body, StreamingServer

TELLER = ServerName("teller.example")


def tell(federation: Federation, body: Body, status: int = 200) -> StreamingServer:
    return StreamingServer(federation.network, TELLER, body, status)


async def ask(server: Server, taken: list[bytes], *, enough: int = 1 << 30, max_bytes: int = 1 << 30) -> Answer:
    def take(element: bytes) -> Verdict:
        if len(taken) >= enough:
            return "full"
        taken.append(element)
        return "taken"

    return await ask_many(
        server.hs, TELLER, "GET", "/_matrix/federation/v1/state/x",
        cause=PERSON, take={"pdus": take}, members={"event"}, timeout_s=120, max_bytes=max_bytes,
    )  # fmt: skip


def endless(begin: bytes, more: bytes, *, pause_s: float = 0) -> Body:
    async def body() -> AsyncIterator[bytes]:
        yield begin
        while True:
            await trio.sleep(pause_s)
            yield more

    return body


def whole(text: bytes, size: int = 1000) -> Body:
    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(text), size):
            yield text[start : start + size]

    return body


async def test_elements_are_taken_one_at_a_time(federation: Federation) -> None:
    a = await federation.start("a.example")
    tell(federation, whole(b'{"event":{"a":1},"pdus":[{"b":2},"x"],"other":[1,2]}', 5))
    taken: list[bytes] = []
    answer = await ask(a, taken)
    assert (answer.status, answer.content, taken) == (200, {"event": {"a": 1}}, [b'{"b":2}', b'"x"'])


async def test_an_error_status_counts_as_an_answer(federation: Federation) -> None:
    a = await federation.start("a.example")
    tell(federation, whole(b'{"errcode":"M_FORBIDDEN","error":"No."}'), 403)
    answer = await ask(a, [])
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


async def test_reading_stops_after_the_wanted_element(federation: Federation) -> None:
    a = await federation.start("a.example")
    teller = tell(federation, endless(b'{"pdus":[{}', b",{}" * 300))
    taken: list[bytes] = []
    assert (await ask(a, taken, enough=1000)).status == 200
    assert len(taken) == 1000
    assert teller.sent_bytes < 10_000


@pytest.mark.parametrize(
    "junk", [b"[[[[[[]]]]]]", b'{"a":[%b1]}' % (b"1," * 50_000), b'"%b"' % (b"x" * 300_000), b"[" * 500 + b"]" * 500]
)
async def test_reading_stops_if_most_of_an_answer_is_junk(federation: Federation, junk: bytes) -> None:
    a = await federation.start("a.example")
    chunk = (b"," + junk) * (1 + 10_000 // len(junk))
    teller = tell(federation, endless(b'{"pdus":[0', chunk))

    def refuse(element: bytes) -> Verdict:
        return "junk"

    with pytest.raises(Unreachable, match="useless"):
        await ask_many(
            a.hs, TELLER, "GET", "/_matrix/federation/v1/state/x",
            cause=PERSON, take={"pdus": refuse}, timeout_s=120, max_bytes=1 << 30,
        )  # fmt: skip
    most = min(limits.peers.ANSWER_JUNK_BYTES_MAX + len(junk), (limits.peers.ANSWER_JUNK_MAX + 1) * (len(junk) + 1))
    assert teller.sent_bytes < most + 20 * len(chunk)  # some of it is still on its way


async def test_answer_is_not_read_beyond_its_limit(federation: Federation) -> None:
    a = await federation.start("a.example")
    teller = tell(federation, endless(b'{"pdus":[],"more":"', b"x" * 1000))
    with pytest.raises(Unreachable):
        await ask(a, [], max_bytes=100_000)
    assert teller.sent_bytes < 110_000


@pytest.mark.parametrize("pause_s", [1, limits.peers.ANSWER_IDLE_S + 1, 10_000])
async def test_a_slow_answer_is_abandoned_and_its_server_backed_off(federation: Federation, pause_s: float) -> None:
    a = await federation.start("a.example")
    tell(federation, endless(b'{"pdus":[0', b",0", pause_s=pause_s))
    began_s = trio.current_time()
    with pytest.raises(Unreachable):
        await ask(a, [])
    assert trio.current_time() - began_s <= 121
    assert a.hs.peers.is_backing_off(TELLER, a.hs.now_ms())


@pytest.mark.parametrize("text", [b"", b"<html>", b'{"pdus":[{}', b'{"pdus":[1}', b'{"event":[}'])
async def test_an_answer_that_is_not_json_counts_as_none(federation: Federation, text: bytes) -> None:
    a = await federation.start("a.example")
    tell(federation, whole(text))
    with pytest.raises(Unreachable):
        await ask(a, [])


async def test_a_large_room_is_joined_without_holding_its_state_in_memory(federation: Federation) -> None:
    """Its members come in the wrong order, some twice, and with junk in between."""
    b = await federation.start("b.example")
    bob = await b.register("bob")
    fake = FakeRoom(Stranger(federation.network, ServerName("mallory.example")), "11")
    create, _, levels, rules = fake.events
    more = [
        fake.say(
            "m.room.member", {"membership": "join"},
            auth=[create, levels, rules], state_key=f"@u{number}:mallory.example", sender=f"@u{number}:mallory.example",
        )
        for number in range(200)
    ]  # fmt: skip

    def answer(given: Any) -> Any:
        members = [event.pdu for event in more]
        return {
            **given,
            "auth_chain": [{}, *given["auth_chain"][::-1], 5, None],
            "state": [*members[::-1], *members[:5], [[]], *given["auth_chain"][:4]],
        }

    fake.serve(bob.user_id, answer=answer)
    await join(bob, str(fake.room_id), fake.server.name)
    state = await state_of(bob, str(fake.room_id))
    assert sum(event_type == "m.room.member" for event_type, _ in state) == 202
    assert {("m.room.create", ""), ("m.room.power_levels", "")} <= state.keys()
    assert list(b.hs.config.data_path("").glob("tmp*")) == []


async def test_the_directory_of_another_server_is_parsed_room_by_room(federation: Federation) -> None:
    a, b, alice, bob = await federation.start_two()
    for number in range(3):
        await create_room(bob, name=f"Room {number}", visibility="public", preset="public_chat")
    page = await alice.ok("GET", "publicRooms?server=b.example&limit=2")
    assert len(page["chunk"]) == 2
    rest = await alice.ok("GET", f"publicRooms?server=b.example&limit=2&since={page['next_batch']}")
    assert {room["name"] for room in page["chunk"] + rest["chunk"]} == {"Room 0", "Room 1", "Room 2"}
