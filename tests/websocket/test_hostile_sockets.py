"""Clients that break the rules of WebSockets, that do not read, that say too much, and that are gone without a word."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver import limits
from homeserver.http.asgi import WEBSOCKET_PATH
from homeserver.http.connection import Connection
from homeserver.websocket.deflate import negotiate
from homeserver.websocket.messages import Closing, Malformed, Message, parse
from homeserver.websocket.wire import Wire
from tests.support.federation import create_room, join, send_text
from tests.support.homeservers import Client, Server
from tests.support.sockets import Socket, connected, open_socket

MASK = b"\x01\x02\x03\x04"


def frame(first: int, payload: bytes, *, is_masked: bool = True, length: int | None = None) -> bytes:
    """A frame of a client; `length` is what it claims."""
    size = len(payload) if length is None else length
    bit = 0x80 if is_masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65_536:
        head = struct.pack("!BBH", first, bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, bit | 127, size)
    masked = bytes(byte ^ MASK[at % 4] for at, byte in enumerate(payload)) if is_masked else payload
    return head + (MASK if is_masked else b"") + masked


class Raw:
    """A connection after the handshake, on which a test says what it likes."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._data = b""

    async def next(self) -> tuple[int, bytes] | None:
        """The first byte and the payload of the server's next frame; None at the end of the connection."""
        while True:
            if len(self._data) >= 2:
                size, start = self._data[1], 2
                if size >= 126:
                    start = 4 if size == 126 else 10
                    size = int.from_bytes(self._data[2:start], "big")
                if len(self._data) >= start + size and len(self._data) >= start:
                    found = self._data[0], self._data[start : start + size]
                    self._data = self._data[start + size :]
                    return found
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._data += data

    async def close_code(self) -> int | None:
        """Reads until the server closes the connection, and returns its code; None if it ends without one."""
        with trio.fail_after(300):
            while (found := await self.next()) is not None:
                if found[0] == 0x88:
                    return int.from_bytes(found[1][:2], "big")
        return None


@asynccontextmanager
async def raw(server: Server, client: Client, *headers: str) -> AsyncIterator[Raw]:
    async with connected(server.app) as stream:
        lines = [
            f"GET {WEBSOCKET_PATH} HTTP/1.1", "host: x", "connection: Upgrade", "upgrade: websocket",
            "sec-websocket-version: 13", "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
            f"authorization: Bearer {client.token}", *headers, "", "",
        ]  # fmt: skip
        await stream.send_all("\r\n".join(lines).encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await stream.receive_some(1)
        assert head.startswith(b"HTTP/1.1 101 Switching Protocols\r\n"), head
        yield Raw(stream)


@pytest.fixture
async def alice(homeserver: Server) -> Client:
    return await homeserver.register("alice")


PING = b'{"op":"ping","id":1}'
TOO_LONG = b'{"op":"' + b"x" * limits.websocket.MESSAGE_BYTES_MAX + b'"}'
BROKEN: dict[str, tuple[bytes, int]] = {
    "text that is not JSON": (frame(0x81, b"hello"), 1007),
    "an array": (frame(0x81, b"[]"), 1007),
    "a number": (frame(0x81, b"1"), 1007),
    "half an object": (frame(0x81, b'{"op":'), 1007),
    "two objects": (frame(0x81, b"{}{}"), 1007),
    "nothing": (frame(0x81, b""), 1007),
    "text that is not UTF-8": (frame(0x81, b'{"op":"\xff"}'), 1007),
    "a binary message": (frame(0x82, PING), 1007),
    "deep nesting": (frame(0x81, b'{"body":' + b"[" * 60_000 + b"]" * 8), 1007),
    "a message that is too long": (frame(0x81, TOO_LONG), 1009),
    "a message that is too long in fragments": (
        b"".join([frame(0x01, b" " * 40_000), frame(0x00, b" " * 40_000)]), 1009
    ),
    "a frame without a mask": (frame(0x81, PING, is_masked=False), 1002),
    "an unknown opcode": (frame(0x83, b""), 1002),
    "a reserved bit": (frame(0xC1, PING), 1002),
    "a fragmented ping": (frame(0x09, b""), 1002),
    "a ping that is too long": (frame(0x89, b"x" * 126), 1002),
    "a continuation of nothing": (frame(0x80, PING), 1002),
    "a message in the middle of another one": (frame(0x01, b"{") + frame(0x81, PING), 1002),
    "a close with half a code": (frame(0x88, b"\x03"), 1002),
    "a close with a code that nobody may send": (frame(0x88, struct.pack("!H", 1005)), 1002),
    "a length that is longer than need be": (b"\x81\xfe\x00\x01" + MASK + b"\x00", 1002),
}  # fmt: skip


@pytest.mark.parametrize(("data", "code"), BROKEN.values(), ids=BROKEN)
async def test_messages_that_break_the_rules_close_the_connection(
    homeserver: Server, alice: Client, data: bytes, code: int
) -> None:
    async with raw(homeserver, alice) as socket, trio.open_nursery() as nursery:
        nursery.start_soon(socket.stream.send_all, data)
        assert await socket.close_code() == code


async def test_an_announced_length_reserves_no_memory(homeserver: Server, alice: Client) -> None:
    async with raw(homeserver, alice) as socket:
        await socket.stream.send_all(frame(0x81, b'{"op":', length=1 << 40))
        await trio.testing.wait_all_tasks_blocked()
        await socket.stream.send_all(b" " * limits.websocket.MESSAGE_BYTES_MAX)
        assert await socket.close_code() == 1009


async def test_a_message_may_come_in_fragments_with_pings_between_them(homeserver: Server, alice: Client) -> None:
    async with raw(homeserver, alice) as socket:
        for piece in (frame(0x01, PING[:5]), frame(0x89, b"a"), frame(0x00, PING[5:9]), frame(0x80, PING[9:])):
            for at in range(len(piece)):
                await socket.stream.send_all(piece[at : at + 1])
        assert await socket.next() == (0x8A, b"a")
        answer = await socket.next()
        assert answer is not None and json.loads(answer[1]) == {"id": 1, "status": 200, "body": {}}


async def test_a_close_is_answered_and_ends_the_connection(homeserver: Server, alice: Client) -> None:
    async with raw(homeserver, alice) as socket:
        await socket.stream.send_all(frame(0x88, struct.pack("!H", 1000) + b"bye"))
        assert await socket.close_code() == 1000
        await socket.stream.send_eof()
        assert await socket.next() is None


async def test_a_flood_of_frames_of_any_kind_is_closed_with_4029(homeserver: Server, alice: Client) -> None:
    for flood in (frame(0x89, b""), frame(0x8A, b""), frame(0x01, b"") + frame(0x00, b""), frame(0x81, PING)):
        async with raw(homeserver, alice) as socket, trio.open_nursery() as nursery:
            first = flood[:6] if flood[0] == 0x01 else b""  # then only continuations
            data = first + (flood[6:] if first else flood) * 2_500
            nursery.start_soon(_send, socket.stream, data)
            assert await socket.close_code() == 4029
            nursery.cancel_scope.cancel()


async def _send(stream: trio.abc.SendStream, data: bytes) -> None:
    try:
        await stream.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # the server has closed it


async def test_a_silent_client_is_pinged_and_then_given_up(homeserver: Server, alice: Client) -> None:
    began = trio.current_time()
    async with raw(homeserver, alice) as socket:
        assert await socket.next() == (0x89, b"")
        assert trio.current_time() - began < 60
        assert await socket.next() is None
        assert trio.current_time() - began < 120
    async with raw(homeserver, alice) as socket:
        for _ in range(4):
            assert await socket.next() == (0x89, b"")
            await socket.stream.send_all(frame(0x8A, b""))


async def test_calls_beyond_the_limit_wait_and_none_is_lost(homeserver: Server, alice: Client) -> None:
    async with open_socket(homeserver, alice) as socket:
        since = (await socket.call("sync_events"))["body"]["next_batch"]
        many = 3 * limits.websocket.REQUESTS_AT_ONCE_MAX
        before = homeserver.app.dispatch.hs.stream.waiting
        for number in range(many):
            query = {"since": since, "timeout": 1000 + number, "set_presence": "offline"}
            await socket.send({"id": f"c{number}", "op": "sync_events", "query": query})
        await trio.sleep(0.5)
        assert homeserver.app.dispatch.hs.stream.waiting <= before + limits.websocket.REQUESTS_AT_ONCE_MAX
        for number in range(many):
            assert (await socket.answer_to(f"c{number}"))["status"] == 200


class Stuck(trio.abc.HalfCloseableStream):
    """The server's end of a connection whose client stops receiving."""

    def __init__(self, stream: trio.StapledStream[Any, Any]) -> None:
        self._stream = stream
        self.is_stuck = False
        self.go_on = trio.Event()

    async def send_all(self, data: Any) -> None:
        if self.is_stuck:
            await self.go_on.wait()
        await self._stream.send_all(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self.go_on.set()  # what is being sent fails, as on a real connection
        await self._stream.aclose()


async def test_a_client_that_does_not_read_is_closed_with_4008_and_holds_up_nobody(homeserver: Server) -> None:
    alice, bob, carol = [await homeserver.register(name) for name in ("alice", "bob", "carol")]
    room_id = await create_room(alice, preset="public_chat")
    await join(bob, room_id)
    await join(carol, room_id)
    async with open_socket(homeserver, bob, wrap=Stuck) as stuck, open_socket(homeserver, carol) as reading:
        for socket in (stuck, reading):
            await socket.send({"op": "sync"})
            await socket.next_push()
        assert isinstance(stuck.server_stream, Stuck)
        stuck.server_stream.is_stuck = True
        for number in range(20):
            await send_text(alice, room_id, f"message {number}")
            await reading.next_push()
        await trio.sleep(limits.websocket.STALLED_SECONDS_MAX + 2 * limits.websocket.SWEEP_SECONDS)
        stuck.server_stream.go_on.set()
        assert await stuck.until_closed() == 4008
        rooms = [answer["rooms"]["join"][room_id] for answer in stuck.pushed if room_id in str(answer.get("rooms"))]
        assert sum(len(room["timeline"]["events"]) for room in rooms) == 1  # the rest was not read from the database


async def test_a_client_that_does_not_read_gets_no_more_pongs_than_may_wait_for_it(
    homeserver: Server, alice: Client
) -> None:
    answers = homeserver.app.dispatch.hs.budgets.answers
    async with open_socket(homeserver, alice, wrap=Stuck) as stuck, trio.open_nursery() as nursery:
        await stuck.call("whoami")
        _stop_receiving(stuck)
        for second in range(12):
            for number in range(300):
                nursery.start_soon(stuck.websocket.ping, b"%0125d" % (300 * second + number))
            await trio.sleep(1)
        assert 0 < answers.held <= limits.websocket.UNSENT_BYTES_MAX + 200
        nursery.cancel_scope.cancel()


def _stop_receiving(socket: Socket) -> Stuck:
    assert isinstance(socket.server_stream, Stuck)
    socket.server_stream.is_stuck = True
    return socket.server_stream


async def test_answers_that_wait_for_a_client_count_towards_the_large_answers_of_its_user(
    homeserver: Server, alice: Client
) -> None:
    answers = homeserver.app.dispatch.hs.budgets.answers
    await store_large(alice)
    get = {"op": "get_account_data", "path": [alice.user_id, "org.example.large"]}
    async with open_socket(homeserver, alice, wrap=Stuck) as stuck:
        await stuck.call("whoami")
        stream = _stop_receiving(stuck)
        for number in range(3):
            await stuck.send({"id": number, **get})
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert answers.held >= LARGE
        stream.go_on.set()
        for number in range(3):
            assert (await stuck.answer_to(number))["status"] == 200
        await trio.testing.wait_all_tasks_blocked()
        assert answers.held == 0


async def test_a_user_with_too_many_unreceived_answers_is_told_nothing_large_over_any_socket(
    homeserver: Server, alice: Client
) -> None:
    await store_large(alice)
    async with open_socket(homeserver, alice) as socket:
        with homeserver.app.dispatch.hs.budgets.answers.hold(alice.user_id) as hold:
            hold.become(limits.http.LARGE_ANSWERS_BYTES_EACH + 1)
            assert (await socket.call("get_account_data", alice.user_id, "org.example.large"))["status"] == 429
            assert (await socket.call("get_token_owner"))["status"] == 200
            await socket.send({"op": "sync"})
            await trio.sleep(3)
            assert not socket.pushed
        assert (await socket.next_push())["next_batch"]


LARGE = 300_000


async def store_large(client: Client) -> None:
    """Stores account data so large that an answer with it counts."""
    path = f"/_matrix/client/v3/user/{client.user_id}/account_data/org.example.large"
    await client.put(path, {"text": "x" * LARGE})


# --- compression ---

OFFER = "sec-websocket-extensions: permessage-deflate; client_max_window_bits"


def deflate(data: bytes, bits: int = 12) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -bits)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def test_compressed_messages_are_read_and_sent(homeserver: Server, alice: Client) -> None:
    async with raw(homeserver, alice, OFFER) as socket:
        data = deflate(PING)
        await socket.stream.send_all(frame(0x41, data[:4]) + frame(0x89, b"") + frame(0x80, data[4:]))
        assert await socket.next() == (0x8A, b"")
        answer = await socket.next()
        assert answer == (0x81, b'{"id":1,"status":200,"body":{}}')
        await socket.stream.send_all(frame(0xC1, deflate(b'{"op":"get_push_rules","id":2}')))
        found = await socket.next()
        assert found is not None and found[0] == 0xC1
        body = zlib.decompressobj(-15).decompress(found[1] + b"\x00\x00\xff\xff")
        assert json.loads(body)["status"] == 200 and len(found[1]) < len(body) / 2


async def test_a_message_that_inflates_to_too_much_is_closed_with_1009(homeserver: Server, alice: Client) -> None:
    async with raw(homeserver, alice, OFFER) as socket:
        bomb = deflate(b'{"op":"' + b"x" * 10_000_000 + b'"}')
        assert len(bomb) < 20_000
        await socket.stream.send_all(frame(0xC1, bomb))
        assert await socket.close_code() == 1009
    async with raw(homeserver, alice, OFFER) as socket:
        await socket.stream.send_all(frame(0xC1, b"\xff\xff\xff\xff\xff"))
        assert await socket.close_code() == 1007


EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
LAST_BLOCK = b"\x03\x00"


@pytest.mark.parametrize(
    "data", [EMPTY_BLOCK * 20_000, LAST_BLOCK + b"\x00" * 100_000], ids=["empty", "after the last"]
)
async def test_a_message_of_which_nothing_is_inflated_is_limited_as_well(
    homeserver: Server, alice: Client, data: bytes
) -> None:
    async with raw(homeserver, alice, OFFER) as socket, trio.open_nursery() as nursery:
        nursery.start_soon(_send, socket.stream, frame(0xC1, data, length=1 << 40))
        assert await socket.close_code() == 1009
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        ("permessage-deflate", "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
        ("x-webkit-deflate-frame", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate; server_max_window_bits=8", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=015", None),
        ("permessage-deflate; server_max_window_bits=0150", None),
        ("permessage-deflate; client_max_window_bits=015" + "0" * 5_000, None),
        ("permessage-deflate; client_max_window_bits=١٢", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        (
            "permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=10",
        ),
    ],
)  # fmt: skip
def test_offers_are_accepted_only_if_they_can_be_kept(offer: str, agreed: str | None) -> None:
    found = negotiate(offer)
    assert (None if found is None else found.agreed) == agreed


# --- anything at all ---

PIECES = st.one_of(
    st.binary(max_size=200),
    st.builds(
        frame, st.sampled_from((0x81, 0x01, 0x80, 0x00, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0x41)),
        st.one_of(st.binary(max_size=200), st.just(PING), st.just(deflate(PING))), is_masked=st.booleans(),
    ),
)  # fmt: skip


@given(pieces=st.lists(PIECES, max_size=8), is_compressed=st.booleans(), size=st.integers(1, 64))
@settings(max_examples=150)
def test_bytes_of_any_kind_are_messages_or_a_close_and_never_an_error(
    pieces: list[bytes], is_compressed: bool, size: int
) -> None:
    data = b"".join(pieces)

    async def run() -> None:
        client, server = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            wire = Wire(
                Connection(server), data[:3], negotiate("permessage-deflate") if is_compressed else None, nursery
            )
            for at in range(3, len(data), size):
                await client.send_all(data[at : at + size])
            await client.send_eof()
            try:
                while (message := await wire.receive()) is not None:
                    message.decode()
                    assert len(message) <= limits.websocket.MESSAGE_BYTES_MAX
            except Closing as closing:
                assert closing.code in (1002, 1007, 1009)
            nursery.cancel_scope.cancel()

    trio.run(run)


NAMES = st.sampled_from(("op", "id", "path", "query", "body", "ack", "since", "filter", "token", "x"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


@given(data=st.binary(max_size=100) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_json_of_any_kind_is_a_message_or_is_refused(data: bytes) -> None:
    try:
        assert isinstance(parse(data), Message)
    except Closing as closing:
        assert closing.code == 1007
    except Malformed as malformed:
        assert malformed.error.status == 400
