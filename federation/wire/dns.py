"""Looks up addresses and SRV records.

Addresses come from the system's resolver, so that /etc/hosts and the administrator's other settings apply. It does not
support SRV records, so those come from dnspython, which asks the system's name servers. Importing dnspython takes a
tenth of a server's start, so it is imported when the first record is looked up.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any, Protocol

import trio

from homeserver.federation.discovery import SrvRecord

SRV_TIMEOUT_S = 5.0
ADDRESS_TIMEOUT_S = 10.0
SRV_RECORDS_MAX = 64


class Resolver(Protocol):
    """Looks names up. An empty list stands for no records and for any failure."""

    async def find_addresses(self, hostname: str) -> list[str]:
        """Returns the IP addresses of a host in the order to try them. Follows CNAMEs."""
        ...

    async def find_srv(self, name: str) -> list[SrvRecord]:
        """Returns the SRV records of a name, in no particular order."""
        ...


class SystemResolver:
    """The resolver of this machine. `open_resolver` creates the `dns.asyncresolver.Resolver` for SRV records."""

    __slots__ = ("_open_resolver", "_srv")

    def __init__(self, open_resolver: Callable[[], Any] | None = None) -> None:
        self._open_resolver = open_resolver
        self._srv: Any = None

    async def find_addresses(self, hostname: str) -> list[str]:
        with trio.move_on_after(ADDRESS_TIMEOUT_S):
            try:
                found = await trio.socket.getaddrinfo(hostname, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):  # UnicodeError: a label is empty or longer than 63 characters
                return []
            return interleave([str(sockaddr[0]) for _, _, _, _, sockaddr in found])
        return []

    async def find_srv(self, name: str) -> list[SrvRecord]:
        import dns.exception

        with trio.move_on_after(SRV_TIMEOUT_S):
            try:
                resolver = self._resolver()
                answer = await resolver.resolve(name, "SRV", search=False, lifetime=SRV_TIMEOUT_S)
            except (dns.exception.DNSException, OSError):
                return []
            return [
                SrvRecord(each.priority, each.weight, each.port, each.target.to_text(omit_final_dot=True).strip("."))
                for each in list(answer)[:SRV_RECORDS_MAX]
            ]
        return []

    def _resolver(self) -> Any:
        if self._srv is None:
            import dns.asyncresolver
            import dns.resolver

            # dnspython reads /etc/resolv.conf, and raises if the file does not exist.
            self._srv = (self._open_resolver or dns.asyncresolver.Resolver)()
            self._srv.cache = dns.resolver.LRUCache(1000)
        return self._srv


def interleave(addresses: list[str]) -> list[str]:
    """Returns the addresses with both families alternating, so that a broken family costs one attempt (RFC 8305 §4)."""
    unique = list(dict.fromkeys(addresses))
    if not unique:
        return []
    first_is_ipv6 = ":" in unique[0]
    first = [ip for ip in unique if (":" in ip) == first_is_ipv6]
    second = [ip for ip in unique if (":" in ip) != first_is_ipv6]
    both = min(len(first), len(second))
    return [ip for pair in zip(first, second, strict=False) for ip in pair] + first[both:] + second[both:]
