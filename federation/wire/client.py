"""An HTTP client for URLs: `.well-known`, media elsewhere, push gateways, application services.

The same connections, guard and limits as between servers, but a URL says where to go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

import trio

from homeserver.federation.wire import WireError, WireResponse, WireStream
from homeserver.federation.wire.dial import Dialer
from homeserver.federation.wire.http1 import Connection, Head, Request, check_announced_length, too_large
from homeserver.federation.wire.pool import Pool, PoolLimits

REDIRECTS_MAX = 5
STREAM_PAUSES_MAX = 4
"""How many times `timeout_s` all pauses of a body may take together, beside what STREAM_BYTES_PER_S allows."""
STREAM_BYTES_PER_S = 32 * 1024
"""A body that comes more slowly holds a place that others wait for; the slowest lines at home are faster."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PRIVATE_HEADERS = frozenset({"authorization", "cookie"})
_DEFAULT_PORTS = {"https": 443, "http": 80}
_URL_SAFE = "!#$%&'()*+,-./:;=?@[]_~"


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host (IPv6 in brackets) and port of a URL."""

    scheme: str
    host: str
    port: int

    @property
    def host_header(self) -> str:
        """The host, with the port where it is not the scheme's own."""
        return self.host if self.port == _DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"


class HttpClient:
    """Requests to URLs. Every method raises WireError and nothing else of its own.

    `schemes` are those allowed, also after a redirect. `timeout_s` and `max_bytes` are as for `Wire`.
    """

    __slots__ = ("_dialer", "_pool")

    def __init__(self, dialer: Dialer, limits: PoolLimits | None = None) -> None:
        self._dialer = dialer
        self._pool: Pool[Origin] = Pool(self._open_connection, limits)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        timeout_s: float,
        max_bytes: int,
        redirects_max: int = 0,
        schemes: tuple[str, ...] = ("https",),
    ) -> WireResponse:
        """The response. Redirects are followed for GET only; one more than `redirects_max` is an error."""
        with trio.move_on_after(timeout_s):
            origin, connection, head = await self._follow(method, url, headers, body, redirects_max, schemes)
            try:
                return WireResponse(head.status, head.headers, await connection.read_body(head, max_bytes))
            finally:
                await self._pool.end(origin, connection)
        raise timed_out(url, timeout_s)

    @asynccontextmanager
    async def stream(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        timeout_s: float,
        max_bytes: int,
        redirects_max: int = REDIRECTS_MAX,
        schemes: tuple[str, ...] = ("https",),
    ) -> AsyncIterator[WireStream]:
        """A GET whose body comes in chunks, redirects followed."""
        begun = None
        with trio.move_on_after(timeout_s):
            begun = await self._follow("GET", url, headers, None, redirects_max, schemes)
        if begun is None:
            raise timed_out(url, timeout_s)
        origin, connection, head = begun
        try:
            yield as_stream(connection, head, timeout_s, max_bytes)
        finally:
            await self._pool.end(origin, connection)

    async def aclose(self) -> None:
        """Closes the idle connections."""
        await self._pool.aclose()

    async def _follow(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        redirects_max: int,
        schemes: tuple[str, ...],
    ) -> tuple[Origin, Connection, Head]:
        for _ in range(redirects_max + 1):
            origin, target = parse_url(url, schemes)
            connection, head = await self._pool.begin(origin, Request(method, target, headers, body))
            if method != "GET" or head.status not in _REDIRECTS or "location" not in head.headers or not redirects_max:
                return origin, connection, head
            # Its body is not read, so the connection is closed: a redirect is too rare to care.
            await self._pool.end(origin, connection)
            url = _join_url(url, head.headers["location"])
            if parse_url(url, schemes)[0] != origin:
                headers = {name: value for name, value in headers.items() if name.lower() not in _PRIVATE_HEADERS}
        raise WireError(f"more than {redirects_max} redirects", "protocol")

    async def _open_connection(self, origin: Origin) -> Connection:
        addresses = await self._dialer.find_addresses(origin.host, origin.port)
        tls_name = origin.host.strip("[]").rstrip(".") if origin.scheme == "https" else None
        stream = await self._dialer.open_stream(addresses, tls_name)
        return Connection(stream, origin.host_header, trio.current_time())


class _Chunks:
    """A response's body as an async iterator; each chunk may take `timeout_s`, all may be `max_bytes` long.

    Who sends a byte at a time does not get `timeout_s` for each for ever.
    """

    __slots__ = ("_connection", "_ended", "_left_bytes", "_left_s", "_max_bytes", "_timeout_s")

    def __init__(self, connection: Connection, timeout_s: float, max_bytes: int) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._left_bytes = max_bytes
        self._left_s = STREAM_PAUSES_MAX * timeout_s
        self._ended = False

    def __aiter__(self) -> _Chunks:
        return self

    async def __anext__(self) -> bytes:
        if self._ended:
            raise StopAsyncIteration
        chunk, began_s = None, trio.current_time()
        with trio.move_on_after(max(0, min(self._timeout_s, self._left_s))):
            chunk = await self._connection.read_chunk()
        if chunk is None:
            raise WireError(f"nothing came for {self._timeout_s:g} s, or too little in all this time", "timeout")
        self._left_s += len(chunk) / STREAM_BYTES_PER_S - (trio.current_time() - began_s)
        if not chunk:
            self._ended = True
            raise StopAsyncIteration
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0:
            raise too_large(self._max_bytes)
        return chunk


def as_stream(connection: Connection, head: Head, timeout_s: float, max_bytes: int) -> WireStream:
    """The response on a connection whose head has been read. Raises WireError if it announces too long a body."""
    check_announced_length(head, max_bytes)
    return WireStream(head.status, head.headers, _Chunks(connection, timeout_s, max_bytes))


def timed_out(what: str, timeout_s: float) -> WireError:
    """The error when all of a request took too long."""
    return WireError(f"{what} did not answer within {timeout_s:g} s", "timeout")


def _join_url(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise WireError(f"not a URL: {error}", "refused") from error


def parse_url(url: str, schemes: tuple[str, ...]) -> tuple[Origin, str]:
    """Where to connect, and the request target. Raises WireError for what no request could or should be made of."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        if host is not None and not host.isascii():
            host = host.encode("idna").decode()
    except ValueError as error:  # UnicodeError too
        raise WireError(f"not a URL: {error}", "refused") from error
    if parts.scheme not in schemes or parts.scheme not in _DEFAULT_PORTS:
        raise WireError(f"a URL must begin with {' or '.join(schemes)}", "refused")
    if not host or parts.username is not None or parts.password is not None or port == 0:
        raise WireError("a URL must name a host, no user and no port 0", "refused")
    target = quote(parts.path or "/", safe=_URL_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_URL_SAFE)
    host = f"[{host}]" if ":" in host else host
    return Origin(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port), target
