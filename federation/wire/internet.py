"""The wire to the internet: discovery, DNS, TLS, HTTP/1.1. Spec: server-server-api/#server-discovery

There is one connection pool keyed by server name. Discovery runs only when no open connection is left in the pool, so a
request on a pooled connection costs nothing extra. Connections have a maximum age, so that a changed delegation takes
effect soon.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec
import trio
from msgspec.structs import replace

from homeserver.federation.discovery import (
    WELL_KNOWN_BYTES_MAX,
    WELL_KNOWN_PATH,
    WELL_KNOWN_REDIRECTS_MAX,
    WELL_KNOWN_TIMEOUT_S,
    Discovery,
    Failed,
    FetchWellKnown,
    Found,
    LookupSRV,
    WellKnownCache,
)
from homeserver.federation.identifiers import ServerName
from homeserver.federation.wire import WireError, WireRequest, WireResponse, WireStream
from homeserver.federation.wire.client import HttpClient, as_stream, timed_out
from homeserver.federation.wire.dial import ConnectTCP, Dialer, is_own_address
from homeserver.federation.wire.dns import Resolver
from homeserver.federation.wire.http1 import Connection
from homeserver.federation.wire.pool import Pool, PoolLimits

USER_AGENT = "homeserver"
_GIVEN_UP_AFTER_S = 3.0


# Users choose these hosts. They must not use up the connections that other servers need.
OUTBOUND_LIMITS = PoolLimits(busy_per_host_max=16, busy_max=256, idle_max=64)


class OutboundRules(msgspec.Struct, frozen=True):
    """The rules for URLs that users choose. See `Dialer`."""

    ca_file: str = ""
    verify_tls: bool = True
    allow_private_addresses: bool = False


class InternetWire:
    """A `Wire` over HTTPS. Create one per server, and `aclose` it at the end.

    `ca_file` is a PEM bundle trusted in addition to the system's, "" for none; raises OSError if it cannot be read.
    `outbound` are the rules for URLs that users choose; the other settings are for servers.
    `resolver`, `connect_tcp` and `below` (an integer from range(n)) default to those of the machine.
    """

    __slots__ = (
        "_below",
        "_client",
        "_dialer",
        "_outbound",
        "_outbound_schemes",
        "_pool",
        "_services",
        "_well_known",
        "_well_known_locks",
    )

    def __init__(
        self,
        ca_file: str = "",
        verify_tls: bool = True,
        allow_private_addresses: bool = False,
        *,
        resolver: Resolver | None = None,
        connect_tcp: ConnectTCP | None = None,
        below: Callable[[int], int] = random.randrange,
        limits: PoolLimits | None = None,
        outbound: OutboundRules | None = None,
    ) -> None:
        self._dialer = Dialer(ca_file, verify_tls, allow_private_addresses, resolver=resolver, connect_tcp=connect_tcp)
        self._client = HttpClient(self._dialer)
        self._pool: Pool[ServerName] = Pool(self._open_connection, limits)
        rules = outbound if outbound is not None else OutboundRules()
        outbound_dialer = Dialer(
            rules.ca_file,
            rules.verify_tls,
            rules.allow_private_addresses,
            resolver=self._dialer.resolver,
            connect_tcp=connect_tcp,
            is_refused_own=is_own_address,
        )
        self._outbound = HttpClient(outbound_dialer, OUTBOUND_LIMITS)
        self._services = HttpClient(
            Dialer(rules.ca_file, rules.verify_tls, True, resolver=self._dialer.resolver, connect_tcp=connect_tcp),
            OUTBOUND_LIMITS,
        )
        self._outbound_schemes = ("https", "http") if rules.allow_private_addresses else ("https",)
        self._below = below
        self._well_known = WellKnownCache()
        self._well_known_locks: dict[str, trio.Lock] = {}

    @asynccontextmanager
    async def stream(
        self, destination: ServerName, request: WireRequest, *, timeout_s: float, max_bytes: int
    ) -> AsyncIterator[WireStream]:
        """See `Wire`."""
        begun = None
        with trio.move_on_after(timeout_s):
            begun = await self._pool.begin(destination, replace(request, headers=_with_user_agent(request.headers)))
        if begun is None:
            raise timed_out(destination, timeout_s)
        connection, head = begun
        try:
            yield as_stream(connection, head, timeout_s, max_bytes)
        finally:
            await self._pool.end(destination, connection)

    @asynccontextmanager
    async def stream_url(self, url: str, *, timeout_s: float, max_bytes: int) -> AsyncIterator[WireStream]:
        """See `Wire`."""
        headers = _with_user_agent({})
        async with self._client.stream(url, headers=headers, timeout_s=timeout_s, max_bytes=max_bytes) as response:
            yield response

    @asynccontextmanager
    async def stream_page(
        self, url: str, *, headers: Mapping[str, str], timeout_s: float, max_bytes: int
    ) -> AsyncIterator[WireStream]:
        """See `Wire`."""
        async with self._outbound.stream(
            url,
            headers=_with_user_agent(headers),
            timeout_s=timeout_s,
            max_bytes=max_bytes,
            schemes=("https", "http"),
        ) as response:
            yield response

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
        """See `Wire`."""
        return await self._outbound.request(
            method,
            url,
            headers=_with_user_agent(headers),
            body=body,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
            schemes=self._outbound_schemes,
        )

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
        """See `Wire`."""
        return await self._services.request(
            method,
            url,
            headers=_with_user_agent(headers),
            body=body,
            timeout_s=timeout_s,
            max_bytes=max_bytes,
            schemes=("https", "http"),
        )

    async def discover(self, destination: ServerName) -> Found:
        """Returns where to send requests for a server, without the pool. Raises WireError if its name leads nowhere."""
        discovery = Discovery(destination, self._below)
        while True:
            step = discovery.next_step()
            if isinstance(step, Found):
                return step
            if isinstance(step, Failed):
                raise WireError(step.reason, "discovery")
            if isinstance(step, FetchWellKnown):
                discovery.feed_well_known(await self._find_well_known(step.hostname))
            elif isinstance(step, LookupSRV):
                discovery.feed_srv(await self._dialer.resolver.find_srv(step.name))
            else:
                discovery.feed_addresses(await self._dialer.resolver.find_addresses(step.hostname))

    async def aclose(self) -> None:
        """Closes the idle connections. Requests in progress close theirs when they end."""
        await self._pool.aclose()
        await self._client.aclose()
        await self._outbound.aclose()
        await self._services.aclose()

    async def _open_connection(self, destination: ServerName) -> Connection:
        found = await self.discover(destination)
        stream = await self._dialer.open_stream(found.addresses, found.tls_name)
        return Connection(stream, found.host_header, trio.current_time())

    async def _find_well_known(self, hostname: str) -> ServerName | None:
        """Returns the name that `.well-known` delegates to. Only one task at a time fetches it."""
        cached = self._well_known.find(hostname, trio.current_time())
        if cached is not None:
            return cached[0]
        lock = self._well_known_locks.setdefault(hostname, trio.Lock())
        try:
            async with lock:
                cached = self._well_known.find(hostname, trio.current_time())
                return cached[0] if cached is not None else await self._fetch_well_known(hostname)
        finally:
            if not lock.locked():
                self._well_known_locks.pop(hostname, None)

    async def _fetch_well_known(self, hostname: str) -> ServerName | None:
        began_s = trio.current_time()
        response = None
        try:
            got = await self._client.request(
                "GET",
                f"https://{hostname}{WELL_KNOWN_PATH}",
                headers=_with_user_agent({"Connection": "close"}),
                timeout_s=WELL_KNOWN_TIMEOUT_S,
                max_bytes=WELL_KNOWN_BYTES_MAX,
                redirects_max=WELL_KNOWN_REDIRECTS_MAX,
            )
            response = (got.status, got.headers, got.body)
        except WireError:
            response = None
        except trio.Cancelled:
            # The request that needs this has run out of time. A web server that swallows packets would do the same to
            # every later request, so a long wait without an answer counts as a failure.
            if trio.current_time() - began_s >= _GIVEN_UP_AFTER_S:
                self._well_known.store(hostname, None, trio.current_time())
            raise
        return self._well_known.store(hostname, response, trio.current_time())


def _with_user_agent(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {"User-Agent": USER_AGENT, **headers}
