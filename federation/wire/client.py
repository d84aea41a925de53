"""An HTTP client for URLs: `.well-known`, redirected media, push gateways, application services.

It uses the same connections, guard and limits as requests between servers, but a URL says where to connect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import quote, urljoin, urlsplit

import msgspec
import trio
from msgspec.structs import replace

from homeserver.federation.wire import WireError, WireRequest, WireResponse, WireStream
from homeserver.federation.wire.dial import Dialer
from homeserver.federation.wire.http1 import Connection, Head, check_announced_length, too_large
from homeserver.federation.wire.pool import Pool, PoolLimits

REDIRECTS_MAX = 5
STREAM_PAUSES_MAX = 4
"""How many times `timeout_s` all pauses of a body may take together, beyond what STREAM_BYTES_PER_S allows."""
STREAM_BYTES_PER_S = 32 * 1024
"""A slower body occupies a place that others wait for. Even the slowest home connections are faster than this."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PRIVATE_HEADERS = frozenset({"authorization", "cookie"})
_DEFAULT_PORTS = {"https": 443, "http": 80}
_URL_SAFE = "!#$%&'()*+,-./:;=?@[]_~"


class Origin(msgspec.Struct, frozen=True):
    """Scheme, host (IPv6 in brackets) and port of a URL."""

    scheme: str
    host: str
    port: int

    @property
    def host_header(self) -> str:
        """The host, with the port unless it is the scheme's default."""
        return self.host if self.port == _DEFAULT_PORTS[self.scheme] else f"{self.host}:{self.port}"


class HttpClient:
    """Sends requests to URLs. Every method raises WireError and nothing else of its own.

    `schemes` are the allowed ones; redirects must use them too. `timeout_s` and `max_bytes` are as for `Wire`.
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
        """Returns the response. Follows redirects for GET only; more than `redirects_max` of them are an error."""
        with trio.move_on_after(timeout_s):
            origin, connection, head, _ = await self._follow(method, url, headers, body, redirects_max, schemes)
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
        """Sends a GET and yields the response with its body in chunks. Follows redirects."""
        begun = None
        with trio.move_on_after(timeout_s):
            begun = await self._follow("GET", url, headers, None, redirects_max, schemes)
        if begun is None:
            raise timed_out(url, timeout_s)
        origin, connection, head, from_url = begun
        try:
            yield replace(as_stream(connection, head, timeout_s, max_bytes), url=from_url)
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
    ) -> tuple[Origin, Connection, Head, str]:
        for _ in range(redirects_max + 1):
            origin, target = parse_url(url, schemes)
            connection, head = await self._pool.begin(origin, WireRequest(method, target, headers, body))
            if method != "GET" or head.status not in _REDIRECTS or "location" not in head.headers or not redirects_max:
                return origin, connection, head, url
            # The redirect's body is not read, so its connection cannot be kept. Redirects are too rare to matter.
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
    """A response's body as an async iterator. Limits: `timeout_s` for each chunk, `max_bytes` for all of them.

    The pauses are limited as a whole too, so a server that sends a byte at a time cannot go on forever.
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
            raise WireError(f"the body stalled for {self._timeout_s:g} s, or arrived too slowly", "timeout")
        self._left_s += len(chunk) / STREAM_BYTES_PER_S - (trio.current_time() - began_s)
        if not chunk:
            self._ended = True
            raise StopAsyncIteration
        self._left_bytes -= len(chunk)
        if self._left_bytes < 0:
            raise too_large(self._max_bytes)
        return chunk


def as_stream(connection: Connection, head: Head, timeout_s: float, max_bytes: int) -> WireStream:
    """Returns the response on a connection whose head was read. Raises WireError if the announced body is too long."""
    check_announced_length(head, max_bytes)
    return WireStream(head.status, head.headers, _Chunks(connection, timeout_s, max_bytes))


def timed_out(what: str, timeout_s: float) -> WireError:
    """Returns the error for a whole request that took too long."""
    return WireError(f"{what} did not answer within {timeout_s:g} s", "timeout")


def _join_url(base: str, location: str) -> str:
    try:
        return urljoin(base, location)
    except ValueError as error:
        raise WireError(f"not a URL: {error}", "refused") from error


def parse_url(url: str, schemes: tuple[str, ...]) -> tuple[Origin, str]:
    """Returns where to connect, and the request target. Raises WireError for a URL that cannot or must not be used."""
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
        raise WireError("a URL must have a host, and neither a user nor port 0", "refused")
    target = quote(parts.path or "/", safe=_URL_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_URL_SAFE)
    host = f"[{host}]" if ":" in host else host
    return Origin(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port), target
