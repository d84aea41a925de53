"""The wire: how one server's requests reach another. Spec: server-server-api/#api-standards

`Wire` is the interface. `federation.wire.internet.InternetWire` speaks HTTPS to the world; tests join several servers
in one process with another implementation. Requests arrive here complete: signing them (`federation.request_auth`)
and backing off from servers that fail are the caller's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from homeserver.federation.identifiers import ServerName

WireFailure = Literal["discovery", "dns", "refused", "connect", "tls", "timeout", "protocol", "too_large"]


class WireError(Exception):
    """No usable HTTP response was had. An HTTP error status is a response, not a `WireError`.

    `reason` is one of: "discovery" (the server name leads nowhere), "dns", "refused" (an address or URL that we may not
    talk to), "connect", "tls", "timeout", "protocol" (what came is not HTTP, or ended early), "too_large".
    """

    def __init__(self, message: str, reason: WireFailure = "connect") -> None:
        super().__init__(message)
        self.reason: WireFailure = reason


@dataclass(frozen=True, slots=True)
class WireResponse:
    """A whole response. Header names are lower case; repeated headers are joined by ", "."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class WireStream:
    """A response whose body is still to come. `chunks` can be read once, inside the context manager that gave it."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Wire(Protocol):
    """Carries HTTP requests to other servers. Every method raises `WireError` and nothing else of its own.

    `path` begins with "/" and includes the query string. `max_bytes` limits the response body.
    """

    async def request(
        self,
        destination: ServerName,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout_s: float,
        max_bytes: int,
    ) -> WireResponse:
        """The response to one request, redirects not followed. `timeout_s` is for all of it, discovery included."""
        ...

    def stream(
        self,
        destination: ServerName,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int,
    ) -> AbstractAsyncContextManager[WireStream]:
        """As `request`, but the body comes in chunks. `timeout_s` is for the head, and then for each chunk.

        A body that comes very slowly all the time is given up too.
        """
        ...

    def stream_url(
        self, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int
    ) -> AbstractAsyncContextManager[WireStream]:
        """A GET of an https URL that a server named (the `Location` of its media); redirects are followed."""
        ...
