"""The guard: which addresses we may connect to on behalf of others.

Server names, redirects and media locations come from strangers. They must not lead to machines that only we can reach
(server-side request forgery). The guard checks resolved addresses, and the connection goes to the address that was
checked, so a name that resolves differently a moment later gains nothing.

The networks come from the IANA special-purpose address registries (RFC 6890 and its updates). They are written out so
that they do not depend on the Python version.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

_IPV4_REFUSED = tuple(
    (IPv4Network(network), reason)
    for network, reason in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),  # cloud metadata services live here
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),  # the broadcast address too
    )
)

# In IPv6 only the range allocated as global unicast is allowed: loopback, unspecified, unique local (fc00::/7),
# link-local (fe80::/10), site-local and multicast lie outside it.
_IPV6_GLOBAL = IPv6Network("2000::/3")
_IPV6_REFUSED = tuple(
    (IPv6Network(network), reason)
    for network, reason in (
        ("2001::/32", "Teredo"),
        ("2001::/23", "reserved"),
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
    )
)

# Networks whose addresses contain the IPv4 address that packets end up at, and how many bits from the right it lies.
_IPV6_EMBEDDING = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (IPv6Network("::ffff:0:0:0/96"), 0),  # IPv4-translated (SIIT)
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64; its local-use sibling 64:ff9b:1::/48 is outside the global range
    (IPv6Network("2002::/16"), 80),  # 6to4
)


def refusal(ip: str) -> str | None:
    """Returns why we may not connect to the address, in a word or two; None if we may."""
    try:
        address = ip_address(ip)
    except ValueError:
        return "malformed"
    if isinstance(address, IPv4Address):
        return _refusal_of_ipv4(address)
    if address.scope_id is not None:
        return "link-local"
    for network, shift in _IPV6_EMBEDDING:
        if address in network:
            return _refusal_of_ipv4(IPv4Address(int(address) >> shift & 0xFFFFFFFF))
    return _refusal_of_ipv6(address)


def _refusal_of_ipv4(address: IPv4Address) -> str | None:
    return next((reason for network, reason in _IPV4_REFUSED if address in network), None)


def _refusal_of_ipv6(address: IPv6Address) -> str | None:
    if address not in _IPV6_GLOBAL:
        return "not global"
    return next((reason for network, reason in _IPV6_REFUSED if address in network), None)
