"""A handler's signature is its contract. Spec: client-server-api/#api-standards, #common-error-codes"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pytest

from homeserver.api.routes import Empty, Request, Response, Routes, guess_group
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID
from homeserver.resources import Resources
from tests.api.conftest import StartServer

ROOM = "!room:a.example"


class Reason(msgspec.Struct):
    reason: str
    user_id: UserID | None = None
    servers: list[ServerName] = []


class Page(msgspec.Struct):
    limit: int
    from_: str = msgspec.field(name="from", default="")
    via: list[str] = []
    full: bool = False
    room: RoomID | None = None


routes = Routes()


@routes.get("/_matrix/client/v3/rooms/{room_id}/event/{event_id}")
async def get_one_event(hs: Resources, room_id: RoomID, event_id: EventID) -> dict[str, Any]:
    return {"room_id": room_id, "event_id": event_id}


@routes.get("/_matrix/client/v3/rooms/{room_id}/state/{event_type}")
@routes.get("/_matrix/client/v3/rooms/{room_id}/state/{event_type}/{state_key}")
async def get_state(hs: Resources, room_id: RoomID, event_type: str, state_key: str = "") -> dict[str, Any]:
    return {"event_type": event_type, "state_key": state_key}


@routes.post("/_matrix/client/v3/rooms/{room_id}/leave")
async def leave(hs: Resources, room_id: RoomID, body: Reason) -> Reason:
    return body


@routes.put("/_matrix/client/v3/any")
async def put_any(hs: Resources, body: dict[str, Any]) -> dict[str, Any]:
    return body


@routes.post("/_matrix/client/v3/maybe")
async def maybe(hs: Resources, body: dict[str, Any] | None) -> dict[str, Any]:
    return {"body": body}


@routes.get("/_matrix/client/v3/page")
async def get_page(hs: Resources, query: Page) -> Page:
    return query


@routes.get("/_matrix/client/v3/pushrules/{kind}/{number}")
async def get_kind(hs: Resources, kind: Literal["override", "room"], number: int) -> dict[str, Any]:
    return {"kind": kind, "number": number}


@routes.get("/_matrix/client/v3/pushrules/all")
async def get_nothing(hs: Resources) -> Empty:
    return Empty()


@routes.get("/_matrix/client/v3/forbidden")
async def refuse(hs: Resources) -> Empty:
    raise forbidden("No.")


@routes.get("/_matrix/client/v3/broken")
async def break_down(hs: Resources) -> Empty:
    raise RuntimeError("a secret detail")


@routes.get("/_matrix/client/v3/limited")
async def be_limited(hs: Resources) -> Empty:
    raise MatrixError(429, "M_LIMIT_EXCEEDED", "Slower.", retry_after_ms=1500)


@routes.get("/_matrix/client/v3/raw")
async def get_raw(hs: Resources, request: Request) -> Response:
    return Response(201, b"bytes", {"content-type": "text/plain", "x-user": request.headers.get("user-agent", "")})


@routes.get("/_matrix/client/v3/pieces")
async def get_pieces(hs: Resources) -> Response:
    async def pieces() -> Any:
        yield b"one "
        yield b"two"

    return Response(headers={"content-type": "text/plain"}, stream=pieces())


@routes.post("/_matrix/media/v3/upload", max_body_bytes=10)
async def upload(hs: Resources, request: Request) -> dict[str, Any]:
    return {"length": sum([len(chunk) async for chunk in request.stream(10)])}


async def ask(start_server: StartServer, method: str, path: str, **options: Any) -> tuple[int, Any]:
    async with start_server(routes) as server:
        response = await server.http.request(method, path, **options)
        assert response.headers["access-control-allow-origin"] == "*"
        return response.status_code, response.json()


@pytest.mark.parametrize(
    ("method", "path", "options", "expected"),
    [
        ("GET", f"/_matrix/client/v3/rooms/{ROOM}/event/$e", {}, {"room_id": ROOM, "event_id": "$e"}),
        ("GET", "/_matrix/client/v3/rooms/%21room%3Aa.example/event/%24a%2Fb%2Bc", {},
         {"room_id": ROOM, "event_id": "$a/b+c"}),
        ("GET", f"/_matrix/client/v3/rooms/{ROOM}/state/m.x", {}, {"event_type": "m.x", "state_key": ""}),
        ("GET", f"/_matrix/client/v3/rooms/{ROOM}/state/m.x/", {}, {"event_type": "m.x", "state_key": ""}),
        ("GET", f"/_matrix/client/v3/rooms/{ROOM}/state/m.x/a%20b", {}, {"event_type": "m.x", "state_key": "a b"}),
        ("POST", f"/_matrix/client/v3/rooms/{ROOM}/leave", {"json": {"reason": "x", "more": 1}},
         {"reason": "x", "user_id": None, "servers": []}),
        ("PUT", "/_matrix/client/v3/any", {"json": {"a": [1, {"b": None}]}}, {"a": [1, {"b": None}]}),
        ("POST", "/_matrix/client/v3/maybe", {}, {"body": None}),
        ("POST", "/_matrix/client/v3/maybe", {"content": b"{}"}, {"body": {}}),
        ("GET", "/_matrix/client/v3/page?limit=3&via=a&via=b&full=true&from=s_1&other=x", {},
         {"limit": 3, "from": "s_1", "via": ["a", "b"], "full": True, "room": None}),
        ("GET", "/_matrix/client/v3/pushrules/room/7", {}, {"kind": "room", "number": 7}),
        ("GET", "/_matrix/client/v3/pushrules/all", {}, {}),
    ],
)  # fmt: skip
async def test_handlers_get_the_arguments_in_their_signature(
    start_server: StartServer, method: str, path: str, options: dict[str, Any], expected: Any
) -> None:
    assert await ask(start_server, method, path, **options) == (200, expected)


LEAVE = f"/_matrix/client/v3/rooms/{ROOM}/leave"


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "errcode"),
    [
        ("GET", "/_matrix/client/v3/nothing", {}, 404, "M_UNRECOGNIZED"),
        ("GET", "/_matrix/", {}, 404, "M_UNRECOGNIZED"),
        ("GET", "/_matrix/client/v3/page/", {}, 404, "M_UNRECOGNIZED"),
        ("GET", "/_matrix/client/v3/rooms//event/$e", {}, 404, "M_UNRECOGNIZED"),
        ("DELETE", LEAVE, {}, 405, "M_UNRECOGNIZED"),
        ("PATCH", LEAVE, {}, 405, "M_UNRECOGNIZED"),
        ("GET", "/_matrix/client/v3/rooms/room/event/$e", {}, 400, "M_INVALID_PARAM"),
        ("GET", f"/_matrix/client/v3/rooms/{ROOM}/event/%FF", {}, 400, "M_INVALID_PARAM"),
        ("GET", f"/_matrix/client/v3/rooms/{ROOM}/state/a%00b", {}, 400, "M_INVALID_PARAM"),
        ("GET", "/_matrix/client/v3/pushrules/sender/7", {}, 400, "M_INVALID_PARAM"),
        ("GET", "/_matrix/client/v3/pushrules/room/x", {}, 400, "M_INVALID_PARAM"),
        ("POST", LEAVE, {}, 400, "M_NOT_JSON"),
        ("POST", LEAVE, {"content": b"{"}, 400, "M_NOT_JSON"),
        ("POST", LEAVE, {"content": b'{"reason": "\xff"}'}, 400, "M_NOT_JSON"),
        ("POST", LEAVE, {"content": b'{"reason": "a", "reason": "b"}'}, 400, "M_NOT_JSON"),
        ("POST", LEAVE, {"content": b"[" * 3_000}, 400, "M_NOT_JSON"),
        ("POST", LEAVE, {"content": b"[" * 200_000}, 413, "M_TOO_LARGE"),
        ("POST", LEAVE, {"content": b'{"a":' * 1_500 + b"1" + b"}" * 1_500}, 400, "M_NOT_JSON"),
        ("POST", LEAVE, {"content": rb'{"reason": "\ud800"}'}, 400, "M_NOT_JSON"),
        ("POST", LEAVE, {"json": []}, 400, "M_BAD_JSON"),
        ("POST", LEAVE, {"json": {"reason": 1}}, 400, "M_BAD_JSON"),
        ("POST", LEAVE, {"json": {}}, 400, "M_MISSING_PARAM"),
        ("POST", LEAVE, {"json": {"reason": "x", "user_id": "alice"}}, 400, "M_INVALID_PARAM"),
        ("POST", LEAVE, {"json": {"reason": "x", "servers": ["a b"]}}, 400, "M_INVALID_PARAM"),
        ("PUT", "/_matrix/client/v3/any", {"content": b'"text"'}, 400, "M_BAD_JSON"),
        ("PUT", "/_matrix/client/v3/any", {"content": b'{"a":"' + b"x" * (1 << 20) + b'"}'}, 413, "M_TOO_LARGE"),
        ("GET", "/_matrix/client/v3/page", {}, 400, "M_MISSING_PARAM"),
        ("GET", "/_matrix/client/v3/page?limit=many", {}, 400, "M_INVALID_PARAM"),
        ("GET", "/_matrix/client/v3/page?limit=1&full=perhaps", {}, 400, "M_INVALID_PARAM"),
        ("GET", "/_matrix/client/v3/page?limit=1&room=x", {}, 400, "M_INVALID_PARAM"),
        ("GET", "/_matrix/client/v3/page?limit=%FF", {}, 400, "M_INVALID_PARAM"),
        ("GET", "/_matrix/client/v3/page?limit=1" + "&a=b" * 600, {}, 400, "M_INVALID_PARAM"),
        ("GET", "/_matrix/client/v3/" + "a" * 9000, {}, 414, "M_TOO_LARGE"),
        ("POST", "/_matrix/media/v3/upload", {"content": b"x" * 11}, 413, "M_TOO_LARGE"),
        ("GET", "/_matrix/client/v3/forbidden", {}, 403, "M_FORBIDDEN"),
    ],
)
async def test_refusals_have_the_errors_of_the_spec(
    start_server: StartServer, method: str, path: str, options: dict[str, Any], status: int, errcode: str
) -> None:
    found, body = await ask(start_server, method, path, **options)
    assert (found, body["errcode"]) == (status, errcode)
    assert body["error"]


async def test_an_unexpected_error_reveals_nothing_to_the_client(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    status, body = await ask(start_server, "GET", "/_matrix/client/v3/broken")
    assert (status, body["errcode"]) == (500, "M_UNKNOWN")
    assert "secret" not in body["error"]
    (record,) = [record for record in caplog.records if record.name == "homeserver.http"]
    assert record.request_id in body["error"]
    assert record.operation == "break_down"


async def test_retry_after_is_in_whole_seconds(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        response = await server.http.get("/_matrix/client/v3/limited")
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
    assert response.json()["retry_after_ms"] == 1500


async def test_a_response_may_be_bytes_or_a_stream(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        raw = await server.http.get("/_matrix/client/v3/raw", headers={"user-agent": "me"})
        pieces = await server.http.get("/_matrix/client/v3/pieces")
    assert (raw.status_code, raw.content, raw.headers["x-user"]) == (201, b"bytes", "me")
    assert raw.headers["content-type"] == "text/plain"
    assert pieces.text == "one two"


async def test_uploads_are_streamed(start_server: StartServer) -> None:
    assert await ask(start_server, "POST", "/_matrix/media/v3/upload", content=b"x" * 10) == (200, {"length": 10})


async def test_options_is_answered_without_running_the_handler(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        for path in (LEAVE, "/_matrix/client/v3/broken", "/_matrix/client/v3/not/there"):
            response = await server.http.options(path, headers={"origin": "https://app.example"})
            assert response.status_code == 204
            assert response.headers["access-control-allow-origin"] == "*"
            assert "PUT" in response.headers["access-control-allow-methods"]
            assert "Authorization" in response.headers["access-control-allow-headers"]


async def test_head_is_get_without_the_body(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        response = await server.http.head("/_matrix/client/v3/pushrules/all")
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "2")


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("/_matrix/client/v3/sync", "client"),
        ("/.well-known/matrix/client", "client"),
        ("/_matrix/media/v3/upload", "media"),
        ("/_matrix/client/v1/media/config", "media"),
        ("/_matrix/federation/v1/version", "federation"),
        ("/_matrix/key/v2/server", "federation"),
        ("/.well-known/matrix/server", "federation"),
        ("/_synapse/admin/v1/register", "admin"),
        ("/_homeserver/metrics", "metrics"),
        ("/_homeserver/health/ready", "health"),
    ],
)
def test_groups_are_derived_from_the_path(path: str, group: str) -> None:
    assert guess_group(path) == group


async def test_a_listener_answers_only_its_groups(start_server: StartServer) -> None:
    import httpx

    async with start_server(routes) as server:
        media_only = httpx.ASGITransport(server.app.serving({"media"}))
        async with httpx.AsyncClient(transport=media_only, base_url="https://test.example") as http:
            assert (await http.get("/_matrix/client/v3/page?limit=1")).json()["errcode"] == "M_UNRECOGNIZED"
            assert (await http.get("/_matrix/client/v3/page?limit=1")).status_code == 404
            assert (await http.delete("/_matrix/client/v3/page")).status_code == 404
            assert (await http.options("/_matrix/client/v3/page")).status_code == 404
            assert (await http.post("/_matrix/media/v3/upload", content=b"x")).status_code == 200
            assert (await http.get("/")).status_code == 404


def test_unsuitable_signatures_are_refused_at_registration() -> None:
    bad = Routes()

    async def no_hs(room_id: RoomID) -> Empty:
        return Empty()

    async def unknown(hs: Resources, thing: str) -> Empty:
        return Empty()

    async def not_taken(hs: Resources) -> Empty:
        return Empty()

    async def no_parameter(hs: Resources, room_id: list[str]) -> Empty:
        return Empty()

    async def odd_body(hs: Resources, room_id: str, body: int) -> Empty:
        return Empty()

    for handler in (no_hs, unknown, not_taken, no_parameter, odd_body):
        with pytest.raises(TypeError):
            bad.get("/_matrix/client/v3/rooms/{room_id}")(handler)
    assert len(bad) == 0
