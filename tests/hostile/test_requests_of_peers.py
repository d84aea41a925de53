"""Requests of other servers that are not signed as they should be, or ask for what cannot be.

Spec: server-server-api/#authentication, #request-authentication
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.api.routes import Operation
from homeserver.federation.identifiers import ServerName
from homeserver.federation.request_auth import build_authorization
from homeserver.federation.signing import SigningKey
from tests.hostile.asking import Answer, ask, check_error
from tests.hostile.test_paths import NO_UTF8, UNKIND
from tests.hostile.values import NOT_AN_OBJECT, NOT_JSON, encode, sample, wrong_query_values
from tests.hostile.world import FEDERATION_OPERATIONS, OPERATIONS, World, in_groups, make_world
from tests.support.federation import Federation, send_text, sync
from tests.support.homeservers import Client
from tests.support.stranger import Stranger

HERE = ServerName("a.example")
STRANGER = ServerName("stranger.example")
Peers = tuple[World, Stranger]


@pytest.fixture
async def peers(federation: Federation) -> Peers:
    """Our world, and a server that is in its room."""
    world = await make_world(await federation.start(HERE))
    stranger = Stranger(federation.network, STRANGER)
    await stranger.join(HERE, world.room_id, "guest")
    return world, stranger


def sign(
    stranger: Stranger, method: str, uri: str, content: Any, *, to: str = HERE, key: SigningKey | None = None
) -> str:
    """The Authorization header."""
    return build_authorization(method, uri, stranger.name, ServerName(to), key or stranger.key, content)


async def send(
    peers: Peers, operation: Operation, header: str | None, *, path: str = "", query: str = "", body: bytes = b""
) -> Answer:
    """Sends exactly this and returns the response."""
    headers = [] if header is None else [("authorization", header)]
    path = path or peers[0].path(operation)
    return await ask(peers[0].server.app, operation.method, path, query=query, headers=headers, body=body)


def body_of(peers: Peers, operation: Operation) -> Any:
    plan = operation.plan.body
    return None if plan is None else sample(plan.kind, peers[0].known)


async def assert_well(peers: Peers) -> None:
    world, stranger = peers
    await sync(world.alice)
    await send_text(world.alice, world.room_id, "still here")
    path = f"/_matrix/federation/v1/query/profile?user_id={quote(world.alice.user_id)}"
    status, answer = await stranger.get(HERE, path)
    assert status == 200, answer


def bad_headers(stranger: Stranger, method: str, uri: str, content: Any) -> list[str | None]:
    """Authorization headers that are wrong in one respect each."""
    good = sign(stranger, method, uri, content)
    other = SigningKey("stranger", b"\7" * 32)
    parts = dict(part.split("=", 1) for part in good.removeprefix("X-Matrix ").split(","))
    without = [
        "X-Matrix " + ",".join(f"{name}={value}" for name, value in parts.items() if name != left)
        for left in parts
        if left != "destination"
    ]
    return [
        None, "", "X-Matrix", "X-Matrix ", "Bearer x", "X-Matrix origin", "X-Matrix ,,,", 'X-Matrix origin="',
        "\xff" * 99,
        *without,
        sign(stranger, method, uri, content, key=other),
        sign(stranger, method, uri, content, to="b.example"),
        sign(stranger, method, uri + "x", content),
        sign(stranger, method, uri, {"other": "content"}),
        sign(stranger, "PATCH", uri, content),
        good.replace(f"{STRANGER}", f"{HERE}"),
        good.replace(f"{STRANGER}", "nobody.example"),
        good.replace("ed25519:stranger", "ed25519:other"),
        good.replace("ed25519:stranger", "rsa:stranger"),
        good.replace('sig="', 'sig="AAAA'),
        good.replace('sig="', 'sig="%'),
        good + ',origin="other.example"',
        good + "," + "x=y," * 5_000,
        "X-Matrix " + "a" * 60_000,
    ]  # fmt: skip


@in_groups(FEDERATION_OPERATIONS)
async def test_badly_signed_requests_are_refused(peers: Peers, operations: Sequence[Operation]) -> None:
    for operation in operations:
        world, stranger = peers
        path, content = world.path(operation), body_of(peers, operation)
        before = await world.contents()
        for header in bad_headers(stranger, operation.method, path, content):
            answer = await send(peers, operation, header, path=path, body=b"" if content is None else encode(content))
            check_error(answer)
            assert answer.status in (400, 401, 403), f"{header!r:.200}: {answer}"
            assert answer.errcode in ("M_UNAUTHORIZED", "M_FORBIDDEN", "M_BAD_JSON", "M_INVALID_PARAM"), str(answer)
        assert await world.contents() == before


@in_groups(FEDERATION_OPERATIONS)
async def test_a_request_for_another_server_cannot_be_replayed(peers: Peers, operations: Sequence[Operation]) -> None:
    for operation in operations:
        world, stranger = peers
        path, content = world.path(operation), body_of(peers, operation)
        meant_for_other = sign(stranger, operation.method, path, content, to="other.example")
        body = b"" if content is None else encode(content)
        for header in (
            meant_for_other,
            meant_for_other.replace('destination="other.example"', f'destination="{HERE}"'),
            meant_for_other.replace(',destination="other.example"', ""),
        ):
            answer = await send(peers, operation, header, path=path, body=body)
            assert answer.status == 401, str(answer)


@in_groups(FEDERATION_OPERATIONS)
async def test_any_part_of_a_signed_path_may_be_wrong(peers: Peers, operations: Sequence[Operation]) -> None:
    for operation in operations:
        world, stranger = peers
        content = body_of(peers, operation)
        body = b"" if content is None else encode(content)
        for name, _ in operation.plan.path:
            for text in (*NO_UTF8, *UNKIND):
                if "?" in text or len(text) > 1_000:
                    continue
                path = world.path(operation, **{name: text})
                header = sign(stranger, operation.method, path, content)
                answer = await send(peers, operation, header, path=path, body=body)
                assert answer.status < 500, str(answer)
                if answer.status >= 400:
                    check_error(answer)
        await assert_well(peers)


WITH_QUERY = tuple(operation for operation in FEDERATION_OPERATIONS if operation.plan.query is not None)


@in_groups(WITH_QUERY)
async def test_any_parameter_of_a_signed_query_may_be_wrong(peers: Peers, operations: Sequence[Operation]) -> None:
    for operation in operations:
        world, stranger = peers
        plan, content = operation.plan.query, body_of(peers, operation)
        assert plan is not None
        for name, text, _ in wrong_query_values(plan.kind):
            if not text.isascii():
                continue
            path, query = world.path(operation), f"event_id={quote(world.event_id)}&{name}={text}"
            header = sign(stranger, operation.method, f"{path}?{query}", content)
            answer = await send(peers, operation, header, path=path, query=query)
            assert answer.status < 500, str(answer)
            if answer.status >= 400:
                check_error(answer)
        await assert_well(peers)


WITH_BODY = tuple(operation for operation in OPERATIONS if operation.group == "federation" and operation.plan.body)


@in_groups(WITH_BODY)
async def test_a_body_that_is_not_a_json_object_is_refused(peers: Peers, operations: Sequence[Operation]) -> None:
    for operation in operations:
        world, stranger = peers
        before = await world.contents()
        for body in (*NOT_JSON, *NOT_AN_OBJECT, b""):
            path = world.path(operation)
            try:
                header = sign(stranger, operation.method, path, json.loads(body))
            except (ValueError, RecursionError):
                header = sign(stranger, operation.method, path, {})
            answer = await send(peers, operation, header, path=path, body=body)
            assert answer.status in (400, 401), str(answer)
            check_error(answer)
        assert await world.contents() == before


@in_groups(WITH_BODY)
async def test_an_oversized_body_is_refused_unread(peers: Peers, operations: Sequence[Operation]) -> None:
    for operation in operations:
        path = peers[0].path(operation)
        header = sign(peers[1], operation.method, path, {})
        for length in (str(operation.max_body_bytes + 1), "9" * 30):
            answer = await ask(
                peers[0].server.app,
                operation.method,
                path,
                headers=[("authorization", header)],
                body=b"{}",
                length=length,
            )
            assert answer.verdict == (413, "M_TOO_LARGE"), str(answer)
            check_error(answer)


async def test_a_transaction_has_at_most_50_pdus_and_100_edus(peers: Peers) -> None:
    world, stranger = peers
    for pdus, edus in ((51, 0), (0, 101), (10_000, 0), (0, 10_000)):
        body = {"origin": STRANGER, "origin_server_ts": 1, "pdus": [{}] * pdus, "edus": [{}] * edus}
        status, answer = await stranger.put(HERE, f"/_matrix/federation/v1/send/{pdus}-{edus}", body)
        assert (status, answer["errcode"]) in ((400, "M_BAD_JSON"), (413, "M_TOO_LARGE")), answer
    await assert_well(peers)


async def test_servers_outside_a_room_learn_nothing_about_it(federation: Federation, peers: Peers) -> None:
    world, _ = peers
    outsider = Stranger(federation.network, ServerName("outsider.example"))
    secret = await _private_room(world.alice)
    event_id = await send_text(world.alice, secret, "a secret")
    room, event = quote(secret, safe=""), quote(event_id, safe="")
    for path in (
        f"event/{event}", f"state/{room}?event_id={event}", f"state_ids/{room}?event_id={event}",
        f"event_auth/{room}/{event}", f"backfill/{room}?v={event}&limit=10", f"timestamp_to_event/{room}?ts=0&dir=f",
        f"make_join/{room}/{quote(outsider.user('x'), safe='')}?ver=12",
        f"make_knock/{room}/{quote(outsider.user('x'), safe='')}?ver=12",
    ):  # fmt: skip
        status, answer = await outsider.get(HERE, f"/_matrix/federation/v1/{path}")
        assert status in (400, 403, 404), f"{path}: {status} {answer}"
        assert "a secret" not in json.dumps(answer)
    status, answer = await outsider.request(
        HERE, "POST", f"/_matrix/federation/v1/get_missing_events/{room}",
        {"earliest_events": [], "latest_events": [event_id]},
    )  # fmt: skip
    assert status in (403, 404), answer


async def _private_room(client: Client) -> str:
    room_id: str = (await client.ok("POST", "createRoom", json={"preset": "private_chat"}))["room_id"]
    return room_id
