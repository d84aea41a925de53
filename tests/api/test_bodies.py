"""The cost of decoding request bodies, and the users who are charged for it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from homeserver import limits
from homeserver.api.bodies import count_nodes, count_nodes_exactly
from homeserver.api.routes import Empty, Request, Routes
from homeserver.authenticate import Requester
from homeserver.config import RateLimitsSection
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.process.budgets import Budget
from homeserver.resources import Resources
from tests.api.conftest import Server, StartServer
from tests.api.test_authenticate import issue

routes = Routes()
MIB = 1 << 20


@routes.post("/_matrix/client/v3/login", rate_limit="login")
async def login(hs: Resources, body: dict[str, Any]) -> Empty:
    return Empty()


@routes.post("/_matrix/client/v3/keys/upload")
async def upload_keys(hs: Resources, requester: Requester, body: dict[str, Any]) -> dict[str, Any]:
    return {"values": len(body["x"])}


@routes.get("/_matrix/client/v3/sync")
async def sync(hs: Resources, request: Request) -> dict[str, Any]:
    return {"content": request.content}


@routes.get("/_matrix/client/v3/joined_rooms")
async def joined_rooms(hs: Resources, requester: Requester) -> dict[str, Any]:
    return {"joined_rooms": "x" * (20 * MIB)}


def dense(value: bytes, length: int) -> bytes:
    """Returns an object of about this many bytes, which repeats one value."""
    return b'{"x":[' + b",".join([value] * (length // (len(value) + 1))) + b"]}"


async def log_in(server: Server) -> dict[str, str]:
    """The headers of a user."""
    return {"authorization": f"Bearer {(await issue(server)).access_token}"}


# Counting


def values(content: object) -> int:
    """Returns the number of values and keys."""
    if isinstance(content, dict):
        return 1 + len(content) + sum(map(values, content.values()))
    return 1 + sum(map(values, content)) if isinstance(content, list) else 1


JSON = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a,:[]{}"\\ \n\u00e9')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('a,:"\\')), inner),
)


@given(JSON, st.booleans())
def test_values_are_never_undercounted(content: Any, is_compact: bool) -> None:
    text = json.dumps(content, separators=(",", ":") if is_compact else None).encode()
    exact = count_nodes_exactly(text)
    # An empty object has a brace, an empty list a bracket, which are counted although they hold nothing.
    assert values(content) <= exact + 1
    assert exact <= 2 * values(content)
    assert exact <= count_nodes(text)


@pytest.mark.parametrize("piece", [b'"', b"\\", b'\\"', b'\\\\"', b"\\\\", b'a\\\\\\"', b",[{:"])
def test_text_in_strings_is_not_counted_wherever_chunks_are_cut(piece: bytes) -> None:
    for shift in range(8):
        text = orjson.dumps({"a" * shift: (piece * (600_000 // len(piece))).decode(), "b": [1, 2]})
        assert count_nodes_exactly(text) == 7


def test_counting_is_cheap_for_any_input() -> None:
    for text in (b'\\"' * MIB, b'"' * MIB, b'"' + b"\\" * MIB, b"\\" * MIB, b'"\\' * MIB):
        assert count_nodes_exactly(text) >= 1


# Somebody who has not said who they are


@pytest.mark.parametrize("value", [b"{}", b"[]", b"1", b'{"a":1}', b"[[[[[[[[]]]]]]]]", b"{ }"])
async def test_anonymous_bodies_may_contain_few_values(start_server: StartServer, value: bytes) -> None:
    async with start_server(routes) as server:
        for text in (dense(value, 60_000), dense(value, MIB)):
            answer = await server.http.post("/_matrix/client/v3/login", content=text)
            assert (answer.status_code, answer.json()["errcode"]) == (413, "M_TOO_LARGE")
        few = dense(value, 2_000)
        assert (await server.http.post("/_matrix/client/v3/login", content=few)).status_code == 200


async def test_punctuation_in_text_does_not_count_as_values(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        answer = await server.http.post("/_matrix/client/v3/login", json={"password": ",:[{" * 10_000})
        assert answer.status_code == 200


async def test_a_body_that_the_operation_does_not_take_is_not_decoded(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        for text in (b"{", b"[" * 10_000, dense(b"[]", MIB)):
            answer = await server.http.request("GET", "/_matrix/client/v3/sync", content=text)
            assert answer.json() == {"content": None}


async def test_a_request_without_a_token_is_refused_before_its_body_is_decoded(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        answer = await server.http.post("/_matrix/client/v3/keys/upload", content=b"{" * 100_000)
        assert (answer.status_code, answer.json()["errcode"]) == (401, "M_MISSING_TOKEN")


# Users


async def test_many_values_are_charged_to_their_user(start_server: StartServer) -> None:
    async with start_server(routes, rate_limits=RateLimitsSection(enabled=True)) as server:
        headers = await log_in(server)

        async def send(text: bytes) -> Any:
            return await server.http.post("/_matrix/client/v3/keys/upload", content=text, headers=headers)

        text = dense(b"[]", 120_000)
        assert (await send(text)).json() == {"values": 40_000}
        answers = [(await send(text)).status_code for _ in range(5)]
        assert 200 in answers and answers[-1] == 429
        assert (await send(b'{"x":[1,2]}')).status_code == 200, "small bodies are not charged"
        await trio.sleep(60)
        assert (await send(text)).status_code == 200
        answer = await send(dense(b"[]", 400_000))
        assert (answer.status_code, answer.json()["errcode"]) == (413, "M_TOO_LARGE")


def test_every_limit_of_values_fits_the_budget() -> None:
    assert limits.http.JSON_NODES_MAX["client"] <= limits.RATE_LIMITS["json"].burst
    assert limits.http.JSON_NODES_MAX["federation"] <= limits.RATE_LIMITS["federation_json"].burst
    assert limits.RATE_LIMITS["federation_json"].burst >= limits.peers.TRANSACTION_JSON_NODES_MAX
    assert limits.peers.TRANSACTION_BODY_BYTES_MAX <= limits.http.PEER_BODIES_BYTES_EACH
    assert limits.http.BODY_BYTES_MAX["client"] <= limits.http.CLIENT_BODIES_BYTES_EACH


async def test_a_body_that_arrives_too_slowly_is_abandoned(start_server: StartServer) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" "
            await trio.sleep(10)

    async with start_server(routes) as server:
        request = Request("POST", "/", receive=aiter(trickle()).__anext__)
        with pytest.raises(MatrixError) as caught:
            await request.body(1_000)
        assert caught.value.status == 408
        assert trio.current_time() == pytest.approx(limits.http.BODY_SECONDS_MAX, abs=20)
        assert server.hs.budgets.clients.held == 0


# Answers that are not taken


async def ask_and_take_nothing(server: Server, headers: dict[str, str], statuses: list[int]) -> None:
    """A client that reads the head of its answer, and then no more."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        elif statuses[-1] == 200:
            await trio.sleep_forever()

    scope = {
        "type": "http", "http_version": "1.1", "method": "GET", "path": "/_matrix/client/v3/joined_rooms",
        "raw_path": b"/_matrix/client/v3/joined_rooms", "query_string": b"", "scheme": "http",
        "client": ("10.0.0.1", 1), "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    await server.app(scope, receive, send)


async def test_unread_large_answers_are_limited_per_user(start_server: StartServer) -> None:
    async with start_server(routes) as server, trio.open_nursery() as nursery:
        mallory = await log_in(server)
        alice = {"authorization": f"Bearer {(await issue(server, UserID('@alice2:test.example'))).access_token}"}
        statuses: list[int] = []
        for _ in range(10):
            nursery.start_soon(ask_and_take_nothing, server, mallory, statuses)
            await trio.sleep(0.1)
        assert statuses == [200] * 3 + [429] * 7, "an answer has 20 MiB, a user 64"
        answers = server.hs.budgets.answers
        assert answers.held <= limits.http.LARGE_ANSWERS_BYTES_EACH
        response = await server.http.get("/_matrix/client/v3/joined_rooms", headers=alice)
        assert response.status_code == 200
        nursery.cancel_scope.cancel()
    assert answers.held == 0


def test_a_single_answer_of_any_size_is_allowed() -> None:
    budget = Budget(10, 5)
    with budget.hold("others") as others, budget.hold("a") as own:
        others.become(20)
        assert budget.has_room_for_one("a", 50)
        own.become(50)
        assert not budget.has_room_for_one("a", 1)


# Budgets


async def test_a_budget_has_a_total_and_a_limit_for_each(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(total=100, each=60)
    with budget.hold("a") as a, budget.hold("b") as b:
        await a.take(60)
        await b.take(40)
        for key in ("a", "b", "c"):
            with budget.hold(key) as late, pytest.raises(MatrixError) as caught:
                await late.take(1)
            assert (caught.value.status, caught.value.errcode) == (429, "M_LIMIT_EXCEEDED")
        assert trio.current_time() == pytest.approx(3 * limits.http.BUDGET_WAIT_SECONDS)
    assert budget.held == 0


async def test_waiting_requests_continue_when_the_budget_allows(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(total=100, each=100)

    async def take(key: str, amount: int, seconds: float) -> None:
        with budget.hold(key) as hold:
            await hold.take(amount)
            await trio.sleep(seconds)

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(take, str(number), 50, 3)
    assert trio.current_time() == pytest.approx(9)
    assert budget.held == 0


async def test_a_reservation_can_grow_and_shrink(autojump_clock: trio.testing.MockClock) -> None:
    budget = Budget(total=100, each=50)
    with budget.hold("a") as hold:
        await hold.take(10)
        hold.become(200)
        assert not budget.has_room("b", 1)
        hold.become(5)
        assert budget.has_room("b", 50) and budget.has_room("a", 45) and not budget.has_room("a", 46)
