"""Which address a request is said to come from, and who is believed about it."""

from __future__ import annotations

import pytest

from homeserver.http.addresses import Proxies


@pytest.mark.parametrize("proxy", ["", "127.0.0.1", "127.8.9.10", "::1"])
def test_local_proxies_are_trusted(proxy: str) -> None:
    assert Proxies().find_client(proxy, [b"203.0.113.9"]) == "203.0.113.9"
    assert Proxies().find_client(proxy, []) == proxy


@pytest.mark.parametrize("stranger", ["192.0.2.1", "2001:db8::1", "10.0.0.1", "fe80::1%eth0", "x"])
def test_other_addresses_are_not_trusted(stranger: str) -> None:
    proxies = Proxies(["198.51.100.0/24", "2001:db8:1::/64"])
    assert proxies.find_client(stranger, [b"203.0.113.9"]) == stranger


@pytest.mark.parametrize("proxy", ["198.51.100.7", "::ffff:198.51.100.7", "192.0.2.5", "2001:db8:1::5"])
def test_named_proxies_are_trusted(proxy: str) -> None:
    proxies = Proxies(["198.51.100.0/24", "192.0.2.5", "2001:db8:1::/64"])
    assert proxies.find_client(proxy, [b"203.0.113.9"]) == "203.0.113.9"


def test_only_entries_added_by_trusted_proxies_count() -> None:
    proxies = Proxies(["198.51.100.0/24"])
    claimed = b"6.6.6.6, 203.0.113.9"
    assert proxies.find_client("198.51.100.1", [claimed]) == "203.0.113.9"
    assert proxies.find_client("198.51.100.1", [claimed + b", 198.51.100.2"]) == "203.0.113.9"
    assert proxies.find_client("198.51.100.1", [claimed + b",127.0.0.1 ,198.51.100.2"]) == "203.0.113.9"
    assert proxies.find_client("198.51.100.1", [b"6.6.6.6", b"203.0.113.9", b"198.51.100.2"]) == "203.0.113.9"
    assert proxies.find_client("127.0.0.1", [claimed + b", 192.0.2.1"]) == "192.0.2.1"


def test_if_all_hops_are_proxies_the_outermost_is_the_client() -> None:
    assert Proxies(["10.0.0.0/8"]).find_client("10.0.0.1", [b"10.0.0.3, 10.0.0.2"]) == "10.0.0.3"
    assert Proxies(["0.0.0.0/0"]).find_client("10.0.0.1", [b"6.6.6.6, 203.0.113.9"]) == "6.6.6.6"


@pytest.mark.parametrize(
    ("hop", "address"),
    [
        (b"203.0.113.9:4711", "203.0.113.9"),
        (b"[2001:db8::1]:4711", "2001:db8::1"),
        (b"[2001:db8::1]", "2001:db8::1"),
        (b"2001:DB8:0::1", "2001:db8::1"),
        (b"::ffff:203.0.113.9", "203.0.113.9"),
        (b"  203.0.113.9\t", "203.0.113.9"),
        (b"unknown", "127.0.0.1"),
        (b"", "127.0.0.1"),
        (b"_hidden", "127.0.0.1"),
        (b"203.0.113.999", "127.0.0.1"),
        (b"\xff", "127.0.0.1"),
        (b"6.6.6.6, nonsense", "127.0.0.1"),
    ],
)
def test_hops_can_be_written_in_several_forms(hop: bytes, address: str) -> None:
    assert Proxies().find_client("127.0.0.1", [hop]) == address
