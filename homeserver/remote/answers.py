"""Reads large answers of other servers while they arrive.

The answers to `/state`, `/send_join` and the like may have hundreds of megabytes, and a hostile server may send
anything. So such an answer is never held as a whole: it is read in small slices, and each element is passed to a
function that takes or refuses it. Reading ends when the function has enough, when most of the elements are junk, or
when the time is up. Everything happens on the event loop, in slices of about a millisecond, so that other tasks run in
between and reading can be cancelled at any moment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import msgspec
import trio

from homeserver import limits
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import ServerName
from homeserver.federation.json_stream import Splitter
from homeserver.federation.wire import WireError, WireStream
from homeserver.process.budgets import Hold
from homeserver.process.peers import Cause
from homeserver.remote.requests import (
    Answer,
    Unreachable,
    hold_answer,
    is_sparse,
    note_status,
    reaching,
    sign_request,
    take_for_answer,
)
from homeserver.resources import Resources

_SLICE_BYTES = 16 * 1024
_ERROR_BYTES_MAX = 64 * 1024

Verdict = Literal["taken", "junk", "full"]
Take = Callable[[bytes], Verdict]
"""Gets the bytes of one element. Returns "junk" if it is useless, "full" if no further elements are wanted."""


async def ask_many(
    hs: Resources,
    destination: ServerName,
    method: str,
    uri: str,
    content: Any | None = None,
    *,
    cause: Cause,
    take: Mapping[str, Take],
    members: Collection[str] = (),
    timeout_s: float,
    max_bytes: int,
) -> Answer:
    """Does the same as `send_signed` for an answer with large arrays. Only `members` of its other content are kept.

    take: for each wanted array the function for its elements. timeout_s: for the whole answer. Raises Unreachable, also
    if the answer is not JSON or is mostly junk; the caller should then forget the elements taken so far.
    """
    request = sign_request(hs, destination, method, uri, content)
    try:
        async with reaching(hs, destination, cause):
            with trio.move_on_after(timeout_s):
                async with hs.wire.stream(destination, request, timeout_s=timeout_s, max_bytes=max_bytes) as response:
                    with hold_answer(hs, destination, cause) as hold:
                        answer = await _read(response, take, members, hold)
                note_status(hs, destination, answer.status, answer.errcode)
                return answer
            raise WireError(f"the answer was not complete after {timeout_s:g} s", "timeout")
    except NotCanonical as error:
        raise Unreachable(f"{destination} sent a malformed answer: {error}") from error


async def _read(response: WireStream, take: Mapping[str, Take], members: Collection[str], hold: Hold) -> Answer:
    if response.status != 200:
        return Answer(response.status, await _read_error(response))
    splitter = Splitter(take.keys(), members, element_bytes_max=limits.peers.ANSWER_ELEMENT_BYTES_MAX)
    tally = _Tally()
    is_large = False
    while chunk := await _next_chunk(response):
        if not is_large and tally.read_bytes + len(chunk) > limits.http.SMALL_BODY_BYTES:
            is_large = True
            await take_for_answer(hold, tally.read_bytes + len(chunk), limits.peers.ANSWER_ELEMENT_BYTES_MAX)
        for start in range(0, len(chunk), _SLICE_BYTES):
            slice_ = chunk[start : start + _SLICE_BYTES]
            tally.read_bytes += len(slice_)
            for name, element in splitter.feed(slice_):
                verdict = take[name](element) if element is not None and is_sparse(element) else "junk"
                if verdict == "full":
                    return Answer(200, splitter.members())
                tally.add(verdict, element)
            tally.check()
            await trio.lowlevel.checkpoint()
    return Answer(200, splitter.close())


class _Tally(msgspec.Struct):
    """How much has been read, and how much of it was useful."""

    read_bytes: int = 0
    taken_bytes: int = 0
    taken: int = 0
    junk: int = 0

    def add(self, verdict: Verdict, element: bytes | None) -> None:
        if verdict == "taken" and element is not None:
            self.taken += 1
            self.taken_bytes += len(element)
        else:
            self.junk += 1

    def check(self) -> None:
        """Raises NotCanonical if there is so much junk that the rest is not worth reading."""
        junk_bytes = self.read_bytes - self.taken_bytes
        too_many = self.junk > limits.peers.ANSWER_JUNK_MAX and self.junk > self.taken
        if too_many or (junk_bytes > limits.peers.ANSWER_JUNK_BYTES_MAX and junk_bytes > self.taken_bytes):
            raise NotCanonical("Most of the answer is useless.")


async def _next_chunk(response: WireStream) -> bytes:
    """Returns the next piece of the body, b"" after its end."""
    with trio.move_on_after(limits.peers.ANSWER_IDLE_S):
        return await anext(response.chunks, b"")
    raise WireError(f"nothing came for {limits.peers.ANSWER_IDLE_S:g} s", "timeout")


async def _read_error(response: WireStream) -> Any:
    body = b""
    while len(body) <= _ERROR_BYTES_MAX and (chunk := await _next_chunk(response)):
        body += chunk
    try:
        return canonical_json.decode(body) if len(body) <= _ERROR_BYTES_MAX and is_sparse(body) else None
    except NotCanonical:
        return None
