"""The wire: carries requests from one server to another. Spec: server-server-api/#api-standards

`Wire` is the interface. `federation.wire.internet.InternetWire` speaks HTTPS to the internet; tests connect several
servers in one process with another implementation. Requests arrive here complete: the caller signs them
(`federation.request_auth`) and backs off from servers that fail.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import msgspec

from homeserver.federation.identifiers import ServerName

WireFailure = Literal["discovery", "dns", "refused", "connect", "tls", "timeout", "protocol", "too_large"]


class WireError(Exception):
    """There was no usable HTTP response. An HTTP error status is a response, not a `WireError`.

    `reason` is one of: "discovery" (the server name leads nowhere), "dns", "refused" (an address or URL that we may not
    connect to), "connect", "tls", "timeout", "protocol" (the response is not HTTP, or ended early), "too_large".
    """

    def __init__(self, message: str, reason: WireFailure = "connect") -> None:
        super().__init__(message)
        self.reason: WireFailure = reason


class WireRequest(msgspec.Struct, frozen=True):
    """A request to send. `path` begins with "/" and includes the query string.

    Host and Content-Length are added when it is sent.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes | None = None


class WireResponse(msgspec.Struct, frozen=True):
    """A whole response. Header names are lower case; repeated headers are joined by ", "."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class WireStream(msgspec.Struct, frozen=True):
    """A response whose body is still to come. `chunks` can be read once, inside the context manager that yielded it.

    `url`: where the response comes from, after redirects; "" if the request was not for a URL.
    """

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]
    url: str = ""


class Wire(Protocol):
    """Carries HTTP requests to other servers. Every method raises `WireError` and nothing else of its own.

    `max_bytes` limits the response body.
    """

    def stream(
        self, destination: ServerName, request: WireRequest, *, timeout_s: float, max_bytes: int
    ) -> AbstractAsyncContextManager[WireStream]:
        """Yields the response to a request. Does not follow redirects.

        `timeout_s` applies to the head, including discovery, then to each chunk. A body that arrives very slowly
        throughout is given up as well.
        """
        ...

    def stream_url(self, url: str, *, timeout_s: float, max_bytes: int) -> AbstractAsyncContextManager[WireStream]:
        """Sends a GET to an https URL from a server (the `Location` of its media). Follows redirects."""
        ...

    def stream_page(
        self, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int
    ) -> AbstractAsyncContextManager[WireStream]:
        """Sends a GET to an http or https URL of a web page that a user has chosen. Follows redirects."""
        ...

    async def request_url(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int,
    ) -> WireResponse:
        """Returns the whole response to a request to a URL that a user has chosen, such as that of a push gateway.

        Does not follow redirects. http is allowed only where private addresses are.
        """
        ...

    async def request_service(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int,
    ) -> WireResponse:
        """Returns the whole response to a request to a URL that the operator has chosen: http and private are fine.

        Does not follow redirects.
        """
        ...
