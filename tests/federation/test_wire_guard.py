"""The guard against requests to machines that only we can reach."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.wire.guard import refusal


@pytest.mark.parametrize(
    "ip",
    [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "127.0.0.1",
        "127.255.255.254",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::8.8.8.8",
        "100::1",
        "64:ff9b:1::808:808",
        "2001::1",
        "2001:2::1",
        "2001:db8::1",
        "3fff::1",
        "fc00::1",
        "fd12:3456::1",
        "fe80::1",
        "fe80::1%eth0",
        "2606:4700::1%1",
        "fec0::1",
        "ff02::1",
        "4000::1",
        # addresses that carry a private IPv4 address
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "::ffff:0:10.0.0.1",
        "64:ff9b::192.168.0.1",
        "2002:7f00:1::1",
        "2002:0a00:0001::",
        "not an address",
        "",
    ],
)
def test_special_addresses_are_refused(ip: str) -> None:
    assert refusal(ip) is not None


@pytest.mark.parametrize(
    "ip",
    [
        "8.8.8.8",
        "1.1.1.1",
        "100.63.255.255",
        "100.128.0.1",
        "172.15.255.255",
        "172.32.0.1",
        "192.0.1.1",
        "223.255.255.255",
        "2606:4700:4700::1111",
        "2a00:1450:4001::1",
        "2001:4860:4860::8888",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2002:808:808::1",
    ],
)
def test_public_addresses_are_allowed(ip: str) -> None:
    assert refusal(ip) is None


@given(st.ip_addresses(v=4))
def test_the_guard_agrees_with_the_standard_library(address: ipaddress.IPv4Address) -> None:
    if not address.is_global or address.is_multicast:
        # Newer versions of the library except a few anycast addresses inside 192.0.0.0/24.
        assert refusal(str(address)) is not None
    if refusal(str(address)) is not None and address.is_global:
        assert (
            address.is_multicast
            or address in ipaddress.ip_network("192.0.0.0/24")
            or (address in ipaddress.ip_network("192.88.99.0/24"))
        )


@given(st.ip_addresses(v=6))
def test_ipv6_addresses_that_are_not_global_are_refused(address: ipaddress.IPv6Address) -> None:
    mapped = address.ipv4_mapped or address.sixtofour
    if mapped is not None:
        assert (refusal(str(address)) is None) == (refusal(str(mapped)) is None)
    elif refusal(str(address)) is None:
        assert address.is_global
