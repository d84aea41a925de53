"""Requests to other servers, signed. Spec: server-server-api/#request-authentication

What a peer answers is a value, whatever its status; that it does not answer is `Unreachable`. `ask` is for callers who
want a 200 and pass everything else on to a client.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from homeserver import limits
from homeserver.errors import MatrixError
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import authorize_body, encode_content
from homeserver.federation.wire import WireError
from homeserver.peers import note_failure
from homeserver.resources import Resources

ERROR_CHARACTERS_MAX = 1_000  # of a peer's words that are repeated to a client
# Errors that a peer may answer and that a client understands; with any other it is told that the peer has failed.
_PASSED_STATUSES = frozenset({400, 403, 404})


class Unreachable(Exception):
    """The destination gave no usable answer: it cannot be reached, is left alone after failures, or spoke no JSON."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a peer answered: decoded JSON, of any shape."""

    status: int
    content: Any

    @property
    def errcode(self) -> str:
        """The errcode of an error, "" where there is none."""
        errcode = self.content.get("errcode") if isinstance(self.content, dict) else None
        return errcode if isinstance(errcode, str) else ""

    def error(self, destination: ServerName) -> MatrixError:
        """What to tell a client for whom the peer was asked."""
        if self.status == 200 or self.status not in _PASSED_STATUSES or not self.errcode.startswith("M_"):
            return MatrixError(502, "M_UNKNOWN", f"{destination} did not answer as it should ({self.status}).")
        text = self.content.get("error")
        return MatrixError(
            self.status, self.errcode[:100], text[:ERROR_CHARACTERS_MAX] if isinstance(text, str) else destination
        )


def path_to(*segments: str, query: Mapping[str, str] | Sequence[tuple[str, str]] = ()) -> str:
    """A path below `/_matrix/federation`, as it is sent and signed."""
    path = "/".join(["/_matrix/federation", *(quote(segment, safe="") for segment in segments)])
    return f"{path}?{urlencode(query)}" if query else path


def authorization_headers(
    hs: Resources, destination: ServerName, method: str, uri: str, body: bytes | None = None
) -> dict[str, str]:
    """The headers that sign a request, for callers that use `hs.wire` themselves. `body` is canonical JSON."""
    return {"authorization": authorize_body(method, uri, hs.server_name, destination, hs.signing_key, body)}


Decode = Callable[[bytes], Any]


def _decode(data: bytes) -> Any:
    return canonical_json.decode(data, depth_max=canonical_json.WRAPPED_DEPTH_MAX)


async def send_signed(
    hs: Resources,
    destination: ServerName,
    method: str,
    uri: str,
    content: Any | None = None,
    *,
    timeout_s: float = limits.FEDERATION_TIMEOUT_S,
    max_bytes: int = limits.FEDERATION_RESPONSE_BYTES_MAX,
    insist: bool = False,
    decode: Decode = _decode,
) -> Answer:
    """The answer of a peer. Raises Unreachable; `insist` asks even one that has failed lately.

    content: what has canonical JSON, of an old room version at worst, or that JSON itself. Raises NotCanonical.
    decode: reads the answer; `decode_parts` where each of its parts is judged alone.
    """
    if not hs.config.federation.enabled:
        raise Unreachable("This server does not take part in federation.")
    if not insist and hs.peers.is_left_alone(destination, hs.now_ms()):
        raise Unreachable(f"{destination} has not answered lately.")
    body = content if content is None or isinstance(content, bytes) else encode_content(content)
    headers = authorization_headers(hs, destination, method, uri, body)
    if body is not None:
        headers["content-type"] = "application/json"
    try:
        response = await hs.wire.request(
            destination, method, uri, headers=headers, body=body, timeout_s=timeout_s, max_bytes=max_bytes
        )
    except WireError as error:
        if error.reason != "too_large":
            leave_alone(hs, destination)
        raise Unreachable(f"{destination} cannot be reached: {error}") from error
    hs.peers.standings.pop(destination, None)
    try:
        if len(response.body) > limits.DECODE_INLINE_BYTES_MAX:
            return Answer(response.status, await hs.workers.run(decode, response.body))
        return Answer(response.status, decode(response.body))
    except NotCanonical as error:
        if response.status != 200:
            return Answer(response.status, None)
        raise Unreachable(f"{destination} did not answer with JSON: {error}") from error


def leave_alone(hs: Resources, destination: ServerName) -> None:
    """Notes a failure: nothing is asked of the server for a while, longer each time."""
    before = hs.peers.standings.get(destination)
    delay_ms = retry_delay_ms(hs.server_name, destination, 0 if before is None else before.failures)
    note_failure(hs.peers.standings, destination, hs.now_ms(), delay_ms)


def retry_delay_ms(server_name: ServerName, destination: ServerName, failures: int) -> int:
    """How long to wait after a failure that so many went before: doubling, and different between each two servers."""
    delay_ms = min(limits.RETRY_MS << min(failures, 20), limits.RETRY_MS_MAX)
    jitter = zlib.crc32(f"{server_name} {destination} {failures}".encode()) % 1000  # nobody comes in step with another
    return delay_ms * (800 + jitter * 400 // 1000) // 1000


async def ask(
    hs: Resources,
    destination: ServerName,
    method: str,
    uri: str,
    content: Any | None = None,
    *,
    timeout_s: float = limits.FEDERATION_TIMEOUT_S,
    max_bytes: int = limits.FEDERATION_RESPONSE_BYTES_MAX,
    insist: bool = False,
    decode: Decode = _decode,
) -> dict[str, Any]:
    """The JSON object of a 200. MatrixError: what the peer refused, or 502 M_UNKNOWN where it did not answer well."""
    try:
        answer = await send_signed(
            hs, destination, method, uri, content,
            timeout_s=timeout_s, max_bytes=max_bytes, insist=insist, decode=decode,
        )  # fmt: skip
    except Unreachable as error:
        raise MatrixError(502, "M_UNKNOWN", str(error)) from error
    if answer.status != 200 or not isinstance(answer.content, dict):
        raise answer.error(destination)
    return answer.content
