"""Dialling: several addresses, the guard, TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme

from homeserver.federation.discovery import Address
from homeserver.federation.wire import WireError
from homeserver.federation.wire.dial import (
    CONNECT_TIMEOUT_S,
    STAGGER_S,
    TLS_TIMEOUT_S,
    Dialer,
    is_own_address,
    make_tls_context,
    open_tcp,
)
from tests.federation.wire_server import Reply, Site, World, always, few_authorities

__all__ = ["few_authorities"]
pytestmark = pytest.mark.usefixtures("few_authorities")

A, B, C = Address("9.9.9.1", 443), Address("2620:fe::9", 443), Address("9.9.9.3", 443)


class Connector:
    """Connects, fails or keeps silent, by address and after a time; remembers what it opened."""

    def __init__(self, behaviour: dict[Address, tuple[float, bool]]) -> None:
        self.behaviour = behaviour
        self.began: list[tuple[float, Address]] = []
        self.opened: dict[Address, trio.testing.MemoryReceiveStream] = {}
        self.closed: list[Address] = []

    async def __call__(self, address: Address) -> trio.abc.Stream:
        self.began.append((trio.current_time(), address))
        takes_s, succeeds = self.behaviour[address]
        await trio.sleep(takes_s)
        if not succeeds:
            raise ConnectionRefusedError(f"{address.ip} refuses")
        ours, theirs = trio.testing.memory_stream_pair()
        self.opened[address] = theirs
        return ours


def dialer(connector: Connector, *, allow_private_addresses: bool = False) -> Dialer:
    return Dialer(allow_private_addresses=allow_private_addresses, connect_tcp=connector)


async def is_closed(stream: trio.abc.ReceiveStream) -> bool:
    with trio.move_on_after(0.01):
        return await stream.receive_some(1) == b""
    return False


async def test_the_first_address_that_answers_is_used(autojump_clock: trio.testing.MockClock) -> None:
    connector = Connector({A: (0.1, True), B: (0.1, True)})
    await dialer(connector).open_stream([A, B], None)
    assert connector.began == [(0.0, A)]


async def test_after_a_failure_the_next_address_is_tried_at_once(autojump_clock: trio.testing.MockClock) -> None:
    connector = Connector({A: (0.1, False), B: (0.1, True)})
    await dialer(connector).open_stream([A, B], None)
    assert connector.began == [(0.0, A), (0.1, B)]
    assert list(connector.opened) == [B]


async def test_a_slow_address_is_raced_by_the_next(autojump_clock: trio.testing.MockClock) -> None:
    connector = Connector({A: (1000, True), B: (1, True), C: (0.1, True)})
    await dialer(connector).open_stream([A, B, C], None)
    assert connector.began == [(0.0, A), (STAGGER_S, B), (2 * STAGGER_S, C)]
    assert list(connector.opened) == [C]
    assert trio.current_time() == 2 * STAGGER_S + 0.1


async def test_one_of_two_simultaneous_winners_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    connector, both = Connector({A: (0, True), B: (0, True)}), trio.Event()

    async def connect(address: Address) -> trio.abc.Stream:
        stream = await connector(address)
        if address == A:
            await both.wait()
        both.set()
        return stream

    stream = await Dialer(connect_tcp=connect).open_stream([A, B], None)
    still_open = [address for address, theirs in connector.opened.items() if not await is_closed(theirs)]
    assert len(connector.opened) == 2
    assert len(still_open) == 1
    await stream.aclose()


async def test_if_all_addresses_fail_dialling_fails(autojump_clock: trio.testing.MockClock) -> None:
    for addresses in ([A], [A, B]):
        with pytest.raises(WireError, match=r"9\.9\.9\.1 refuses") as caught:
            await dialer(Connector({A: (0.1, False), B: (0.3, False)})).open_stream(addresses, None)
        assert caught.value.reason == "connect"


async def test_silent_addresses_time_out(autojump_clock: trio.testing.MockClock) -> None:
    for addresses in ([A], [A, B]):
        began_s = trio.current_time()
        with pytest.raises(WireError) as caught:
            await dialer(Connector({A: (1000, True), B: (1000, True)})).open_stream(addresses, None)
        assert caught.value.reason == "timeout"
        assert trio.current_time() - began_s == pytest.approx(CONNECT_TIMEOUT_S)


async def test_cancelling_closes_pending_connections(autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(1) as scope:
        await dialer(Connector({A: (1000, True), B: (1000, True)})).open_stream([A, B], None)
    assert scope.cancelled_caught


async def test_a_connection_made_during_cancellation_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    connector = Connector({A: (1, True), B: (1000, True)})
    with trio.CancelScope() as scope:

        async def connect(address: Address) -> trio.abc.Stream:
            stream = await connector(address)
            scope.cancel()
            return stream

        await Dialer(connect_tcp=connect).open_stream([A, B], None)
    assert scope.cancelled_caught
    assert await is_closed(connector.opened[A])


async def test_private_addresses_are_skipped() -> None:
    loopback, metadata = Address("127.0.0.1", 1), Address("::ffff:169.254.169.254", 1)
    connector = Connector({loopback: (0, True), metadata: (0, True), A: (0, True)})
    await dialer(connector).open_stream([loopback, metadata, A], None)
    assert [address for _, address in connector.began] == [A]
    with pytest.raises(WireError, match=r"127\.0\.0\.1 is loopback, ::ffff:169\.254\.169\.254 is link-local") as caught:
        await dialer(connector).open_stream([loopback, metadata], None)
    assert caught.value.reason == "refused"
    await dialer(connector, allow_private_addresses=True).open_stream([loopback], None)
    assert connector.began[-1][1] == loopback


async def test_urls_of_users_lead_to_our_own_addresses_at_the_ports_of_web_servers_only() -> None:
    own, own_website, other = Address("9.9.9.1", 9200), Address("9.9.9.1", 443), Address("9.9.9.3", 9200)
    connector = Connector(dict.fromkeys((own, own_website, other), (0, True)))
    outbound = Dialer(connect_tcp=connector, is_refused_own=lambda ip: ip == "9.9.9.1")
    with pytest.raises(WireError, match=r"9\.9\.9\.1 is our own") as caught:
        await outbound.open_stream([own], None)
    assert caught.value.reason == "refused"
    await outbound.open_stream([own_website], None)
    await outbound.open_stream([own, other], None)
    assert own not in [address for _, address in connector.began]


@pytest.mark.sockets
def test_own_addresses_are_recognised() -> None:
    assert is_own_address("127.0.0.1")
    assert not is_own_address("192.0.2.1")
    assert not is_own_address("2001:db8::1")


async def test_a_host_without_addresses_fails() -> None:
    with pytest.raises(WireError) as caught:
        await dialer(Connector({})).open_stream([], None)
    assert caught.value.reason == "refused"


async def test_host_names_are_resolved_and_addresses_are_not() -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery, addresses={"example.org": ["9.9.9.1", "2620:fe::9"]})
        looking = Dialer(resolver=world)
        assert await looking.find_addresses("example.org", 1) == [Address("9.9.9.1", 1), Address("2620:fe::9", 1)]
        assert await looking.find_addresses("[2620:fe::9]", 1) == [Address("2620:fe::9", 1)]
        with pytest.raises(WireError) as caught:
            await looking.find_addresses("nowhere.org", 1)
        assert caught.value.reason == "dns"
        assert world.asked == ["example.org", "nowhere.org"]


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return str(path)


async def handshake(world: World, dialer: Dialer, tls_name: str) -> str | None:
    """Returns why the handshake fails, None if it succeeds."""
    try:
        stream = await dialer.open_stream([A], tls_name)
    except WireError as error:
        return error.reason
    await stream.aclose()
    return None


@pytest.mark.parametrize(
    ("certified", "tls_name", "reason"),
    [
        ("example.org", "example.org", None),
        ("example.org", "EXAMPLE.org", None),
        ("example.org", "other.org", "tls"),
        ("*.example.org", "a.example.org", None),
        ("9.9.9.1", "9.9.9.1", None),
        ("9.9.9.1", "example.org", "tls"),
        ("example.org", "9.9.9.1", "tls"),
        ("2620:fe::9", "2620:fe::9", None),
        ("example.org", "", "tls"),
        ("example.org", ".example.org", "tls"),
        ("example.org", "a" * 70, "tls"),
    ],
)
async def test_the_certificate_must_be_for_the_name(
    ca: trustme.CA, ca_file: str, certified: str, tls_name: str, reason: str | None
) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        world.add("9.9.9.1", 443, Site(always(Reply()), ca.issue_cert(certified)))
        assert await handshake(world, Dialer(ca_file, connect_tcp=world.connect_tcp), tls_name) == reason
        nursery.cancel_scope.cancel()


async def test_the_certificate_must_be_of_a_known_authority(ca: trustme.CA, ca_file: str) -> None:
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        world.add("9.9.9.1", 443, Site(always(Reply()), trustme.CA().issue_cert("example.org")))
        assert await handshake(world, Dialer(ca_file, connect_tcp=world.connect_tcp), "example.org") == "tls"
        assert await handshake(world, Dialer(connect_tcp=world.connect_tcp), "example.org") == "tls"
        unverified = Dialer("", False, connect_tcp=world.connect_tcp)
        assert await handshake(world, unverified, "example.org") is None
        assert await handshake(world, unverified, "other.org") is None
        nursery.cancel_scope.cancel()


async def test_a_silent_handshake_times_out(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(WireError) as caught:
        await dialer(Connector({A: (0, True)})).open_stream([A], "example.org")
    assert caught.value.reason == "timeout"
    assert trio.current_time() == TLS_TIMEOUT_S


def test_outdated_tls_versions_are_refused(ca_file: str) -> None:
    context = make_tls_context(ca_file, True)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


def test_an_unreadable_ca_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Dialer(str(tmp_path / "none.pem"))
    (tmp_path / "nonsense.pem").write_text("nonsense")
    with pytest.raises(OSError):
        Dialer(str(tmp_path / "nonsense.pem"))


@pytest.mark.sockets
async def test_real_sockets_can_be_dialled() -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, lambda stream: stream.send_all(b"hello"), listeners)
        _, port = listeners[0].socket.getsockname()
        async with await open_tcp(Address("127.0.0.1", port)) as stream:
            assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()
    with pytest.raises(OSError):
        await open_tcp(Address("127.0.0.1", port))
    with pytest.raises(OSError):
        await open_tcp(Address("::1", 1))
