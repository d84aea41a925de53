"""Access and refresh tokens. Spec: client-server-api/#client-authentication, #refreshing-access-tokens"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import trio

from homeserver import limits
from homeserver.api.bodies import Body
from homeserver.api.routes import Empty, Request, Routes
from homeserver.authenticate import (
    AccountFlags,
    IssuedTokens,
    Requester,
    create_tokens,
    delete_tokens_of_device,
    delete_tokens_of_user,
    get_account_flags,
    hash_token,
    replace_tokens,
    store_account_flags,
)
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.http.asgi import App
from homeserver.http.dispatch import Dispatch
from homeserver.resources import Resources
from tests.api.conftest import Server, StartServer

ALICE = UserID("@alice:test.example")
BOB = UserID("@bob:test.example")
ALL_ACCESS_TOKENS = "SELECT * FROM access_tokens"
ALL_REFRESH_TOKENS = "SELECT * FROM refresh_tokens"

routes = Routes()


@routes.get("/_matrix/client/v3/account/whoami", allow_guest=True)
async def whoami(hs: Resources, requester: Requester) -> dict[str, Any]:
    return {"user_id": requester.user_id, "device_id": requester.device_id, "is_admin": requester.is_admin}


@routes.get("/_matrix/client/versions")
async def versions(hs: Resources, requester: Requester | None) -> dict[str, Any]:
    return {"user_id": requester.user_id if requester else None}


@routes.get("/_matrix/client/v3/pushers")
async def members_only(hs: Resources, requester: Requester) -> Empty:
    return Empty()


@routes.put("/_matrix/client/v3/profile")
async def change_profile(hs: Resources, requester: Requester) -> Empty:
    return Empty()


@routes.post("/_matrix/client/v3/logout", allow_suspended=True, allow_locked=True)
async def logout(hs: Resources, requester: Requester) -> Empty:
    await hs.database.write(delete_tokens_of_device, requester.user_id, requester.device_id)
    return Empty()


@routes.put("/_matrix/federation/v1/send/{txn_id}")
async def send(hs: Resources, origin: ServerName, txn_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"origin": origin, "txn_id": txn_id, "body": body}


@routes.get("/_matrix/federation/v1/version_of")
async def version_of(hs: Resources, origin: ServerName) -> dict[str, Any]:
    return {"origin": origin}


async def issue(server: Server, user_id: UserID = ALICE, device_id: str = "DEV", **options: Any) -> IssuedTokens:
    tokens: IssuedTokens = await server.write(create_tokens, user_id, device_id, **options)
    return tokens


async def ask(server: Server, token: str | None, path: str = "/_matrix/client/v3/account/whoami") -> httpx.Response:
    headers = {} if token is None else {"authorization": f"Bearer {token}"}
    return await server.http.get(path, headers=headers)


async def works(server: Server, token: str | None) -> bool:
    return token is not None and (await ask(server, token)).status_code == 200


async def test_a_token_identifies_its_user_and_device(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        tokens = await issue(server)
        answer = await ask(server, tokens.access_token)
        assert answer.json() == {"user_id": ALICE, "device_id": "DEV", "is_admin": False}
        assert tokens.body() == {"access_token": tokens.access_token}
        in_query = await server.http.get(f"/_matrix/client/v3/account/whoami?access_token={tokens.access_token}")
        assert in_query.status_code == 200
        lower = await server.http.get(
            "/_matrix/client/v3/account/whoami", headers={"authorization": f"bearer  {tokens.access_token}"}
        )
        assert lower.status_code == 200


@pytest.mark.parametrize(
    ("headers", "errcode"),
    [
        ({}, "M_MISSING_TOKEN"),
        ({"authorization": "Bearer "}, "M_MISSING_TOKEN"),
        ({"authorization": "Basic YTpi"}, "M_MISSING_TOKEN"),
        ({"authorization": "Bearer nothing"}, "M_UNKNOWN_TOKEN"),
        ({"authorization": "Bearer \xff"}, "M_UNKNOWN_TOKEN"),
        ({"authorization": "Bearer " + "x" * 5000}, "M_UNKNOWN_TOKEN"),
    ],
)
async def test_an_invalid_token_is_answered_with_401(
    start_server: StartServer, headers: dict[str, str], errcode: str
) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    async with start_server(routes) as server:
        answer = await server.http.get("/_matrix/client/v3/account/whoami", headers=raw)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["errcode"]) == (401, errcode)
        assert answer.json().get("soft_logout", False) is False


async def test_an_optional_token_may_be_absent_but_not_invalid(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        token = (await issue(server)).access_token
        assert (await ask(server, None, "/_matrix/client/versions")).json() == {"user_id": None}
        assert (await ask(server, token, "/_matrix/client/versions")).json() == {"user_id": ALICE}
        assert (await ask(server, "wrong", "/_matrix/client/versions")).status_code == 401


async def test_only_the_hash_of_a_token_is_stored(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        tokens = await issue(server, refreshable=True)
        rows = await server.read(lambda tx: [*tx.all(ALL_ACCESS_TOKENS), *tx.all(ALL_REFRESH_TOKENS)])
        assert rows[0][0] == hash_token(tokens.access_token)
        assert tokens.access_token not in repr(rows)
        assert tokens.refresh_token not in repr(rows)


async def test_an_expired_token_causes_a_soft_logout(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        tokens = await issue(server, refreshable=True)
        assert tokens.expires_in_ms == limits.ACCESS_TOKEN_LIFETIME_MS
        assert await works(server, tokens.access_token)
        await trio.sleep(limits.ACCESS_TOKEN_LIFETIME_MS / 1000 + 1)
        answer = await ask(server, tokens.access_token)
        assert answer.status_code == 401
        assert (answer.json()["errcode"], answer.json()["soft_logout"]) == ("M_UNKNOWN_TOKEN", True)


async def test_deleting_a_device_revokes_its_tokens_at_once(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        first, second = await issue(server), await issue(server, device_id="OTHER")
        assert await works(server, first.access_token) and await works(server, second.access_token)
        await server.http.post(
            "/_matrix/client/v3/logout", headers={"authorization": f"Bearer {first.access_token}"}, content=b"{}"
        )
        assert not await works(server, first.access_token)
        assert await works(server, second.access_token)


async def test_a_lookup_that_overlaps_a_deletion_is_not_cached(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        token = (await issue(server)).access_token
        cache, position = server.hs.token_cache, server.hs.stream.position
        await server.write(delete_tokens_of_device, ALICE, "DEV")
        cache.put(hash_token(token), ALICE, "stale", now_ms=0, position=position)
        assert not await works(server, token)


async def test_all_tokens_of_a_user_except_one_devices_can_be_revoked(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        kept, ended = await issue(server, refreshable=True), await issue(server, device_id="B", refreshable=True)
        other = await issue(server, BOB)
        await server.write(delete_tokens_of_user, ALICE, except_device_id="DEV")
        assert [await works(server, each.access_token) for each in (kept, ended, other)] == [True, False, True]
        with pytest.raises(MatrixError, match="M_UNKNOWN_TOKEN"):
            await server.write(replace_tokens, ended.refresh_token)
        await server.write(delete_tokens_of_user, ALICE)
        assert not await works(server, kept.access_token)


async def refresh(server: Server, tokens: IssuedTokens) -> IssuedTokens:
    new: IssuedTokens = await server.write(replace_tokens, tokens.refresh_token)
    return new


async def test_the_old_refresh_token_is_valid_until_the_new_access_token_is_used(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        old = await issue(server, refreshable=True)
        lost = await refresh(server, old)  # the answer did not reach the client, which asks again
        new = await refresh(server, old)
        assert not await works(server, lost.access_token)
        assert await works(server, old.access_token)
        assert await works(server, new.access_token)
        assert not await works(server, old.access_token)
        with pytest.raises(MatrixError, match="M_UNKNOWN_TOKEN"):
            await refresh(server, old)
        with pytest.raises(MatrixError, match="M_UNKNOWN_TOKEN"):
            await refresh(server, lost)
        assert await works(server, (await refresh(server, new)).access_token)


async def test_the_old_refresh_token_ends_when_the_new_one_is_used(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        old = await issue(server, refreshable=True)
        new = await refresh(server, old)
        newer = await refresh(server, new)
        with pytest.raises(MatrixError, match="M_UNKNOWN_TOKEN"):
            await refresh(server, old)
        assert await works(server, newer.access_token)
        rows = await server.read(lambda tx: (tx.all(ALL_ACCESS_TOKENS), tx.all(ALL_REFRESH_TOKENS)))
        assert [len(each) for each in rows] == [1, 1]


async def test_guests_may_use_operations_declared_for_guests(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        await server.write(store_account_flags, ALICE, AccountFlags(is_guest=True))
        token = (await issue(server)).access_token
        assert await works(server, token)
        answer = await ask(server, token, "/_matrix/client/v3/pushers")
        assert (answer.status_code, answer.json()["errcode"]) == (403, "M_GUEST_ACCESS_FORBIDDEN")


async def test_suspended_accounts_may_use_operations_declared_for_them(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        await server.write(store_account_flags, ALICE, AccountFlags(is_suspended=True))
        token = (await issue(server)).access_token
        headers = {"authorization": f"Bearer {token}"}
        assert await works(server, token)
        answer = await server.http.put("/_matrix/client/v3/profile", headers=headers)
        assert (answer.status_code, answer.json()["errcode"]) == (403, "M_USER_SUSPENDED")
        assert (await server.http.post("/_matrix/client/v3/logout", headers=headers)).status_code == 200


async def test_a_locked_account_can_only_log_out(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        token = (await issue(server)).access_token
        assert await works(server, token)
        await server.write(store_account_flags, ALICE, AccountFlags(is_locked=True))
        answer = await ask(server, token)
        assert (answer.status_code, answer.json()["errcode"]) == (401, "M_USER_LOCKED")
        assert answer.json()["soft_logout"] is True
        await server.write(store_account_flags, ALICE, AccountFlags(is_admin=True))
        assert (await ask(server, token)).json()["is_admin"] is True
        await server.write(store_account_flags, ALICE, AccountFlags(is_locked=True))
        headers = {"authorization": f"Bearer {token}"}
        assert (await server.http.post("/_matrix/client/v3/logout", headers=headers)).status_code == 200
        assert await server.read(get_account_flags, ALICE) == AccountFlags(is_locked=True)
        assert await server.read(get_account_flags, BOB) == AccountFlags()


async def test_requests_update_when_a_device_was_last_seen(start_server: StartServer) -> None:
    async with start_server(routes) as server:
        token = (await issue(server)).access_token
        await server.http.get(
            "/_matrix/client/v3/account/whoami", headers={"authorization": f"Bearer {token}", "user-agent": "x" * 999}
        )
        ((key, seen),) = server.hs.token_cache.take_seen().items()
        assert key == (ALICE, "DEV")
        assert (seen.ip, seen.user_agent, seen.ts_ms) == ("192.0.2.7", "x" * 255, server.hs.now_ms())
        assert server.hs.token_cache.take_seen() == {}


@dataclass(frozen=True, slots=True)
class Claimed:
    """An origin that is believed if its request says "right" in the header."""

    header: str
    checked: list[Any]

    @property
    def origin(self) -> ServerName:
        return ServerName("peer.example")

    async def check(self, hs: Resources, request: Request, body: Body | None) -> None:
        self.checked.append((request.method, request.uri, body and body.text, request.content))
        if self.header != "right":
            raise MatrixError(401, "M_UNAUTHORIZED", "The signature is wrong.")


async def test_the_origin_of_a_federation_request_is_checked_in_two_steps(start_server: StartServer) -> None:
    """The header before the body is read, the signature before it is decoded."""
    checked: list[Any] = []

    async def identify(hs: Resources, request: Request) -> Claimed:
        if "authorization" not in request.headers:
            raise MatrixError(401, "M_UNAUTHORIZED", "No signature.")
        return Claimed(request.headers["authorization"], checked)

    send = "/_matrix/federation/v1/send/a%2Fb?x=1"
    async with start_server(routes) as server:
        app = App(Dispatch(server.hs, routes, identify_origin=identify))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="https://test.example") as http:
            put = await http.put(send, json={"pdus": []}, headers={"authorization": "right"})
            get = await http.request(
                "GET", "/_matrix/federation/v1/version_of", content=b"{", headers={"authorization": "right"}
            )
            wrong = await http.put(send, content=b"[[", headers={"authorization": "wrong"})
            nobody = await http.get("/_matrix/federation/v1/version_of")
            unread = await http.put(send, content=b"[" * 1_000_000)
        off = await server.http.get("/_matrix/federation/v1/version_of")
    assert put.json() == {"origin": "peer.example", "txn_id": "a/b", "body": {"pdus": []}}
    assert get.json() == {"origin": "peer.example"}
    for refused in (wrong, nobody, unread, off):
        assert (refused.status_code, refused.json()["errcode"]) == (401, "M_UNAUTHORIZED")
    assert checked == [
        ("PUT", send, b'{"pdus":[]}', None),
        ("GET", "/_matrix/federation/v1/version_of", None, None),
        ("PUT", send, b"[[", None),
    ]
    assert "access-control-allow-origin" not in get.headers
