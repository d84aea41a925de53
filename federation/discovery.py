"""Server discovery: from a server name to addresses, a TLS name and a Host header.

Spec: server-server-api/#server-discovery

Theory of operation. `Discovery` is a state machine that does no I/O. Its state is the step to be done next: take it
from `next_step()`, do it, feed the result in, and repeat until the step is Found or Failed.

    step                  feed with                                 may be followed by
    FetchWellKnown        feed_well_known(delegated name or None)   any step but FetchWellKnown
    LookupSRV             feed_srv(records)                         LookupSRV, LookupAddress, Found, Failed
    LookupAddress         feed_addresses(ip addresses)              LookupAddress, Found, Failed
    Found | Failed        the end

A failed lookup is fed in as an empty result and leads to the next step of the spec, so a name server that is down looks
like a name without records. `FetchWellKnown` happens at most once: a delegated name is never delegated again.
`WellKnownCache` decides how long a result of `.well-known` is used.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from email.utils import parsedate_to_datetime

import msgspec
import orjson

from homeserver.federation.identifiers import InvalidIdentifier, ServerName, parse_server_name

DEFAULT_PORT = 8448
WELL_KNOWN_PATH = "/.well-known/matrix/server"
WELL_KNOWN_BYTES_MAX = 50 * 1024
WELL_KNOWN_REDIRECTS_MAX = 10
WELL_KNOWN_TIMEOUT_S = 10.0

WELL_KNOWN_DEFAULT_S = 24 * 3600
WELL_KNOWN_MAX_S = 48 * 3600
WELL_KNOWN_MIN_S = 300
"""With shorter lifetimes, `no-store` included, we would have to fetch it before every new connection."""
WELL_KNOWN_FAILURE_MAX_S = 3600
WELL_KNOWN_FAILURE_MIN_S = 225
"""After one failure we wait this long before fetching again, and twice as long after each further one. 225 · 2^4 s is
an hour."""
WELL_KNOWN_CACHE_MAX = 20_000

SRV_TARGETS_MAX = 8
ADDRESSES_MAX = 16

_PORT = re.compile(r"(.*):([0-9]+)", re.ASCII)
_MAX_AGE = re.compile(r"(?:\A|[\s,])max-age\s*=\s*\"?([0-9]{1,18})", re.ASCII | re.IGNORECASE)
_NO_STORE = re.compile(r"(?:\A|[\s,])no-(?:store|cache)(?:\Z|[\s,=])", re.ASCII | re.IGNORECASE)


class Address(msgspec.Struct, frozen=True):
    """An IP address (without brackets) and a port."""

    ip: str
    port: int


class SrvRecord(msgspec.Struct, frozen=True):
    """One SRV record. `target` has no final dot; it is "" for the target "."."""

    priority: int
    weight: int
    port: int
    target: str


class FetchWellKnown(msgspec.Struct, frozen=True):
    """GET https://`hostname`/.well-known/matrix/server, following redirects."""

    hostname: str


class LookupSRV(msgspec.Struct, frozen=True):
    """Look up the SRV records of `name`."""

    name: str


class LookupAddress(msgspec.Struct, frozen=True):
    """Look up the AAAA and A records of `hostname`, following CNAMEs."""

    hostname: str


class Found(msgspec.Struct, frozen=True):
    """Connect to the first of `addresses` that answers; the certificate must be valid for `tls_name`.

    `tls_name` is a host name, or an IP address without brackets (then no SNI is sent).
    """

    addresses: tuple[Address, ...]
    tls_name: str
    host_header: str


class Failed(msgspec.Struct, frozen=True):
    """No server can be reached by this name; `reason` is a sentence."""

    reason: str


Step = FetchWellKnown | LookupSRV | LookupAddress | Found | Failed


class Discovery:
    """The resolution of one server name. `below(n)` draws an integer from range(n), for choosing among SRV targets."""

    __slots__ = ("_addresses", "_below", "_delegated", "_host", "_name", "_step", "_targets")

    def __init__(self, server_name: ServerName, below: Callable[[int], int]) -> None:
        self._below = below
        self._delegated = False
        self._targets: list[tuple[str, int]] = []
        self._addresses: list[Address] = []
        self._step = self._begin(server_name)

    def next_step(self) -> Step:
        """Returns what to do now. It stays the same until the result is fed in."""
        return self._step

    def feed_well_known(self, delegated: ServerName | None) -> None:
        """Takes the valid `m.server` of the response, or None after any error."""
        assert isinstance(self._step, FetchWellKnown)
        if delegated is None:
            # 4. If the `/.well-known` request resulted in an error response, a server is found by resolving an SRV
            #    record for `_matrix-fed._tcp.<hostname>`.
            self._step = LookupSRV(f"_matrix-fed._tcp.{self._host}")
        else:
            self._delegated = True
            self._step = self._begin(delegated)

    def feed_srv(self, records: Sequence[SrvRecord]) -> None:
        """Takes the records; none if there are none or the lookup failed."""
        assert isinstance(self._step, LookupSRV)
        if len(records) == 1 and records[0].target == "":
            # RFC 2782: "A Target of "." means that the service is decidedly not available at this domain."
            self._step = Failed(f"The SRV record of {self._host} says that it offers no federation.")
        elif records:
            ordered = order_srv(records, self._below)
            self._targets = [(each.target, each.port) for each in ordered if each.target and each.port]
            del self._targets[SRV_TARGETS_MAX:]
            self._step = self._next_target()
        elif self._step.name.startswith("_matrix-fed."):
            # 3.4, 5. [Deprecated] … and a `_matrix-fed._tcp.<hostname>` SRV record was not found, a server is found by
            #         resolving an SRV record for `_matrix._tcp.<hostname>`.
            self._step = LookupSRV(f"_matrix._tcp.{self._host}")
        else:
            # 3.5, 6. … and no SRV records were found, an IP address is resolved using CNAME, AAAA and A records.
            self._targets = [(self._host, DEFAULT_PORT)]
            self._step = self._next_target()

    def feed_addresses(self, addresses: Iterable[str]) -> None:
        """Takes the IP addresses in the order to try them; none if there are none or the lookup failed."""
        assert isinstance(self._step, LookupAddress)
        _, port = self._targets.pop(0)
        self._addresses.extend(Address(ip, port) for ip in addresses)
        self._step = self._next_target()

    def _begin(self, name: ServerName) -> Step:
        """Does steps 1 to 3 for the server name, or 3.1 to 3.3 for a delegated name.

        They differ only in `.well-known`. The Host header is always the unchanged name, and the certificate must be
        valid for its host.
        """
        self._name = name
        self._host, port = split_server_name(name)
        if port is not None and not 0 < port < 65536:
            return Failed(f"{name} has no usable port.")
        if ip_literal(self._host) is not None or port is not None:
            # 1, 3.1. If the hostname is an IP literal, then that IP address should be used, together with the given
            #         port number, or 8448 if no port is given.
            # 2, 3.2. If the hostname is not an IP literal, and the server name includes an explicit port, resolve the
            #         hostname to an IP address using CNAME, AAAA or A records.
            self._targets = [(self._host, DEFAULT_PORT if port is None else port)]
            return self._next_target()
        if self._delegated:
            # 3.3. If `<delegated_hostname>` is not an IP literal and no `<delegated_port>` is present, an SRV record is
            #      looked up for `_matrix-fed._tcp.<delegated_hostname>`.
            return LookupSRV(f"_matrix-fed._tcp.{self._host}")
        # 3. If the hostname is not an IP literal, a regular HTTPS request is made to
        #    `https://<hostname>/.well-known/matrix/server`
        return FetchWellKnown(self._host)

    def _next_target(self) -> Step:
        while self._targets:
            host, port = self._targets[0]
            ip = ip_literal(host)
            if ip is None:
                return LookupAddress(host)
            self._addresses.append(Address(ip, port))
            self._targets.pop(0)
        if not self._addresses:
            return Failed(f"{self._host} has no address.")
        return Found(
            addresses=tuple(dict.fromkeys(self._addresses))[:ADDRESSES_MAX],
            tls_name=ip_literal(self._host) or self._host.rstrip("."),
            host_header=self._name,
        )


def split_server_name(name: ServerName) -> tuple[str, int | None]:
    """Returns the host (IPv6 literals with their brackets) and the port, or None if there is no port."""
    match = _PORT.fullmatch(name)
    return (name, None) if match is None else (match[1], int(match[2]))


def ip_literal(host: str) -> str | None:
    """Returns the IP address without brackets if the host is one, otherwise None."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return None


def order_srv(records: Iterable[SrvRecord], below: Callable[[int], int]) -> list[SrvRecord]:
    """Returns the records in the order to try them: by priority, and drawn by weight within a priority (RFC 2782)."""
    ordered = []
    # "Arrange all SRV RRs (that have not been ordered yet) in any order, except that all those with weight 0 are placed
    # at the beginning of the list." We sort the rest too, so that only the draw decides.
    waiting = sorted(records, key=lambda each: (each.priority, each.weight, each.target, each.port))
    while waiting:
        group = [each for each in waiting if each.priority == waiting[0].priority]
        draw = below(sum(each.weight for each in group) + 1)
        for record in group:
            draw -= record.weight
            if draw <= 0:
                break
        ordered.append(record)
        waiting.remove(record)
    return ordered


class _Entry(msgspec.Struct, frozen=True):
    delegated: ServerName | None
    expires_s: float
    failures: int
    stale_until_s: float
    """Until when `delegated` may be used in place of a response that we could not get."""


class WellKnownCache:
    """The results of `.well-known` by hostname, each with its lifetime. Times are seconds of any one clock."""

    __slots__ = ("_entries", "_max_entries")

    def __init__(self, max_entries: int = WELL_KNOWN_CACHE_MAX) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._max_entries = max_entries

    def find(self, hostname: str, now_s: float) -> tuple[ServerName | None] | None:
        """Returns `(delegated,)` while a result is valid (None in it after an error), None if it must be fetched."""
        entry = self._entries.get(hostname)
        if entry is None or now_s >= entry.expires_s:
            return None
        self._entries.move_to_end(hostname)
        return (entry.delegated,)

    def store(
        self, hostname: str, response: tuple[int, Mapping[str, str], bytes] | None, now_s: float
    ) -> ServerName | None:
        """Remembers a response (status, headers with lower-case names, body), or None if there was none.

        Returns the delegated name, or None after an error. Without any answer, or after a 5xx, an expired delegation
        stays in use until it is 48 hours old, as RFC 9111 §4.2.4 allows a disconnected cache.
        """
        delegated = None if response is None else parse_well_known(response[0], response[2])
        asked_s = None if response is None else lifetime_s(response[1])
        before = self._entries.get(hostname)
        if delegated is not None:
            wanted_s = WELL_KNOWN_DEFAULT_S if asked_s is None else asked_s
            lasts_s = min(max(wanted_s, WELL_KNOWN_MIN_S), WELL_KNOWN_MAX_S)
            entry = _Entry(delegated, now_s + lasts_s, 0, now_s + WELL_KNOWN_MAX_S)
        else:
            failures = 1 if before is None else min(before.failures + 1, 16)
            backoff_s = WELL_KNOWN_FAILURE_MIN_S << (failures - 1)
            lasts_s = min(max(backoff_s, asked_s or 0), WELL_KNOWN_FAILURE_MAX_S)
            entry = _Entry(None, now_s + lasts_s, failures, 0.0)
            unanswered = response is None or response[0] >= 500
            if unanswered and before is not None and before.delegated is not None and now_s < before.stale_until_s:
                expires_s = min(entry.expires_s, before.stale_until_s)
                entry = _Entry(before.delegated, expires_s, failures, before.stale_until_s)
        self._entries[hostname] = entry
        self._entries.move_to_end(hostname)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
        return entry.delegated


def parse_well_known(status: int, body: bytes) -> ServerName | None:
    """Returns the delegated server name, or None if the response is invalid (bad JSON, no `m.server`, not 200)."""
    if status != 200 or len(body) > WELL_KNOWN_BYTES_MAX:
        return None
    try:
        value = orjson.loads(body)
        return parse_server_name(value["m.server"]) if isinstance(value, dict) and "m.server" in value else None
    except (orjson.JSONDecodeError, InvalidIdentifier):
        return None


def lifetime_s(headers: Mapping[str, str]) -> int | None:
    """Returns how long the headers allow a response to be kept; None if they do not say. Spec: RFC 9111 §4.2.1"""
    cache_control = headers.get("cache-control", "")
    if _NO_STORE.search(cache_control) is not None:
        return 0
    max_age = _MAX_AGE.search(cache_control)
    if max_age is not None:
        age = headers.get("age", "")
        return max(0, int(max_age[1]) - (int(age) if re.fullmatch("[0-9]{1,9}", age) else 0))
    if "expires" not in headers:
        return None
    try:
        # Both are by the sender's clock: "its expiration time … minus its Date". An invalid Expires means "expired".
        lasts = parsedate_to_datetime(headers["expires"]) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError, OverflowError):
        return 0 if "date" in headers else None
    return max(0, int(lasts.total_seconds()))
