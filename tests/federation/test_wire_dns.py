"""Looking names up, with the system's resolver replaced and a name server of our own."""

from __future__ import annotations

import socket
from collections.abc import Sequence

import dns.asyncresolver
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio

from homeserver.federation.discovery import SrvRecord
from homeserver.federation.wire.dns import ADDRESS_TIMEOUT_S, SRV_TIMEOUT_S, SystemResolver, interleave


class Hosts(trio.abc.HostnameResolver):
    """Answers as getaddrinfo does."""

    def __init__(self, found: Sequence[str] | Exception | None) -> None:
        self.found = found

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        assert type == socket.SOCK_STREAM
        if self.found is None:
            await trio.sleep_forever()
        if isinstance(self.found, Exception):
            raise self.found
        return [(socket.AF_INET6 if ":" in ip else socket.AF_INET, type, 6, "", (ip, 0)) for ip in self.found]

    async def getnameinfo(self, sockaddr, flags):
        raise AssertionError("nobody asks for names of addresses")


async def find(found: Sequence[str] | Exception | None) -> list[str]:
    trio.socket.set_custom_hostname_resolver(Hosts(found))
    return await SystemResolver().find_addresses("example.org")


async def test_addresses_alternate_between_families() -> None:
    assert await find(["2001:db8::1", "2001:db8::2", "2001:db8::3", "192.0.2.1"]) == [
        "2001:db8::1",
        "192.0.2.1",
        "2001:db8::2",
        "2001:db8::3",
    ]
    assert await find(["192.0.2.1", "192.0.2.1"]) == ["192.0.2.1"]
    assert interleave([]) == []
    assert interleave(["192.0.2.1", "192.0.2.2", "2001:db8::1"]) == ["192.0.2.1", "2001:db8::1", "192.0.2.2"]


async def test_unknown_names_have_no_addresses() -> None:
    assert await find(socket.gaierror(socket.EAI_NONAME, "unknown")) == []
    assert await find([]) == []


async def test_impossible_names_have_no_addresses() -> None:
    assert await SystemResolver().find_addresses("a..b") == []
    assert await SystemResolver().find_addresses("a" * 64 + ".example.org") == []


async def test_a_silent_resolver_times_out(autojump_clock: trio.testing.MockClock) -> None:
    assert await find(None) == []
    assert trio.current_time() == ADDRESS_TIMEOUT_S


class NameServer:
    """Answers SRV questions on a real UDP socket."""

    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records
        self.asked = 0
        self.socket = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    async def serve(self) -> None:
        while True:
            data, sender = await self.socket.recvfrom(4096)
            question = dns.message.from_wire(data)
            self.asked += 1
            name = question.question[0].name
            answer = dns.message.make_response(question)
            texts = self.records.get(name.to_text(omit_final_dot=True))
            if texts is None:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            elif texts:
                answer.answer.append(dns.rrset.from_text(name, 300, "IN", "SRV", *texts))
            await self.socket.sendto(answer.to_wire(), sender)


async def resolver_for(server: NameServer) -> SystemResolver:
    await server.socket.bind(("127.0.0.1", 0))
    resolver = dns.asyncresolver.Resolver(configure=False)
    resolver.nameservers = ["127.0.0.1"]
    resolver.port = server.socket.getsockname()[1]
    return SystemResolver(lambda: resolver)


@pytest.mark.sockets
async def test_srv_records_are_resolved() -> None:
    server = NameServer(
        {
            "_matrix-fed._tcp.example.org": ["10 5 8443 matrix.example.org.", "20 0 443 backup.example.org."],
            "_matrix-fed._tcp.none.example.org": ["0 0 0 ."],
            "_matrix-fed._tcp.empty.example.org": [],
        }
    )
    resolver = await resolver_for(server)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve)
        found = await resolver.find_srv("_matrix-fed._tcp.example.org")
        assert sorted(found, key=lambda each: each.priority) == [
            SrvRecord(10, 5, 8443, "matrix.example.org"),
            SrvRecord(20, 0, 443, "backup.example.org"),
        ]
        assert await resolver.find_srv("_matrix-fed._tcp.none.example.org") == [SrvRecord(0, 0, 0, "")]
        assert await resolver.find_srv("_matrix-fed._tcp.empty.example.org") == []
        assert await resolver.find_srv("_matrix-fed._tcp.unknown.example.org") == []
        asked = server.asked
        assert len(await resolver.find_srv("_matrix-fed._tcp.example.org")) == 2
        assert server.asked == asked, "answers are cached"
        assert await resolver.find_srv("_matrix-fed._tcp.a..b") == []
        nursery.cancel_scope.cancel()


async def test_a_machine_without_name_servers_has_no_srv_records() -> None:
    def open_resolver() -> dns.asyncresolver.Resolver:
        raise dns.resolver.NoResolverConfiguration

    assert await SystemResolver(open_resolver).find_srv("_matrix-fed._tcp.example.org") == []


class SilentResolver(dns.asyncresolver.Resolver):
    """Never answers."""

    async def resolve(self, *_: object, **__: object) -> dns.resolver.Answer:
        await trio.sleep_forever()
        raise AssertionError


async def test_a_silent_name_server_times_out(autojump_clock: trio.testing.MockClock) -> None:
    resolver = SystemResolver(lambda: SilentResolver(configure=False))
    assert await resolver.find_srv("_matrix-fed._tcp.example.org") == []
    assert trio.current_time() == SRV_TIMEOUT_S
