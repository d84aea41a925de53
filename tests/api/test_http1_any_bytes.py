"""HTTP/1.1: any bytes at all, in any pieces. There is always an end, and never a 500.

Spec: RFC 9112 (HTTP/1.1), sections 2 to 7
"""

from __future__ import annotations

import logging
import re
from typing import Any

import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.http.http1 import Refused, parse_head
from tests.api.http1_door import ECHO, PARTS, ask, make_door
from tests.support.examples import share_of_examples

GET_ECHO = ask("GET", ECHO)
TOKENS = st.sampled_from(
    [
        b"GET ",
        b"POST ",
        b"HEAD ",
        b"OPTIONS ",
        b"PUT ",
        b"BREW ",
        b"PRI * ",
        ECHO.encode(),
        PARTS.encode(),
        b"*",
        b"?a=b",
        b"http://x/",
        b"#",
        b" HTTP/1.1",
        b" HTTP/1.0",
        b" HTTP/2.0",
        b"\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b"host: x\r\n",
        b"content-length: 5\r\n",
        b"content-length: 0\r\n",
        b"Content-Length:",
        b"hello",
        b"\0",
        b"\xff",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: x\r\n",
        b"connection: close\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"connection: upgrade\r\n",
        b"upgrade: websocket\r\n",
        b"expect: 100-continue\r\n",
        GET_ECHO,
        ask("POST", ECHO, "content-length: 5", body=b"hello"),
        ask("POST", ECHO, "transfer-encoding: chunked"),
    ]
)
STREAMS = st.lists(TOKENS | st.binary(max_size=8), max_size=25).map(b"".join)


@settings(max_examples=share_of_examples(8))
@given(STREAMS, st.lists(st.integers(0, 400), max_size=6))
def test_any_bytes_have_the_same_answers_however_they_arrive(data: bytes, cuts: list[int]) -> None:
    """There is always an end, and never a 500. Answers to nonsense may come before all of it has arrived."""

    async def main() -> None:
        door = make_door()
        ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
        pieces = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        with trio.fail_after(60):
            whole = statuses_of(await door.talk(data))
            parts = statuses_of(await door.talk(*pieces))
        assert [status for status in whole if status != 100] == [status for status in parts if status != 100]
        assert all(status < 500 or status in (501, 505) for status in whole)

    run(main)


def statuses_of(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def run(main: Any) -> None:
    """Runs under a virtual clock. Fails if anything was logged."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger("homeserver").addHandler(handler)
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        logging.getLogger("homeserver").removeHandler(handler)
    assert not records


@settings(max_examples=share_of_examples(10))
@given(STREAMS)
def test_a_head_is_read_or_refused(data: bytes) -> None:
    """Nothing that is read could be read in another way: no other line ends, no two lengths, no unknown version."""
    raw = data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    try:
        head = parse_head(raw)
    except Refused as refused:
        assert refused.status in (400, 405, 431, 501, 505)
        return
    assert raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
    lines = [line.lower() for line in raw[:-4].split(b"\r\n")[1:]]
    assert len(lines) == len(head.headers)
    framing = [line for line in lines if line.startswith((b"content-length", b"transfer-encoding"))]
    assert len(framing) <= 1
    assert bool(framing) or head.length == 0
    assert head.path.startswith("/") or head.path == "*"
    assert head.method.encode() + b" " == raw[: len(head.method) + 1]
