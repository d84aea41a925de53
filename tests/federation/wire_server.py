"""An internet for tests of the wire: names, addresses and HTTPS servers, over streams in memory or real sockets."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import h11
import pytest
import trio
import trio.testing
import trustme

from homeserver.federation.discovery import Address, SrvRecord


@pytest.fixture(scope="module")
def few_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This machine trusts one authority, and none of the sites here. To read all of them takes longer than a test."""
    path = tmp_path_factory.mktemp("system") / "authorities.pem"
    trustme.CA().cert_pem.write_to_path(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        yield


@dataclass(frozen=True, slots=True)
class Received:
    """A request as a server got it. `connection` counts the server's connections, from 1."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int
    sni: str | None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of a server: a response, or `raw` bytes if given. If `close`, the connection ends afterwards."""

    status: int = 200
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""
    raw: bytes | None = None
    close: bool = False
    chunks: Sequence[bytes] = ()
    pause_s: float = 0.0
    """Before the head, and after each of `chunks`."""
    chunk_pause_s: float = 0.0
    """After each of `chunks`, too."""


Handler = Callable[[Received], Awaitable[Reply]]


def always(reply: Reply) -> Handler:
    """A handler that answers everything so."""

    async def handle(request: Received) -> Reply:
        return reply

    return handle


class Site:
    """An HTTP server on whatever streams it is given; over TLS if it has a certificate."""

    def __init__(self, handler: Handler, certificate: trustme.LeafCert | None = None) -> None:
        self.handler = handler
        self.received: list[Received] = []
        self.connections = 0
        self._sni: str | None = None
        self._tls: ssl.SSLContext | None = None
        if certificate is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(self._tls)
            self._tls.sni_callback = self._note_sni

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serves one connection until either side has enough."""
        self.connections += 1
        number = self.connections
        if self._tls is not None:
            stream = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
        try:
            async with stream:
                connection = h11.Connection(h11.SERVER)
                while connection.our_state is h11.IDLE:
                    request = await self._receive(connection, stream, number)
                    if request is None:
                        return
                    self.received.append(request)
                    await self._send(connection, stream, await self.handler(request))
                    if connection.our_state is h11.DONE:
                        connection.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError):
            return

    def _note_sni(self, _socket: object, name: str | None, _context: object) -> None:
        self._sni = name

    async def _receive(self, connection: h11.Connection, stream: trio.abc.Stream, number: int) -> Received | None:
        head, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                headers = {name.decode(): value.decode() for name, value in head.headers}
                return Received(head.method.decode(), head.target.decode(), headers, body, number, self._sni)
            else:
                return None

    async def _send(self, connection: h11.Connection, stream: trio.abc.Stream, reply: Reply) -> None:
        await trio.sleep(reply.pause_s)
        if reply.raw is not None:
            await stream.send_all(reply.raw)
            connection.send_failed()
            return
        headers = list(reply.headers)
        if not reply.chunks:
            headers.append(("Content-Length", str(len(reply.body))))
        if reply.close:
            headers.append(("Connection", "close"))
        data = connection.send(h11.Response(status_code=reply.status, headers=headers)) or b""
        if reply.body:
            data += connection.send(h11.Data(data=reply.body)) or b""
        for chunk in reply.chunks:
            await stream.send_all(data + (connection.send(h11.Data(data=chunk)) or b""))
            await trio.sleep(reply.pause_s + reply.chunk_pause_s)
            data = b""
        await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))


@dataclass
class World:
    """Names and servers. Serves as resolver and as `connect_tcp` of a wire; `asked` and `connected` record both."""

    nursery: trio.Nursery
    addresses: dict[str, Sequence[str]] = field(default_factory=dict)
    srv: dict[str, Sequence[SrvRecord]] = field(default_factory=dict)
    sites: dict[Address, Site] = field(default_factory=dict)
    black_holes: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    connected: list[Address] = field(default_factory=list)
    streams: list[trio.testing.MemoryReceiveStream] = field(default_factory=list)

    def add(self, ip: str, port: int, site: Site, *hostnames: str) -> Site:
        """Puts a server at an address, and names on the address."""
        self.sites[Address(ip, port)] = site
        for hostname in hostnames:
            self.addresses[hostname] = [ip]
        return site

    async def find_addresses(self, hostname: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(hostname)
        return list(self.addresses.get(hostname, ()))

    async def find_srv(self, name: str) -> list[SrvRecord]:
        await trio.lowlevel.checkpoint()
        self.asked.append(name)
        return list(self.srv.get(name, ()))

    async def connect_tcp(self, address: Address) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.connected.append(address)
        if address.ip in self.black_holes:
            await trio.sleep_forever()
        site = self.sites.get(address)
        if site is None:
            raise ConnectionRefusedError("connection refused")
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(site.serve, theirs)
        return ours


def headers_of(requests: Iterable[Received], name: str) -> list[str | None]:
    """The value of one header in each request."""
    return [request.headers.get(name) for request in requests]
