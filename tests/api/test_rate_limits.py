"""Rate limits: token buckets. Spec: client-server-api/#rate-limiting"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import homeserver
from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.config import RateLimitsSection
from homeserver.errors import MatrixError
from homeserver.feature import Feature, rate_limits_of
from homeserver.process.rate_limits import RateLimits, address_key
from homeserver.resources import Resources
from homeserver.server import all_features
from tests.api.conftest import StartServer

routes = Routes()

SOURCE = Path(homeserver.__file__).parent


@routes.post("/_matrix/client/v3/login", rate_limit="login")
async def login(hs: Resources) -> Empty:
    return Empty()


async def test_too_many_requests_are_answered_with_retry_after(start_server: StartServer) -> None:
    async with start_server(routes, rate_limits=RateLimitsSection(enabled=True)) as server:
        answers = [await server.http.post("/_matrix/client/v3/login") for _ in range(12)]
        burst = int(limits.RATE_LIMITS["login"].burst)
        assert [answer.status_code for answer in answers] == [200] * burst + [429] * (12 - burst)
        body = answers[-1].json()
        assert body["errcode"] == "M_LIMIT_EXCEEDED"
        assert 0 < body["retry_after_ms"] <= 1000 / limits.RATE_LIMITS["login"].per_second + 1
        assert int(answers[-1].headers["retry-after"]) * 1000 >= body["retry_after_ms"]


async def test_rate_limits_can_be_disabled(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        assert {(await server.http.post("/_matrix/client/v3/login")).status_code for _ in range(50)} == {200}


def test_every_limit_is_used() -> None:
    used = Counter(re.findall(r'"(\w+)"', "".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))))
    assert [name for name in rate_limits_of(all_features()) if used[name] < 2] == []


def test_limits_used_by_name_are_declared() -> None:
    source = "".join(path.read_text("utf-8") for path in SOURCE.rglob("*.py"))
    taken = re.findall(r'(?:limit_requester\([\w.]+, \w+, |rate_limits\.(?:take|require|charge)\()"(\w+)"', source)
    assert {"initial_sync", "signatures"} <= set(taken) <= rate_limits_of(all_features()).keys()


def test_an_unknown_limit_is_reported_at_the_start() -> None:
    unknown = Routes()

    @unknown.get("/_matrix/client/v3/org.example", rate_limit="org.example")
    async def get_example(hs: Resources) -> Empty:
        return Empty()

    example = Feature("example", "", routes=unknown)
    with pytest.raises(ValueError, match=r"GET /_matrix/client/v3/org\.example: no rate limit 'org\.example'"):
        rate_limits_of([example])
    assert rate_limits_of([replace(example, limits={"org.example": limits.Bucket(1, 1)})])["org.example"].burst == 1


def test_a_limit_is_declared_once() -> None:
    twice = [Feature(name, "", limits={"org.example": limits.Bucket(1, 1)}) for name in ("a", "b")]
    with pytest.raises(ValueError, match=r"two rate limits called 'org\.example'"):
        rate_limits_of(twice)
    with pytest.raises(ValueError, match="two rate limits called 'login'"):
        rate_limits_of([Feature("a", "", limits={"login": limits.Bucket(1, 1)})])


def test_a_bucket_refills() -> None:
    buckets = RateLimits()
    burst, per_second = limits.RATE_LIMITS["login"]
    for _ in range(int(burst)):
        buckets.take("login", "a", 0)
    with pytest.raises(MatrixError) as caught:
        buckets.take("login", "a", 0)
    wait_ms = caught.value.extra["retry_after_ms"]
    with pytest.raises(MatrixError):
        buckets.take("login", "a", wait_ms - 10)
    buckets.take("login", "a", round(1000 / per_second) + 1)
    buckets.take("login", "b", 0)
    buckets.take("message", "a", 0)


@given(st.lists(st.integers(0, 10_000), max_size=200))
def test_burst_and_rate_are_never_exceeded(waits_ms: list[int]) -> None:
    buckets, now_ms, passed = RateLimits(), 0, 0
    for wait_ms in waits_ms:
        now_ms += wait_ms
        try:
            buckets.take("login", "a", now_ms)
            passed += 1
        except MatrixError:
            pass
    burst, per_second = limits.RATE_LIMITS["login"]
    assert passed <= burst + now_ms / 1000 * per_second + 0.001


def test_a_clock_that_goes_back_does_not_refill() -> None:
    buckets = RateLimits()
    for _ in range(int(limits.RATE_LIMITS["login"].burst)):
        buckets.take("login", "a", 1_000_000)
    with pytest.raises(MatrixError):
        buckets.take("login", "a", 0)
    with pytest.raises(MatrixError):
        buckets.take("login", "a", 1)
    buckets.take("login", "a", 60_000)  # but then it fills up as usual


def test_the_number_of_buckets_is_limited() -> None:
    buckets = RateLimits()
    for number in range(limits.RATE_LIMIT_KEYS_MAX + 10):
        buckets.take("login", str(number), 0)
    assert len(buckets) == limits.RATE_LIMIT_KEYS_MAX


def test_addresses_of_one_ipv6_network_share_a_bucket() -> None:
    assert address_key("2001:db8::1") == address_key("2001:db8::2")
    assert address_key("2001:db8::1") != address_key("2001:db8:0:1::1")
    assert address_key("192.0.2.1") == "192.0.2.1"
    assert address_key("fe80::1%eth0") == address_key("fe80::2")
    assert address_key("x:y") == "x:y"
