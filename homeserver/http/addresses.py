"""Client addresses, and which reverse proxies we trust to report them.

Rate limits and failed logins are counted by client address. Behind a reverse proxy the address is in X-Forwarded-For.
Each proxy appends the address that it was called from, so only entries appended by a trusted proxy are true. We start
with the connection's own address and go left as long as the current address belongs to a trusted proxy. The first
address that does not is the client's. Proxies on loopback and unix sockets are always trusted;
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
        """Returns whether the proxy at an address is trusted; "" is a unix socket."""
        if not address or address == "::1" or address.startswith("127."):
            return True
        if not self._networks:
            return False
        parsed = _parse(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def find_client(self, address: str, forwarded: Sequence[bytes]) -> str:
        """Returns the client's address, given the connection's address and the X-Forwarded-For headers in order."""
        if not forwarded or not self.trusts(address):
            return address
        for hop in reversed(b",".join(forwarded).decode("latin-1").split(",")):
            parsed = _parse(_without_port(hop.strip()))
            if parsed is None:  # an unreadable entry: nobody vouches for the entries before it
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
    """Removes the port: some proxies write `192.0.2.1:4711` and `[2001:db8::1]:4711`."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
