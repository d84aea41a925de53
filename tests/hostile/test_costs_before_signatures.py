"""The cost of a request of another server before its signature is verified, and which bodies are accepted.

Spec: server-server-api/#request-authentication
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from homeserver import limits
from homeserver.config import RateLimitsSection
from homeserver.federation.canonical_json import encode
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import build_authorization
from tests.support.federation import Federation
from tests.support.homeservers import Server
from tests.support.stranger import Stranger

HERE = ServerName("a.example")
SEND = "/_matrix/federation/v1/send/1"
MIB = 1 << 20


async def put(server: Server, header: str | None, body: bytes, *, address: str = "192.0.2.9") -> httpx.Response:
    """Sends a transaction and returns the response."""
    transport = httpx.ASGITransport(server.app, client=(address, 4711))
    headers = {} if header is None else {"authorization": header}
    async with httpx.AsyncClient(transport=transport, base_url="https://a.example") as http:
        return await http.put(SEND, content=body, headers=headers)


def transaction(edus: list[Any], **more: Any) -> dict[str, Any]:
    return {"origin": "stranger.example", "origin_server_ts": 1, "pdus": [], "edus": edus, **more}


def signed(stranger: Stranger, content: Mapping[str, Any]) -> str:
    return build_authorization("PUT", SEND, stranger.name, HERE, stranger.key, content)


@pytest.fixture
async def stranger(federation: Federation) -> Stranger:
    return Stranger(federation.network, ServerName("stranger.example"))


@pytest.mark.parametrize(
    "header",
    [
        None,
        "X-Matrix",
        'X-Matrix origin=stranger.example,key="ed25519:stranger"',
        'X-Matrix origin=a.example,destination=a.example,key="ed25519:1",sig="AAAA"',
        'X-Matrix origin=stranger.example,destination=b.example,key="ed25519:stranger",sig="AAAA"',
        'X-Matrix origin=nobody.example,destination=a.example,key="ed25519:1",sig="AAAA"',
        'X-Matrix origin=stranger.example,destination=a.example,key="ed25519:other",sig="AAAA"',
    ],
)
async def test_impossible_origins_are_refused_whatever_the_body(
    federation: Federation, stranger: Stranger, header: str | None
) -> None:
    server = await federation.start(HERE)
    answer = await put(server, header, b"[" * MIB)
    assert (answer.status_code, answer.json()["errcode"]) == (401, "M_UNAUTHORIZED")
    assert answer.headers["connection"] == "close"
    assert server.hs.budgets.peers.held == 0


async def test_signatures_are_checked_before_anything_is_decoded(federation: Federation, stranger: Stranger) -> None:
    server = await federation.start(HERE)
    header = signed(stranger, transaction([]))
    answer = await put(server, header, b'{"pdus":[' + b"{}," * MIB + b"{}]}")
    assert (answer.status_code, answer.json()["errcode"]) == (401, "M_UNAUTHORIZED")


async def test_invalid_signatures_are_charged_to_the_address(federation: Federation, stranger: Stranger) -> None:
    server = await federation.start(HERE, rate_limits=RateLimitsSection(enabled=True))
    header = signed(stranger, transaction([]))
    large = b'{"pdus":["' + b"x" * (9 * MIB) + b'"]}'
    answers = [(await put(server, header, large)).status_code for _ in range(5)]
    assert answers[0] == 401 and answers[-1] == 429
    good = encode(transaction([]))
    assert (await put(server, header, good)).status_code == 429
    assert (await put(server, header, good, address="192.0.2.10")).status_code == 200, "others are not concerned"


async def test_valid_signatures_are_not_charged_to_the_address(federation: Federation, stranger: Stranger) -> None:
    server = await federation.start(HERE, rate_limits=RateLimitsSection(enabled=True))
    content = transaction([])
    for _ in range(int(server.hs.rate_limits.classes["signatures"].burst) + 10):
        assert (await put(server, signed(stranger, content), encode(content))).status_code == 200


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("size", [1, 60_000, 400_000])
async def test_the_body_need_not_be_canonical(
    federation: Federation, stranger: Stranger, indent: int | None, size: int
) -> None:
    server = await federation.start(HERE)
    content = transaction([{"edu_type": "x.unknown", "content": {"b": "é" * size, "a": 1.5e3}}])
    body = json.dumps(dict(reversed(content.items())), indent=indent).encode()
    answer = await put(server, signed(stranger, content), body)
    assert (answer.status_code, answer.json()) == (200, {"pdus": {}})


async def test_a_large_transaction_may_have_its_parts_in_any_order(federation: Federation, stranger: Stranger) -> None:
    """Servers that do not sort the parts send events as they were signed, which is canonical."""
    server = await federation.start(HERE)
    dense = {"edu_type": "x.unknown", "content": {"a": [[]] * limits.http.UNVERIFIED_JSON_NODES_MAX}}
    content = transaction([dense])
    parts = {name: encode(content[name]) for name in ("origin", "pdus", "edus", "origin_server_ts")}
    body = b"{" + b", ".join(b'"%b": %b' % (name.encode(), part) for name, part in parts.items()) + b"}"
    answer = await put(server, signed(stranger, content), body)
    assert (answer.status_code, answer.json()) == (200, {"pdus": {}})


async def test_the_largest_honest_transaction_is_accepted(federation: Federation, stranger: Stranger) -> None:
    """However its users fill their events: with the smallest values, or with text that looks like many."""
    server = await federation.start(HERE, rate_limits=RateLimitsSection(enabled=True))
    for value in ([[]] * 21_000, ",:[{" * 16_000):
        edus = [{"edu_type": "x.unknown", "content": {"a": value}}] * 50
        content = transaction(edus)
        answer = await put(server, signed(stranger, content), encode(content))
        assert (answer.status_code, answer.json()) == (200, {"pdus": {}})


async def test_more_values_than_in_any_honest_transaction_are_refused(
    federation: Federation, stranger: Stranger
) -> None:
    server = await federation.start(HERE)
    content = transaction([], pdus=[[]] * (limits.peers.TRANSACTION_JSON_NODES_MAX // 2 + 10))
    answer = await put(server, signed(stranger, content), encode(content))
    assert (answer.status_code, answer.json()["errcode"]) == (413, "M_TOO_LARGE")
