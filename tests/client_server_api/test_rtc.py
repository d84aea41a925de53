"""Spec: MSC4143, MSC4195; the token service is that of Element Call: lk-jwt-service."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey

from homeserver.config import Config, ConfigError, Rtc
from homeserver.federation.identifiers import ServerName
from homeserver.users.administration import set_shadow_banned
from tests.support.federation import Federation
from tests.support.homeservers import Client, Homeservers, Server, now_ms
from tests.support.rows import row
from tests.support.stranger import Stranger

SECRET = "a secret of LiveKit, of at least 32 bytes"
SERVICE = "/_homeserver/client/v1/rtc"
TRANSPORTS = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports"
ROOM = "!call:a.example"
CREATE = "/twirp/livekit.RoomService/CreateRoom"

Json = dict[str, Any]


@dataclass(slots=True)
class LiveKit:
    """A media server that makes rooms for everybody who has its key."""

    status: int = 200
    rooms: list[Json] = field(default_factory=list)

    async def serve(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        message = await receive()
        assert (scope["method"], scope["path"]) == ("POST", CREATE)
        bearer = dict(scope["headers"])[b"authorization"].decode().removeprefix("Bearer ")
        assert read_token(bearer)["video"] == {"roomCreate": True}
        self.rooms.append(json.loads(message["body"]))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}", "more_body": False})


def read_token(token: str) -> Json:
    """Returns what a token of LiveKit says, once its signature is checked."""
    return dict(jwt.decode(token, OctKey.import_key(SECRET), algorithms=["HS256"]).claims)


def digest(*names: str) -> str:
    encoded = json.dumps(names, separators=(",", ":")).encode()
    return base64.b64encode(hashlib.sha256(encoded).digest()).decode().rstrip("=")


def rtc(folder: Path, **changed: Any) -> Rtc:
    (folder / "livekit.secret").write_text(f"{SECRET}\n")
    given = {
        "livekit_url": "wss://livekit.example",
        "livekit_key": "devkey",
        "livekit_secret_file": str(folder / "livekit.secret"),
        **changed,
    }
    return Rtc(**given)


async def openid(client: Client) -> Json:
    token: Json = await client.ok("POST", f"user/{quote(client.user_id)}/openid/request_token", json={})
    return token


def body_for(token: Json, client: Client, **changed: Any) -> Json:
    member = {"id": "member", "claimed_user_id": client.user_id, "claimed_device_id": client.device_id}
    return {"room_id": ROOM, "slot_id": "m.call#ROOM", "openid_token": token, "member": member, **changed}


async def get_token(server: Server, client: Client) -> Json:
    """Asks a token service that is not logged in to, with the OpenID token of a user."""
    body = body_for(await openid(client), client)
    answer: Json = await server.anonymous.ok("POST", f"{SERVICE}/get_token", json=body)
    return answer


@pytest.fixture
def livekit(federation: Federation) -> LiveKit:
    livekit = LiveKit()
    federation.network.join("livekit.example", livekit.serve)
    return livekit


async def test_a_user_gets_a_token_for_a_room_that_is_made(
    federation: Federation, livekit: LiveKit, tmp_path: Path
) -> None:
    server = await federation.start("a.example", rtc=rtc(tmp_path))
    alice = await server.register("alice")
    answer = await get_token(server, alice)
    assert answer["url"] == "wss://livekit.example"
    room, now_s = digest(ROOM, "m.call#ROOM"), now_ms() // 1000
    grant = {"roomJoin": True, "canPublish": True, "canSubscribe": True, "canUpdateOwnMetadata": True, "room": room}
    assert read_token(answer["jwt"]) == {
        "iss": "devkey", "sub": digest(alice.user_id, alice.device_id, "member"), "nbf": now_s, "exp": now_s + 3600,
        "video": grant,
    }  # fmt: skip
    assert livekit.rooms == [{"name": room, "empty_timeout": 300, "departure_timeout": 20}]


async def test_older_clients_name_no_slot(federation: Federation, livekit: LiveKit, tmp_path: Path) -> None:
    server = await federation.start("a.example", rtc=rtc(tmp_path))
    alice = await server.register("alice")
    body = {"room": ROOM, "openid_token": await openid(alice), "device_id": "PHONE"}
    told = read_token((await server.anonymous.ok("POST", f"{SERVICE}/sfu/get", json=body))["jwt"])
    assert told["sub"] == f"{alice.user_id}:PHONE"
    assert told["video"]["room"] == livekit.rooms[0]["name"] == digest(ROOM, "m.call#ROOM")


async def test_a_shadow_banned_user_comes_in_and_reaches_nobody(
    federation: Federation, livekit: LiveKit, tmp_path: Path
) -> None:
    server = await federation.start("a.example", rtc=rtc(tmp_path))
    mallory = await server.register("mallory")
    await server.write(set_shadow_banned, mallory.user_id, True)
    video = read_token((await get_token(server, mallory))["jwt"])["video"]
    assert (video["roomJoin"], video["canPublish"], video["canUpdateOwnMetadata"]) == (True, False, False)
    assert (video["canPublishData"], video["hidden"]) == (False, True)


@pytest.mark.parametrize(("full_access", "rooms"), [((), 0), (("b.example",), 1), (("*",), 1)])
async def test_users_of_other_servers_come_in_and_begin_calls_if_they_may(
    federation: Federation, livekit: LiveKit, tmp_path: Path, full_access: tuple[str, ...], rooms: int
) -> None:
    a = await federation.start("a.example", rtc=rtc(tmp_path, full_access=full_access))
    b = await federation.start("b.example")
    bob = await b.register("bob")
    told = read_token((await get_token(a, bob))["jwt"])
    assert told["sub"] == digest(bob.user_id, bob.device_id, "member")
    assert len(livekit.rooms) == rooms


async def test_a_token_of_another_user_lets_nobody_in(federation: Federation, livekit: LiveKit, tmp_path: Path) -> None:
    a = await federation.start("a.example", rtc=rtc(tmp_path))
    alice, mallory = await a.register("alice"), await a.register("mallory")
    stranger = Stranger(federation.network, ServerName("mallory.example"))
    userinfo = ("GET", "/_matrix/federation/v1/openid/userinfo")
    token = await openid(mallory)
    elsewhere = {**token, "matrix_server_name": "mallory.example"}
    refused = (401, "M_UNAUTHORIZED")

    async def ask(token: Any, client: Client = alice) -> tuple[int, str]:
        return await a.anonymous.refused("POST", f"{SERVICE}/get_token", json=body_for(token, client))

    assert await ask(token) == refused
    assert await ask({**token, "access_token": "wrong"}, mallory) == refused
    assert await ask({**token, "matrix_server_name": "not a name"}, mallory) == refused
    for answer in ({"sub": alice.user_id}, {"sub": 7}, [], (401, {"errcode": "M_UNKNOWN_TOKEN"}), {"sub": "x" * 999}):
        stranger.answers[userinfo] = answer
        assert await ask(elsewhere) == refused, answer
    assert await ask({**token, "matrix_server_name": "gone.example"}, mallory) == (502, "M_UNKNOWN")
    assert livekit.rooms == []


async def test_an_openid_token_ends_with_its_device(federation: Federation, livekit: LiveKit, tmp_path: Path) -> None:
    a = await federation.start("a.example", rtc=rtc(tmp_path))
    alice = await a.register("alice")
    body = body_for(await openid(alice), alice)
    await alice.ok("POST", "logout", json={})
    assert await a.anonymous.refused("POST", f"{SERVICE}/get_token", json=body) == (401, "M_UNAUTHORIZED")


async def test_a_media_server_that_fails_is_reported(federation: Federation, livekit: LiveKit, tmp_path: Path) -> None:
    server = await federation.start("a.example", rtc=rtc(tmp_path))
    alice = await server.register("alice")
    body = body_for(await openid(alice), alice)
    livekit.status = 401
    assert await server.anonymous.refused("POST", f"{SERVICE}/get_token", json=body) == (502, "M_UNKNOWN")
    federation.network.leave("livekit.example")
    assert await server.anonymous.refused("POST", f"{SERVICE}/get_token", json=body) == (502, "M_UNKNOWN")


async def test_malformed_requests_are_refused(federation: Federation, livekit: LiveKit, tmp_path: Path) -> None:
    server = await federation.start("a.example", rtc=rtc(tmp_path))
    alice = await server.register("alice")
    for change in [
        {"room_id": ""},
        {"slot_id": "s" * 256},
        {"room_id": 7},
        {"member": {}},
        {"openid_token": {"access_token": "x"}},
        {"room_id": "!\ud800:x"},
        {"delay_id": "watch over this"},
    ]:
        with row(change):
            body = json.dumps(body_for(await openid(alice), alice, **change)).encode()
            answer: httpx.Response = await server.anonymous.post(f"{SERVICE}/get_token", content=body)
            assert answer.status_code == 400
            assert answer.json()["errcode"] in ("M_BAD_JSON", "M_MISSING_PARAM", "M_NOT_JSON")
            assert livekit.rooms == []


async def test_clients_learn_where_the_media_server_is(homeservers: Homeservers, tmp_path: Path) -> None:
    own = await homeservers.start("a.example", rtc=rtc(tmp_path))
    other = await homeservers.start("b.example", rtc={"service_url": "https://rtc.example/jwt/"})
    without = await homeservers.start("c.example")
    url = f"{own.hs.config.base_url}{SERVICE}"
    for server, transports in (
        (own, [{"type": "livekit", "livekit_service_url": url}]),
        (other, [{"type": "livekit", "livekit_service_url": "https://rtc.example/jwt"}]),
        (without, []),
    ):
        alice = await server.register("alice")
        assert await alice.ok("GET", TRANSPORTS) == {"rtc_transports": transports}
        known = await server.anonymous.ok("GET", "/.well-known/matrix/client")
        assert known.get("org.matrix.msc4143.rtc_foci", []) == transports
        assert await server.anonymous.refused("GET", TRANSPORTS) == (401, "M_MISSING_TOKEN")
    body = body_for({"access_token": "x", "matrix_server_name": "c.example"}, alice)
    assert await without.anonymous.refused("POST", f"{SERVICE}/get_token", json=body) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"livekit_url": "https://x", "livekit_key": "k", "livekit_secret_file": "s"}, "must begin with wss://"),
        ({"livekit_url": "wss://x"}, "need each other"),
        ({"service_url": "x"}, "is not an http or https URL"),
        ({"full_access": ["not a name"]}, "is not a server name"),
    ],
)
def test_settings_are_checked(settings: Json, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(server_name="a.example", rtc=settings)  # type: ignore[arg-type]


def test_the_api_is_at_the_address_of_the_media_server_unless_it_is_given() -> None:
    common = {"livekit_key": "k", "livekit_secret_file": "s"}
    assert Rtc(livekit_url="wss://x/sfu/", **common).api_url == "https://x/sfu"
    assert Rtc(livekit_url="ws://x:7880", **common).api_url == "http://x:7880"
    assert Rtc(livekit_url="wss://x", livekit_api_url="http://10.0.0.1/", **common).api_url == "http://10.0.0.1"
