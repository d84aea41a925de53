"""Server discovery, step by step. Spec: server-server-api/#resolving-server-names"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.discovery import (
    ADDRESSES_MAX,
    SRV_TARGETS_MAX,
    WELL_KNOWN_BYTES_MAX,
    Address,
    Discovery,
    Failed,
    FetchWellKnown,
    Found,
    LookupAddress,
    LookupSRV,
    SrvRecord,
    WellKnownCache,
    ip_literal,
    lifetime_s,
    order_srv,
    parse_well_known,
    split_server_name,
)

HOUR_S = 3600


@dataclass
class Internet:
    """What is published out there, and a record of what was asked for."""

    well_known: Mapping[str, str] = field(default_factory=dict)
    srv: Mapping[str, Sequence[SrvRecord]] = field(default_factory=dict)
    addresses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def discover(self, name: str) -> Found | Failed:
        discovery = Discovery(name, lambda n: n - 1)
        while True:
            step = discovery.next_step()
            assert discovery.next_step() is step
            match step:
                case FetchWellKnown(hostname):
                    self.asked.append(f"well-known {hostname}")
                    discovery.feed_well_known(self.well_known.get(hostname))
                case LookupSRV(srv_name):
                    self.asked.append(f"SRV {srv_name}")
                    discovery.feed_srv(self.srv.get(srv_name, ()))
                case LookupAddress(hostname):
                    self.asked.append(f"address {hostname}")
                    discovery.feed_addresses(self.addresses.get(hostname, ()))
                case _:
                    return step


def srv(target: str, port: int, priority: int = 10, weight: int = 5) -> SrvRecord:
    return SrvRecord(priority, weight, port, target)


ADDRESSES = {
    "example.org": ["192.0.2.1"],
    "matrix.example.org": ["2001:db8::2", "192.0.2.2"],
    "srv.example.org": ["192.0.2.3"],
}


@pytest.mark.parametrize(
    ("name", "address", "tls_name"),
    [
        ("1.2.3.4", Address("1.2.3.4", 8448), "1.2.3.4"),
        ("1.2.3.4:99", Address("1.2.3.4", 99), "1.2.3.4"),
        ("[1234:5678::ABCD]", Address("1234:5678::abcd", 8448), "1234:5678::abcd"),
        ("[1234:5678::abcd]:5678", Address("1234:5678::abcd", 5678), "1234:5678::abcd"),
    ],
)
def test_step_1_an_ip_literal_is_used_directly(name: str, address: Address, tls_name: str) -> None:
    internet = Internet()
    assert internet.discover(name) == Found((address,), tls_name, name)
    assert internet.asked == []


def test_step_2_an_explicit_port_needs_only_an_address() -> None:
    internet = Internet(addresses=ADDRESSES, well_known={"example.org": "other"})
    assert internet.discover("example.org:1234") == Found(
        (Address("192.0.2.1", 1234),), "example.org", "example.org:1234"
    )
    assert internet.asked == ["address example.org"]


def test_step_3_1_delegation_to_an_ip_literal() -> None:
    for delegated, address in (
        ("192.0.2.9", Address("192.0.2.9", 8448)),
        ("192.0.2.9:1", Address("192.0.2.9", 1)),
        ("[2001:db8::9]:1", Address("2001:db8::9", 1)),
    ):
        internet = Internet(well_known={"example.org": delegated})
        assert internet.discover("example.org") == Found((address,), address.ip, delegated)
        assert internet.asked == ["well-known example.org"]


def test_step_3_2_delegation_with_a_port() -> None:
    internet = Internet(addresses=ADDRESSES, well_known={"example.org": "matrix.example.org:443"})
    assert internet.discover("example.org") == Found(
        (Address("2001:db8::2", 443), Address("192.0.2.2", 443)), "matrix.example.org", "matrix.example.org:443"
    )
    assert internet.asked == ["well-known example.org", "address matrix.example.org"]


def test_step_3_3_delegation_to_a_name_with_srv() -> None:
    internet = Internet(
        addresses=ADDRESSES,
        well_known={"example.org": "matrix.example.org"},
        srv={"_matrix-fed._tcp.matrix.example.org": [srv("srv.example.org", 1000)]},
    )
    assert internet.discover("example.org") == Found(
        (Address("192.0.2.3", 1000),), "matrix.example.org", "matrix.example.org"
    )
    assert internet.asked == [
        "well-known example.org",
        "SRV _matrix-fed._tcp.matrix.example.org",
        "address srv.example.org",
    ]


def test_step_3_4_delegation_to_a_name_with_the_deprecated_srv() -> None:
    internet = Internet(
        addresses=ADDRESSES,
        well_known={"example.org": "matrix.example.org"},
        srv={"_matrix._tcp.matrix.example.org": [srv("srv.example.org", 1000)]},
    )
    found = internet.discover("example.org")
    assert found == Found((Address("192.0.2.3", 1000),), "matrix.example.org", "matrix.example.org")
    assert internet.asked[1:3] == [
        "SRV _matrix-fed._tcp.matrix.example.org",
        "SRV _matrix._tcp.matrix.example.org",
    ]


def test_step_3_5_delegation_to_a_plain_name() -> None:
    internet = Internet(addresses=ADDRESSES, well_known={"example.org": "matrix.example.org"})
    assert internet.discover("example.org") == Found(
        (Address("2001:db8::2", 8448), Address("192.0.2.2", 8448)), "matrix.example.org", "matrix.example.org"
    )


def test_a_delegated_name_is_not_delegated_again() -> None:
    internet = Internet(
        addresses=ADDRESSES, well_known={"example.org": "matrix.example.org", "matrix.example.org": "192.0.2.77"}
    )
    found = internet.discover("example.org")
    assert isinstance(found, Found)
    assert found.host_header == "matrix.example.org"


@pytest.mark.parametrize("service", ["_matrix-fed", "_matrix"])
def test_steps_4_and_5_srv_without_well_known(service: str) -> None:
    internet = Internet(addresses=ADDRESSES, srv={f"{service}._tcp.example.org": [srv("srv.example.org", 1000)]})
    assert internet.discover("example.org") == Found((Address("192.0.2.3", 1000),), "example.org", "example.org")


def test_step_6_nothing_but_an_address() -> None:
    internet = Internet(addresses=ADDRESSES)
    assert internet.discover("example.org") == Found((Address("192.0.2.1", 8448),), "example.org", "example.org")
    assert internet.asked == [
        "well-known example.org",
        "SRV _matrix-fed._tcp.example.org",
        "SRV _matrix._tcp.example.org",
        "address example.org",
    ]


def test_no_address_is_a_failure() -> None:
    assert isinstance(Internet().discover("example.org"), Failed)
    assert isinstance(Internet().discover("example.org:1"), Failed)


@pytest.mark.parametrize("name", ["example.org:0", "1.2.3.4:0", "example.org:65536"])
def test_an_impossible_port_is_a_failure(name: str) -> None:
    assert isinstance(Internet(addresses=ADDRESSES).discover(name), Failed)


def test_srv_targets_that_are_addresses_or_impossible() -> None:
    records = [srv("192.0.2.50", 1), srv("nowhere.example.org", 2), srv("srv.example.org", 0), srv("", 4)]
    internet = Internet(addresses=ADDRESSES, srv={"_matrix-fed._tcp.example.org": records})
    assert internet.discover("example.org") == Found((Address("192.0.2.50", 1),), "example.org", "example.org")


def test_srv_may_decline_the_service() -> None:
    internet = Internet(addresses=ADDRESSES, srv={"_matrix-fed._tcp.example.org": [srv("", 0, 0, 0)]})
    assert isinstance(internet.discover("example.org"), Failed)
    assert internet.asked[-1] == "SRV _matrix-fed._tcp.example.org"


def test_srv_targets_and_addresses_are_limited() -> None:
    records = [srv(f"h{n}.example.org", 1, priority=n) for n in range(100)]
    addresses = {f"h{n}.example.org": [f"192.0.2.{n * 10 + i}" for i in range(10)] for n in range(100)}
    internet = Internet(addresses=addresses, srv={"_matrix-fed._tcp.example.org": records})
    found = internet.discover("example.org")
    assert isinstance(found, Found)
    assert len(found.addresses) == ADDRESSES_MAX
    assert len([asked for asked in internet.asked if asked.startswith("address")]) == SRV_TARGETS_MAX


def test_a_final_dot_is_for_the_resolver_only() -> None:
    internet = Internet(addresses={"example.org.": ["192.0.2.1"]})
    assert internet.discover("example.org.:1") == Found((Address("192.0.2.1", 1),), "example.org", "example.org.:1")


def test_srv_order_is_by_priority_then_drawn_by_weight() -> None:
    light, heavy, backup = srv("light", 1, 1, 1), srv("heavy", 1, 1, 99), srv("backup", 1, 2, 0)
    assert order_srv([backup, heavy, light], lambda n: 0) == [light, heavy, backup]
    assert order_srv([backup, heavy, light], lambda n: n - 1) == [heavy, light, backup]
    draws = [order_srv([light, heavy], lambda n, draw=draw: min(draw, n - 1))[0] for draw in range(101)]
    assert draws.count(heavy) == 99


@given(
    st.lists(st.builds(SrvRecord, st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), st.sampled_from("abc"))),
    st.randoms(use_true_random=False),
)
def test_srv_order_keeps_all_records(records: list[SrvRecord], random: object) -> None:
    ordered = order_srv(records, random.randrange)  # type: ignore[attr-defined]
    assert sorted(ordered, key=repr) == sorted(records, key=repr)
    assert [each.priority for each in ordered] == sorted(each.priority for each in records)


def test_server_names_are_split_into_host_and_port() -> None:
    assert split_server_name("example.org") == ("example.org", None)
    assert split_server_name("example.org:80") == ("example.org", 80)
    assert split_server_name("[::1]") == ("[::1]", None)
    assert split_server_name("[::1]:80") == ("[::1]", 80)
    assert ip_literal("[::1]") == "::1"
    assert ip_literal("1.2.3") is None


@pytest.mark.parametrize(
    ("status", "body", "delegated"),
    [
        (200, b'{"m.server": "delegated.example.com:1234"}', "delegated.example.com:1234"),
        (200, b'{"m.server": "delegated.example.com", "other": 1}', "delegated.example.com"),
        (404, b'{"m.server": "delegated.example.com"}', None),
        (200, b"{", None),
        (200, b"[]", None),
        (200, b"{}", None),
        (200, b'{"m.server": 5}', None),
        (200, b'{"m.server": ""}', None),
        (200, b'{"m.server": "https://example.com"}', None),
        (200, b'{"m.server": "a.org", "pad": "' + b" " * WELL_KNOWN_BYTES_MAX + b'"}', None),
    ],
)
def test_well_known_responses_are_parsed(status: int, body: bytes, delegated: str | None) -> None:
    assert parse_well_known(status, body) == delegated


DATE = "Mon, 01 Jan 2024 00:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"cache-control": "max-age=600"}, 600),
        ({"cache-control": "public, MAX-AGE=600"}, 600),
        ({"cache-control": 'private,max-age="600"'}, 600),
        ({"cache-control": "max-age=600", "age": "100"}, 500),
        ({"cache-control": "max-age=600", "age": "700"}, 0),
        ({"cache-control": "max-age=600", "age": "soon"}, 600),
        ({"cache-control": "s-max-age=5"}, None),
        ({"cache-control": "no-store"}, 0),
        ({"cache-control": "max-age=600, no-cache"}, 0),
        ({"cache-control": "max-age=600", "expires": DATE, "date": DATE}, 600),
        ({"expires": "Mon, 01 Jan 2024 01:00:00 GMT", "date": DATE}, HOUR_S),
        ({"expires": "Mon, 01 Jan 2023 01:00:00 GMT", "date": DATE}, 0),
        ({"expires": "0", "date": DATE}, 0),
        ({"expires": "Mon, 01 Jan 2024 01:00:00 GMT"}, None),
        ({"expires": "Mon, 01 Jan 2024 01:00:00 -0000", "date": DATE}, 0),
        ({"expires": f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", "date": DATE}, 0),
        ({"expires": f"Mon, 01 Jan 2024 {'9' * 20}:00:00 GMT", "date": DATE}, 0),
        ({"expires": f"Mon, 01 Jan 2024 00:00:00 +{'9' * 20}", "date": DATE}, 0),
        ({"expires": DATE, "date": f"Mon, {'9' * 20} Jan 2024 00:00:00 GMT"}, 0),
    ],
)
def test_lifetimes_follow_the_cache_headers(headers: dict[str, str], seconds: int | None) -> None:
    assert lifetime_s(headers) == seconds


GOOD = (200, {}, b'{"m.server": "matrix.example.org"}')


def lasts_s(cache: WellKnownCache, hostname: str, now_s: float) -> int:
    """For how many more seconds the cache answers, to the minute below."""
    minutes = 0
    while cache.find(hostname, now_s + 60 * minutes) is not None:
        minutes += 1
    return (minutes - 1) * 60


@pytest.mark.parametrize(
    ("headers", "hours"),
    [({}, 24), ({"cache-control": "max-age=7200"}, 2), ({"cache-control": "max-age=9999999"}, 48)],
)
def test_answers_are_cached_for_their_lifetime(headers: dict[str, str], hours: int) -> None:
    cache = WellKnownCache()
    assert cache.find("example.org", 0) is None
    assert cache.store("example.org", (200, headers, GOOD[2]), 100) == "matrix.example.org"
    assert cache.find("example.org", 100 + hours * HOUR_S - 1) == ("matrix.example.org",)
    assert cache.find("example.org", 100 + hours * HOUR_S) is None


def test_an_uncacheable_answer_is_cached_for_five_minutes() -> None:
    cache = WellKnownCache()
    cache.store("example.org", (200, {"cache-control": "no-store"}, GOOD[2]), 0)
    assert cache.find("example.org", 299) is not None
    assert cache.find("example.org", 300) is None


def test_failures_are_cached_for_up_to_an_hour_with_back_off() -> None:
    cache = WellKnownCache()
    now_s, kept = 0.0, []
    for _ in range(7):
        assert cache.store("example.org", None, now_s) is None
        assert cache.find("example.org", now_s) == (None,)
        kept.append(lasts_s(cache, "example.org", now_s) + 60)
        now_s += kept[-1]
    assert kept == [240, 480, 900, 1800, 3600, 3600, 3600]
    cache.store("example.org", GOOD, now_s)
    cache.store("example.org", (404, {}, b""), now_s + 24 * HOUR_S)
    assert lasts_s(cache, "example.org", now_s + 24 * HOUR_S) < 300


def test_the_requested_lifetime_of_a_failure_is_capped() -> None:
    cache = WellKnownCache()
    cache.store("a.org", (404, {"cache-control": "max-age=1800"}, b""), 0)
    cache.store("b.org", (404, {"cache-control": "max-age=999999"}, b""), 0)
    assert (cache.find("a.org", 1799), cache.find("a.org", 1800)) == ((None,), None)
    assert (cache.find("b.org", 3599), cache.find("b.org", 3600)) == ((None,), None)


@pytest.mark.parametrize("unanswered", [None, (502, {}, b"")])
def test_a_delegation_outlives_an_outage_of_its_web_server(unanswered: tuple[int, dict[str, str], bytes]) -> None:
    cache = WellKnownCache()
    cache.store("example.org", GOOD, 0)
    now_s = 24.0 * HOUR_S
    while now_s < 48 * HOUR_S:
        assert cache.find("example.org", now_s) is None
        assert cache.store("example.org", unanswered, now_s) == "matrix.example.org"
        while cache.find("example.org", now_s) is not None:
            now_s += 60
    assert now_s <= 48 * HOUR_S + 60
    assert cache.store("example.org", unanswered, now_s) is None


def test_a_withdrawn_delegation_ends() -> None:
    cache = WellKnownCache()
    cache.store("example.org", GOOD, 0)
    assert cache.store("example.org", (404, {}, b""), 24 * HOUR_S) is None


def test_the_cache_evicts_the_least_recently_used_names() -> None:
    cache = WellKnownCache(max_entries=2)
    for name in ("a", "b"):
        cache.store(name, GOOD, 0)
    assert cache.find("a", 1) is not None
    cache.store("c", GOOD, 2)
    assert [cache.find(name, 3) is not None for name in "abc"] == [True, False, True]
