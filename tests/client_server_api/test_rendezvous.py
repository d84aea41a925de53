"""Spec: MSC4108 (the form of 2024), MSC4388"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from homeserver.config import RateLimitsSection
from homeserver.features.rendezvous import LIFETIME_MS, SESSIONS_MAX, TEXT_BYTES_MAX
from tests.support.homeservers import Homeservers, Server

PATH = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
NEW = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
PLAIN = {"content-type": "text/plain"}
GONE = (404, "M_NOT_FOUND")


async def begin(server: Server, text: str = "hello") -> tuple[str, str]:
    """Returns the path of a new session, and the ETag of its text."""
    answer = await server.anonymous.post(PATH, content=text.encode(), headers=PLAIN)
    assert answer.status_code == 201
    url: str = answer.json()["url"]
    assert url.startswith(f"{server.hs.config.base_url}{PATH}/")
    return url.removeprefix(server.hs.config.base_url), answer.headers["etag"]


async def put(server: Server, path: str, text: str, tag: str) -> httpx.Response:
    return await server.anonymous.put(path, content=text.encode(), headers={**PLAIN, "if-match": tag})


async def read(server: Server, path: str, **headers: str) -> httpx.Response:
    return await server.anonymous.get(path, headers=headers)


async def test_two_devices_write_in_turn(server: Server) -> None:
    path, first = await begin(server)
    seen = await read(server, path)
    assert (seen.text, seen.headers["etag"], seen.headers["content-type"]) == ("hello", first, "text/plain")
    answer = await put(server, path, "good day", first)
    assert (answer.status_code, answer.content) == (202, b"")
    second = answer.headers["etag"]
    assert second != first
    assert (await read(server, path)).text == "good day"
    assert (await read(server, path, **{"if-none-match": second})).status_code == 304
    assert (await read(server, path, **{"if-none-match": first})).status_code == 200


async def test_a_text_that_was_not_seen_is_not_replaced(server: Server) -> None:
    path, first = await begin(server)
    second = (await put(server, path, "mine", first)).headers["etag"]
    late = await put(server, path, "theirs", first)
    assert late.status_code == 412
    assert late.json()["org.matrix.msc4108.errcode"] == "M_CONCURRENT_WRITE"
    assert late.headers["etag"] == second
    assert (await read(server, path)).text == "mine"
    unconditional = await server.anonymous.refused("PUT", path, content=b"theirs", headers=PLAIN)
    assert unconditional == (400, "M_MISSING_PARAM")


async def test_the_same_text_gets_another_tag(server: Server) -> None:
    path, first = await begin(server)
    assert (await put(server, path, "hello", first)).headers["etag"] != first


async def test_a_session_ends(server: Server) -> None:
    path, tag = await begin(server)
    await trio.sleep(LIFETIME_MS / 1000 - 1)
    assert (await put(server, path, "just in time", tag)).status_code == 202
    await trio.sleep(1)
    assert await server.anonymous.refused("GET", path) == GONE
    assert await server.anonymous.refused("PUT", path, content=b"x", headers={**PLAIN, "if-match": tag}) == GONE
    path, tag = await begin(server)
    assert (await server.anonymous.delete(path)).status_code == 204
    assert await server.anonymous.refused("DELETE", path) == GONE
    assert await server.anonymous.refused("GET", path) == GONE


async def test_a_text_has_limits(server: Server) -> None:
    path, tag = await begin(server, "x" * TEXT_BYTES_MAX)
    too_long = b"x" * (TEXT_BYTES_MAX + 1)
    client = server.anonymous
    assert await client.refused("POST", PATH, content=too_long, headers=PLAIN) == (413, "M_TOO_LARGE")
    options: dict[str, Any] = {"content": too_long, "headers": {**PLAIN, "if-match": tag}}
    assert await client.refused("PUT", path, **options) == (413, "M_TOO_LARGE")
    html = {"content-type": "text/html"}
    assert await client.refused("POST", PATH, content=b"<script>", headers=html) == (400, "M_INVALID_PARAM")
    assert (await read(server, path)).text == "x" * TEXT_BYTES_MAX


async def test_browsers_may_send_and_see_what_is_needed(server: Server) -> None:
    path, _ = await begin(server)
    for target in (PATH, path):
        preflight = await server.anonymous.request("OPTIONS", target)
        assert preflight.status_code == 204
        assert {"If-Match", "If-None-Match"} <= set(preflight.headers["access-control-allow-headers"].split(", "))
        assert {"PUT", "DELETE"} <= set(preflight.headers["access-control-allow-methods"].split(", "))
    seen = await read(server, path, origin="https://client.example")
    assert seen.headers["access-control-allow-origin"] == "*"
    assert "ETag" in seen.headers["access-control-expose-headers"]
    assert seen.headers["cache-control"] == "no-store"
    assert seen.headers["x-content-type-options"] == "nosniff"


async def test_the_oldest_sessions_end_when_there_are_too_many(server: Server) -> None:
    first, _ = await begin(server)
    await trio.sleep(1)
    second, _ = await begin(server)
    for _ in range(SESSIONS_MAX - 1):
        await begin(server)
    assert await server.anonymous.refused("GET", first) == GONE
    assert (await read(server, second)).status_code == 200


async def test_sessions_of_one_address_are_limited(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    statuses = [
        (await server.anonymous.post(PATH, content=b"x", headers=PLAIN)).status_code for _ in range(25)
    ]  # fmt: skip
    assert statuses == [201] * 20 + [429] * 5


async def test_the_successor_counts_texts_with_tokens(server: Server) -> None:
    alice = await server.register("alice")
    made = await alice.ok("POST", NEW, json={"data": "hello"})
    path, first = f"{NEW}/{made['id']}", made["sequence_token"]
    assert made["expires_in_ms"] == LIFETIME_MS
    await trio.sleep(1)
    other = server.anonymous
    seen = await other.ok("GET", path)
    assert seen == {"data": "hello", "sequence_token": first, "expires_in_ms": LIFETIME_MS - 1000}
    answer = {"sequence_token": first, "data": "good day"}
    second = (await other.ok("PUT", path, json=answer))["sequence_token"]
    assert second != first
    assert (await other.ok("PUT", path, json=answer))["sequence_token"] == second
    conflict = {"sequence_token": first, "data": "something else"}
    assert await alice.refused("PUT", path, json=conflict) == (409, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE")
    assert (await alice.ok("GET", path))["data"] == "good day"
    assert await other.ok("DELETE", path) == {}
    for method, body in (("GET", None), ("DELETE", None), ("PUT", answer)):
        assert await alice.refused(method, path, json=body) == GONE


async def test_only_devices_that_are_logged_in_begin_a_session_of_the_successor(server: Server) -> None:
    alice = await server.register("alice")
    assert await alice.ok("GET", NEW) == {"create_available": True}
    assert await server.anonymous.ok("GET", NEW) == {"create_available": False}
    assert await server.anonymous.refused("POST", NEW, json={"data": "x"}) == (403, "M_FORBIDDEN")
    assert await alice.refused("POST", NEW, json={"data": "é" * (TEXT_BYTES_MAX // 2 + 1)}) == (413, "M_TOO_LARGE")
    assert await alice.refused("POST", NEW, json={"data": 7}) == (400, "M_BAD_JSON")
    assert (await alice.ok("POST", NEW, json={"data": "é" * (TEXT_BYTES_MAX // 2)}))["id"]


@pytest.mark.parametrize(
    "headers",
    [{"sec-fetch-dest": "document"}, {"sec-fetch-mode": "navigate"}, {"sec-fetch-user": "?1"},
     {"sec-fetch-site": "none"}],
)  # fmt: skip
async def test_the_successor_shows_nothing_to_people(server: Server, headers: dict[str, str]) -> None:
    alice = await server.register("alice")
    path = f"{NEW}/{(await alice.ok('POST', NEW, json={'data': 'hello'}))['id']}"
    assert await alice.refused("GET", path, headers=headers) == (403, "M_FORBIDDEN")
    by_a_page = {"sec-fetch-dest": "empty", "sec-fetch-mode": "cors", "sec-fetch-site": "cross-site"}
    assert (await alice.ok("GET", path, headers=by_a_page))["data"] == "hello"


async def test_a_session_is_of_one_form(server: Server) -> None:
    alice = await server.register("alice")
    path, _ = await begin(server)
    made = await alice.ok("POST", NEW, json={"data": "hello"})
    assert await alice.refused("GET", f"{NEW}/{path.rpartition('/')[2]}") == GONE
    assert await alice.refused("GET", f"{PATH}/{made['id']}") == GONE
