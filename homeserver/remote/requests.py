"""Signed requests to other servers. Spec: server-server-api/#request-authentication

A peer's answer is returned as a value, whatever its status. `Unreachable` is raised if there is no answer. `ask` is for
callers that need a 200 and pass every other answer on to a client.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import trio

from homeserver import limits
from homeserver.api.bodies import count_nodes, is_large
from homeserver.errors import MatrixError
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import authorize_body, encode_content
from homeserver.federation.wire import WireError, WireRequest, WireResponse, WireStream
from homeserver.process.budgets import Hold
from homeserver.process.peers import PERSON, Cause
from homeserver.resources import Resources

_log = logging.getLogger("homeserver.federation")

ERROR_CHARACTERS_MAX = 1_000  # how much of a peer's error message is passed on to a client
# Errors of a peer that a client understands and gets. For any other the client is told that the peer has failed.
_PASSED_STATUSES = frozenset({400, 403, 404})
# These are about the client's session or account here, which only this server may judge. Clients that are told
# M_UNKNOWN_TOKEN log out, and delete their keys.
ERRORS_OF_ACCOUNTS = frozenset({
    "M_MISSING_TOKEN", "M_UNKNOWN_TOKEN", "M_USER_DEACTIVATED", "M_USER_LOCKED", "M_USER_SUSPENDED",
})  # fmt: skip
_NOBODY_THERE = frozenset({502, 503, 504})


class Unreachable(Exception):
    """The destination gave no usable answer: it is unreachable, in back-off, or did not send JSON."""


class Answer(msgspec.Struct, frozen=True):
    """A peer's answer: decoded JSON, of any shape."""

    status: int
    content: Any

    @property
    def errcode(self) -> str:
        """The errcode of an error, "" if there is none."""
        errcode = self.content.get("errcode") if isinstance(self.content, dict) else None
        return errcode if isinstance(errcode, str) else ""

    @property
    def is_unknown_endpoint(self) -> bool:
        """Whether the peer does not know the endpoint, so that an older one may work."""
        return is_unknown_endpoint(self.status, self.errcode)

    def error(self, destination: ServerName) -> MatrixError:
        """Returns the error for the client on whose behalf the peer was asked."""
        is_passed = self.status in _PASSED_STATUSES and self.errcode.startswith("M_")
        if not is_passed or self.errcode in ERRORS_OF_ACCOUNTS:
            return MatrixError(502, "M_UNKNOWN", f"{destination} gave an unusable answer (status {self.status}).")
        text = self.content.get("error")
        return MatrixError(
            self.status, self.errcode[:100], text[:ERROR_CHARACTERS_MAX] if isinstance(text, str) else destination
        )

    def error_for_event(self, destination: ServerName) -> MatrixError:
        """Does the same as `error` if we sent an event of our own: then a malformed request is not the client's."""
        if self.errcode in ("M_MISSING_PARAM", "M_INVALID_PARAM"):
            return MatrixError(502, "M_UNKNOWN", f"{destination} did not accept our event.")
        return self.error(destination)


def is_unknown_endpoint(status: int, errcode: str) -> bool:
    """Returns whether an answer means that the server is older than the endpoint.

    Spec: server-server-api/#unsupported-endpoints. Servers before v1.6 answer 400, or 404 without JSON.
    """
    return (status in (400, 404, 405) and errcode == "M_UNRECOGNIZED") or (status in (404, 405) and not errcode)


def path_to(*segments: str, query: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> str:
    """Returns a path below `/_matrix/federation`, as it is sent and signed."""
    path = "/".join(["/_matrix/federation", *(quote(segment, safe="") for segment in segments)])
    return f"{path}?{urlencode(query)}" if query else path


def authorization_headers(
    hs: Resources, destination: ServerName, method: str, uri: str, body: bytes | None = None
) -> dict[str, str]:
    """Returns the headers that sign a request, for callers that use `hs.wire` directly. `body` is canonical JSON."""
    return {"authorization": authorize_body(method, uri, hs.server_name, destination, hs.signing_key, body)}


def sign_request(hs: Resources, destination: ServerName, method: str, uri: str, content: Any | None) -> WireRequest:
    """Returns a signed request. Raises Unreachable without federation, or NotCanonical."""
    if not hs.config.federation.enabled:
        raise Unreachable("This server does not take part in federation.")
    body = content if content is None or isinstance(content, bytes) else encode_content(content)
    headers = authorization_headers(hs, destination, method, uri, body)
    if body is not None:
        headers["content-type"] = "application/json"
    return WireRequest(method, uri, headers, body)


@asynccontextmanager
async def reaching(hs: Resources, destination: ServerName, cause: Cause) -> AsyncIterator[None]:
    """Guards one request to a server. Every use of `hs.wire` goes through it.

    Waits for the share of the cause. Raises Unreachable if the server is in back-off, and for every WireError of the
    request, which puts the server into back-off. The text of a WireError is only logged: it contains addresses, and
    must not tell users what names in our network resolve to.
    """
    async with hs.peers.shares.take(cause):
        if not hs.peers.admit(destination, hs.now_ms(), cause):
            raise Unreachable(f"{destination} has not answered recently.")
        try:
            yield
        except WireError as error:
            if error.reason != "too_large":
                note_unreachable(hs, destination)
            _log.info("server not reached", extra={"destination": destination, "reason": str(error)})
            raise Unreachable(f"{destination} is unreachable, or its answer is unusable.") from error


def note_unreachable(hs: Resources, destination: ServerName) -> None:
    """Notes that a server did not answer: it gets no background requests for a while."""
    hs.peers.note_failure(hs.server_name, destination, hs.now_ms())


def note_status(hs: Resources, destination: ServerName, status: int, errcode: str = "") -> None:
    """Notes that a server has answered, unless the answer came from a gateway whose server is down."""
    if status in _NOBODY_THERE and not errcode:
        note_unreachable(hs, destination)
    elif status != 500:
        hs.peers.note_contact(destination)


async def send_signed(
    hs: Resources,
    destination: ServerName,
    method: str,
    uri: str,
    content: Any | None = None,
    *,
    cause: Cause = PERSON,
    timeout_s: float = limits.peers.FEDERATION_TIMEOUT_S,
    max_bytes: int = limits.peers.FEDERATION_RESPONSE_BYTES_MAX,
) -> Answer:
    """Returns the answer of a peer. Raises Unreachable.

    content: a value that has canonical JSON, at least by the rules of old room versions, or that JSON itself. Raises
    NotCanonical.
    """
    request = sign_request(hs, destination, method, uri, content)
    with hold_answer(hs, destination, cause) as hold:
        response = await fetch(
            hs, destination, request, cause=cause, hold=hold, timeout_s=timeout_s, max_bytes=max_bytes
        )
        hold.become(_count_bytes(response.body))
        answer = await _read_answer(hs, destination, response)
    if cause.kind != "delivery":  # the sender treats the answers to its transactions itself
        note_status(hs, destination, answer.status, answer.errcode)
    return answer


async def put_event(
    hs: Resources, destination: ServerName, place: Sequence[str], v2: Any, v1: Any | None, *, cause: Cause
) -> Answer:
    """Gives an event of ours to a peer by `PUT /v2/…`, or by /v1 if the peer only knows that. Raises Unreachable.

    place: the segments of the path after the version. v2, v1: the bodies; v1 is None if only a newer peer can take the
    event. An answer of /v1 is returned without the list around it.
    """
    answer = await send_signed(hs, destination, "PUT", path_to("v2", *place), v2, cause=cause)
    if not answer.is_unknown_endpoint or v1 is None:
        return answer
    answer = await send_signed(hs, destination, "PUT", path_to("v1", *place), v1, cause=cause)
    if answer.status == 200 and isinstance(answer.content, list) and len(answer.content) == 2:
        return Answer(200, answer.content[1])
    return answer


def hold_answer(hs: Resources, destination: ServerName, cause: Cause) -> AbstractContextManager[Hold]:
    """Returns a hold for an answer, in the budget that all bodies of peers share."""
    share = "person" if cause.kind in ("person", "action") else "background"
    return hs.budgets.peers.hold(destination, share)


async def fetch(
    hs: Resources,
    destination: ServerName,
    request: WireRequest,
    *,
    cause: Cause,
    hold: Hold,
    timeout_s: float,
    max_bytes: int,
) -> WireResponse:
    """Returns the whole response to one request, taking its memory from `hold`. Raises Unreachable."""
    async with reaching(hs, destination, cause):
        with trio.move_on_after(timeout_s):
            async with hs.wire.stream(destination, request, timeout_s=timeout_s, max_bytes=max_bytes) as response:
                return WireResponse(response.status, response.headers, await _read_whole(response, hold))
        raise WireError(f"the answer was not complete after {timeout_s:g} s", "timeout")


async def _read_whole(response: WireStream, hold: Hold) -> bytes:
    body = bytearray()  # a list of chunks of a byte each would take forty times as much
    async for chunk in response.chunks:
        body += chunk
        await take_for_answer(hold, len(body), len(chunk))
    return bytes(body)


async def take_for_answer(hold: Hold, seen: int, amount: int) -> None:
    """Takes `amount` more bytes for an answer of which `seen` bytes have arrived. A small answer takes nothing.

    Raises Unreachable if there is not enough memory.
    """
    if seen <= limits.http.SMALL_BODY_BYTES:
        return
    try:
        await hold.take(amount)
    except MatrixError as error:
        raise Unreachable("Too many large answers are being read.") from error


def _count_bytes(body: bytes) -> int:
    """Returns the memory for decoding an answer: its text, or the objects of its values."""
    if len(body) <= limits.http.SMALL_BODY_BYTES:
        return 0
    return max(len(body), min(count_nodes(body), limits.peers.ANSWER_NODES_MAX) * limits.http.JSON_NODE_BYTES)


async def _read_answer(hs: Resources, destination: ServerName, response: WireResponse) -> Answer:
    body = response.body
    try:
        if not is_sparse(body):
            raise NotCanonical("It has too many values.")
        if is_large(body, count_nodes(body)):
            return Answer(response.status, await hs.workers.run(_decode, body))
        return Answer(response.status, _decode(body))
    except NotCanonical as error:
        if response.status != 200:
            return Answer(response.status, None)
        raise Unreachable(f"{destination} did not answer with valid JSON: {error}") from error


def _decode(data: bytes) -> Any:
    return canonical_json.decode(data, depth_max=canonical_json.WRAPPED_DEPTH_MAX)


def is_sparse(data: bytes) -> bool:
    """Returns whether JSON text has so few values that decoding takes little memory: each takes a few hundred bytes."""
    return len(data) < limits.peers.ANSWER_NODES_MAX or count_nodes(data) <= limits.peers.ANSWER_NODES_MAX


async def ask(
    hs: Resources,
    destination: ServerName,
    method: str,
    uri: str,
    content: Any | None = None,
    *,
    cause: Cause = PERSON,
    timeout_s: float = limits.peers.FEDERATION_TIMEOUT_S,
    max_bytes: int = limits.peers.FEDERATION_RESPONSE_BYTES_MAX,
) -> dict[str, Any]:
    """Returns the JSON object of a 200. Raises MatrixError: the peer's refusal, or 502 for an unusable answer."""
    try:
        answer = await send_signed(
            hs, destination, method, uri, content,
            cause=cause, timeout_s=timeout_s, max_bytes=max_bytes,
        )  # fmt: skip
    except Unreachable as error:
        raise MatrixError(502, "M_UNKNOWN", str(error)) from error
    if answer.status != 200 or not isinstance(answer.content, dict):
        raise answer.error(destination)
    return answer.content
