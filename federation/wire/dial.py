"""Dialling: from addresses to an encrypted stream. The guard checks addresses after lookup and before connecting."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from homeserver.federation.discovery import Address, ip_literal
from homeserver.federation.wire import WireError
from homeserver.federation.wire.dns import Resolver, SystemResolver
from homeserver.federation.wire.guard import refusal
from homeserver.federation.wire.racing import first_answer

STAGGER_S = 0.25
"""How long one address may take before the next one is tried in parallel (RFC 8305 §5)."""

CONNECT_TIMEOUT_S = 10.0
TLS_TIMEOUT_S = 10.0

WEB_PORTS = frozenset({80, 443})

ConnectTCP = Callable[[Address], Awaitable[trio.abc.Stream]]
"""Opens a TCP connection to exactly this address. Raises OSError."""


class Dialer:
    """Opens streams to the first address that answers, by the rules of one section of the configuration.

    `ca_file` is a PEM bundle trusted in addition to the system's, "" for none; raises OSError if it cannot be read.
    `is_refused_own` is for URLs that users choose: addresses for which it is true are refused, except at the ports of
    web servers. Services that listen at a public address of this machine may trust its own requests.
    """

    __slots__ = (
        "_allow_private_addresses",
        "_connect_tcp",
        "_is_refused_own",
        "_tls_context",
        "_verify_tls",
        "resolver",
    )

    def __init__(
        self,
        ca_file: str = "",
        verify_tls: bool = True,
        allow_private_addresses: bool = False,
        *,
        resolver: Resolver | None = None,
        connect_tcp: ConnectTCP | None = None,
        is_refused_own: Callable[[str], bool] = lambda ip: False,
    ) -> None:
        self._is_refused_own = is_refused_own
        self._verify_tls = verify_tls
        self._tls_context = make_tls_context(ca_file, verify_tls) if ca_file else None
        self._allow_private_addresses = allow_private_addresses
        self._connect_tcp = connect_tcp if connect_tcp is not None else open_tcp
        self.resolver: Resolver = resolver if resolver is not None else SystemResolver()

    def _tls(self) -> ssl.SSLContext:
        """Returns the context of all handshakes. Without a `ca_file`, which may be wrong, the first one makes it.

        To read the system's authorities takes 25 ms, and most commands never speak to another server.
        """
        if self._tls_context is None:
            self._tls_context = make_tls_context("", self._verify_tls)
        return self._tls_context

    async def find_addresses(self, host: str, port: int) -> list[Address]:
        """Returns the addresses of a host name or IP literal. Raises WireError if there are none."""
        ip = ip_literal(host)
        found = [ip] if ip is not None else await self.resolver.find_addresses(host)
        if not found:
            raise WireError(f"{host} has no address", "dns")
        return [Address(each, port) for each in found]

    async def open_stream(self, addresses: Sequence[Address], tls_name: str | None) -> trio.abc.Stream:
        """Returns a stream to one of the addresses. Raises WireError.

        The stream is encrypted and authenticated unless `tls_name` is None.
        """
        stream = await self._connect(self._guard(addresses))
        if tls_name is None:
            return stream
        try:
            encrypted = trio.SSLStream(stream, self._tls(), server_hostname=tls_name, https_compatible=True)
            with trio.move_on_after(TLS_TIMEOUT_S):
                await encrypted.do_handshake()
                return encrypted
            raise WireError(f"the TLS handshake with {tls_name} took too long", "timeout")
        except (ssl.SSLError, ValueError, trio.BrokenResourceError) as error:  # ValueError: not a valid host name
            await trio.aclose_forcefully(stream)
            raise WireError(f"{tls_name}: {error.__cause__ or error}", "tls") from error
        except BaseException:  # cancelled, or too slow: nobody else knows the stream
            await trio.aclose_forcefully(stream)
            raise

    def _guard(self, addresses: Sequence[Address]) -> list[Address]:
        if self._allow_private_addresses:
            return list(addresses)
        reasons = [(address, refusal(address.ip) or self._refusal_of_own(address)) for address in addresses]
        passed = [address for address, reason in reasons if reason is None]
        if not passed:
            told = ", ".join(f"{address.ip} is {reason}" for address, reason in reasons)
            raise WireError(told or "no address", "refused")
        return passed

    def _refusal_of_own(self, address: Address) -> str | None:
        return "our own" if address.port not in WEB_PORTS and self._is_refused_own(address.ip) else None

    async def _connect(self, addresses: Sequence[Address]) -> trio.abc.Stream:
        with trio.move_on_after(CONNECT_TIMEOUT_S):
            if len(addresses) == 1:
                try:
                    return await self._connect_tcp(addresses[0])
                except OSError as error:
                    raise WireError(f"{addresses[0].ip} port {addresses[0].port}: {error}", "connect") from error
            return await self._race(addresses)
        raise WireError(f"no answer from {', '.join(address.ip for address in addresses)}", "timeout")

    async def _race(self, addresses: Sequence[Address]) -> trio.abc.Stream:
        """Connects to the first address that answers, in their order unless one is slow (`racing`)."""
        opened: list[trio.abc.Stream] = []
        failures: list[str] = []

        async def connect(address: Address) -> trio.abc.Stream | None:
            try:
                stream = await self._connect_tcp(address)
            except OSError as error:
                failures.append(f"{address.ip} port {address.port}: {error}")
                return None
            opened.append(stream)
            return stream

        won: trio.abc.Stream | None = None
        try:
            won = await first_answer([partial(connect, address) for address in addresses], STAGGER_S)
        finally:
            with trio.CancelScope(shield=True):
                for stream in opened:  # two may have connected before the slower one could be cancelled
                    if stream is not won:
                        await trio.aclose_forcefully(stream)
        if won is None:
            raise WireError("; ".join(failures), "connect")
        return won


async def open_tcp(address: Address) -> trio.abc.Stream:
    """Returns a TCP connection to exactly this address, without any lookup. Raises OSError."""
    family = socket.AF_INET6 if ":" in address.ip else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect((address.ip, address.port))
        return trio.SocketStream(sock)
    except BaseException:  # cancelled, e.g. because another address was faster: nobody else knows the socket
        sock.close()
        raise


def is_own_address(ip: str) -> bool:
    """Returns whether the address is one of this machine: the system would send from it. Sends nothing."""
    with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect((ip, 9))
        except OSError:  # there is no way to the address
            return False
        return sock.getsockname()[0] == ip


def make_tls_context(ca_file: str, verify_tls: bool) -> ssl.SSLContext:
    """Returns a context for TLS 1.2 or later that trusts the system's authorities and those of `ca_file`.

    With `verify_tls` False it verifies nothing.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if ca_file:
        context.load_verify_locations(cafile=ca_file)
    if not verify_tls:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
