"""Client addresses, and which reverse proxies are believed about them.

Rate limits and failed logins are counted by a client's address. Behind a reverse proxy it is in X-Forwarded-For, to
which each proxy appends the address that it was asked from, so only what a trusted proxy has appended is true. We start
at the connection's own address and go to the left for as long as the address at hand is that of a trusted proxy: the
first one that is not is the client's. Proxies on loopback and on unix sockets are always trusted;
`listeners.trusted_proxies` names others.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The reverse proxies of a listener that are trusted, besides those on loopback and unix sockets."""

    __slots__ = ("_networks",)

    def __init__(self, networks: Iterable[str] = ()) -> None:
        """networks: addresses or networks, as in "10.0.0.0/8". Raises ValueError for anything else."""
        self._networks: Sequence[Network] = [ipaddress.ip_network(network, strict=False) for network in networks]

    def trusts(self, address: str) -> bool:
        """Whether the proxy at an address is believed; "" is a unix socket."""
        if not address or address == "::1" or address.startswith("127."):
            return True
        if not self._networks:
            return False
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def find_client(self, address: str, forwarded: Sequence[bytes]) -> str:
        """The client's address, given that of the connection and the X-Forwarded-For headers in order."""
        if not forwarded or not self.trusts(address):
            return address
        for hop in reversed(b",".join(forwarded).decode("latin-1").split(",")):
            parsed = _parse(_without_port(hop.strip()))
            if parsed is None:  # what comes before a hop that cannot be read is nobody's word
                break
            address = str(parsed)
            if not self.trusts(address):
                break
        return address


def _parse(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, ipaddress.IPv6Address) else address


def _without_port(hop: str) -> str:
    """Some proxies write `192.0.2.1:4711` and `[2001:db8::1]:4711`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
