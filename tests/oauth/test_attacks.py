"""Attacks on the OAuth 2.0 API. Spec: RFC 9700, client-server-api/#oauth-20-api"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import trio

from homeserver import authenticate, limits
from homeserver.authenticate import AccountFlags
from homeserver.errors import MatrixError
from homeserver.users.oauth.requests import AuthorizationRefused, read_request, store_code
from homeserver.users.oauth.sessions import list_sessions
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.oauth import (
    CALLBACK,
    TOKEN,
    App,
    Session,
    challenge_of,
    post_form,
    refused,
    register_app,
    scope_of,
)

UNKNOWN = (401, "M_UNKNOWN_TOKEN")
INVALID_GRANT = (400, "invalid_grant")


@pytest.fixture
async def server(homeservers: Homeservers) -> Server:
    return await homeservers.start()


@pytest.fixture
async def alice(server: Server) -> Client:
    return await server.register("alice")


@pytest.fixture
async def app(server: Server) -> App:
    return await register_app(server)


async def is_logged_in(session: Session) -> bool:
    return (await session.client.get("account/whoami")).status_code == 200


# --- authorization requests ---


FOREIGN_URIS = (
    "https://evil.example/callback",
    f"{CALLBACK}/",
    f"{CALLBACK}?more=1",
    f"{CALLBACK}#fragment",
    "https://APP.example.com/callback",
    "https://app.example.com/callback/../callback",
    "https://app.example.com:443/callback",
    "https://other.example.com/callback",
    "https://app.example.com/callback%00",
    "https://app.example.com/call\r\nback",
    'https://app.example.com/"',
    "https://äpp.example.com/callback",
    "",
    None,
)


async def test_a_redirect_uri_that_is_not_registered_is_not_linked(app: App) -> None:
    for uri in FOREIGN_URIS:
        with pytest.raises(AuthorizationRefused) as refusal:
            await app.read(redirect_uri=uri)
        assert refusal.value.return_to is None


WRONG_REQUESTS: Sequence[tuple[Mapping[str, str | None], str]] = (
    ({"code_challenge": None}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge": None, "code_challenge_method": None}, "invalid_request"),
    ({"code_challenge": "short"}, "invalid_request"),
    ({"code_challenge": challenge_of("x") + "\n"}, "invalid_request"),
    ({"response_mode": "form_post"}, "invalid_request"),
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"response_type": "code token"}, "unsupported_response_type"),
    ({"scope": "openid"}, "invalid_scope"),
    ({"scope": None}, "invalid_scope"),
    ({"scope": "urn:matrix:client:api:*"}, "invalid_scope"),
    ({"scope": f"{scope_of('ONE')} urn:matrix:client:device:TWO"}, "invalid_scope"),
    ({"scope": f"{scope_of('')}"}, "invalid_scope"),
    ({"scope": scope_of('A"B')}, "invalid_scope"),
    ({"scope": scope_of("Ä")}, "invalid_scope"),
    ({"scope": scope_of("A" * 300)}, "invalid_scope"),
)


async def test_a_wrong_request_is_explained_and_not_redirected(app: App) -> None:
    for changes, error in WRONG_REQUESTS:
        with pytest.raises(AuthorizationRefused) as refusal:
            await app.read(**changes)
        link = refusal.value.return_to
        if link is None:  # what errors may not contain is not told to the client either
            assert "\n" in (changes.get("code_challenge") or "")
        else:
            assert link.startswith(f"{CALLBACK}?")
            assert f"error={error}" in link and "state=a+state" in link


async def test_parameters_that_are_given_twice_are_refused(app: App) -> None:
    for name in ("client_id", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method"):
        parameters = app.request()
        parameters[name] = [*parameters[name], parameters[name][0]]
        with pytest.raises(AuthorizationRefused):
            await app.server.read(read_request, parameters)


async def test_a_scope_names_its_device_as_it_is(app: App) -> None:
    for device_id in ("A", "client:device:A", "urn:matrix:client:api:*"):
        assert (await app.read(scope=f"openid {scope_of(device_id)}")).scope.device_id == device_id
    unstable = "urn:matrix:org.matrix.msc2967.client:"
    request = await app.read(scope=f"{unstable}api:* {unstable}device:A")
    assert (request.scope.device_id, request.scope.text) == ("A", f"{unstable}api:* {unstable}device:A")


async def test_an_unknown_client_is_refused(app: App) -> None:
    for client_id in (None, "", "unknown", "x" * 3000, "a\0b"):
        with pytest.raises(AuthorizationRefused) as refusal:
            await app.read(client_id=client_id)
        assert refusal.value.return_to is None


# --- codes ---


async def test_a_replayed_code_ends_the_session_that_came_from_it(server: Server, alice: Client, app: App) -> None:
    code = await app.get_code(alice.user_id)
    answer = await post_form(server, TOKEN, **app.exchange_fields(code))
    session = Session(server, app.client_id, answer.json())
    assert await is_logged_in(session)
    assert await refused(server, TOKEN, **app.exchange_fields(code)) == INVALID_GRANT
    assert await session.client.refused("GET", "account/whoami") == UNKNOWN
    assert (await session.send_refresh()).json()["error"] == "invalid_grant"
    assert await server.read(list_sessions, alice.user_id) == []
    assert [each["device_id"] for each in (await alice.ok("GET", "devices"))["devices"]] == [alice.device_id]
    assert await is_logged_in(await app.log_in(alice.user_id))


async def test_concurrent_exchanges_of_a_code_give_at_most_one_session(server: Server, alice: Client, app: App) -> None:
    code = await app.get_code(alice.user_id)
    statuses: list[int] = []

    async def exchange() -> None:
        statuses.append((await post_form(server, TOKEN, **app.exchange_fields(code))).status_code)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(exchange)
    assert sorted(statuses) == [200, 400, 400, 400, 400]
    assert await server.read(list_sessions, alice.user_id) == []  # nobody knows who of them was the client


async def test_a_code_is_good_for_its_client_uri_and_verifier_only(server: Server, alice: Client, app: App) -> None:
    other = await register_app(server, client_name="Another App")
    code = await app.get_code(alice.user_id)
    for changes in (
        {"client_id": other.client_id},
        {"redirect_uri": "https://evil.example/"},
        {"redirect_uri": f"{CALLBACK}?a=b"},
        {"code_verifier": "another-verifier-of-43-characters-is-too-bad"},
        {"code_verifier": challenge_of("x")},
    ):
        assert await refused(server, TOKEN, **app.exchange_fields(code, **changes)) == INVALID_GRANT
    for missing in ("code_verifier", "redirect_uri"):
        fields = app.exchange_fields(code)
        del fields[missing]
        assert (await refused(server, TOKEN, **fields))[0] == 400
    assert await refused(server, TOKEN, **app.exchange_fields(code, client_id="unknown")) == (400, "invalid_client")
    answer = await post_form(server, TOKEN, **app.exchange_fields(code))
    assert answer.status_code == 200  # the client itself was not harmed by any of these


async def test_a_code_expires(server: Server, alice: Client, app: App) -> None:
    code = await app.get_code(alice.user_id)
    await trio.sleep(limits.users.OAUTH_CODE_LIFETIME_MS / 1000)
    assert await refused(server, TOKEN, **app.exchange_fields(code)) == INVALID_GRANT


async def test_a_user_has_a_bounded_number_of_codes(server: Server, alice: Client, app: App) -> None:
    codes = []
    for number in range(limits.users.OAUTH_CODES_PER_USER_MAX + 3):
        await trio.sleep(1)
        codes.append(await app.get_code(alice.user_id, f"DEVICE{number}"))
    assert await refused(server, TOKEN, **app.exchange_fields(codes[0])) == INVALID_GRANT
    assert (await post_form(server, TOKEN, **app.exchange_fields(codes[-1]))).status_code == 200
    rows = await server.read(lambda tx: tx.one("SELECT COUNT(*) FROM oauth_codes"))
    assert rows[0] <= limits.users.OAUTH_CODES_PER_USER_MAX


# --- refresh tokens ---


async def test_a_replayed_refresh_token_ends_its_session(server: Server, alice: Client, app: App) -> None:
    first = await app.log_in(alice.user_id)
    second = await first.refresh()
    third = await second.refresh()
    bystander = await app.log_in(alice.user_id, "BYSTANDER")
    assert await is_logged_in(third)
    assert (await first.send_refresh()).json()["error"] == "invalid_grant"
    assert await third.client.refused("GET", "account/whoami") == UNKNOWN
    assert (await third.send_refresh()).status_code == 400
    assert [each.device_id for each in await server.read(list_sessions, alice.user_id)] == ["BYSTANDER"]
    assert await is_logged_in(bystander)
    await alice.ok("GET", "account/whoami")
    assert "homeserver_oauth_replays_total 1" in server.hs.metrics.text()


async def test_a_lost_answer_does_not_lock_a_client_out(alice: Client, app: App) -> None:
    first = await app.log_in(alice.user_id)
    await is_logged_in(first)
    lost = await first.refresh()
    second = await first.refresh()
    assert await is_logged_in(first)  # until the client shows that it has the new tokens
    assert await is_logged_in(second)
    assert not await is_logged_in(lost)
    assert (await lost.send_refresh()).status_code == 400
    assert await is_logged_in(await second.refresh())


async def test_concurrent_exchanges_of_a_refresh_token_leave_one_pair(server: Server, alice: Client, app: App) -> None:
    session = await app.log_in(alice.user_id)
    answers: list[Session] = []

    async def refresh() -> None:
        answers.append(await session.refresh())

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(refresh)
    alive = [each for each in answers if await is_logged_in(each)]
    assert len(alive) == 1
    assert await is_logged_in(await alive[0].refresh())


async def test_a_refresh_token_is_good_for_its_client_only(server: Server, alice: Client, app: App) -> None:
    session = await app.log_in(alice.user_id)
    other = await register_app(server, client_name="Another App")
    assert (await Session(server, other.client_id, session.body).send_refresh()).json()["error"] == "invalid_grant"
    legacy = await alice.refused("POST", "refresh", json={"refresh_token": session.refresh_token})
    assert legacy == UNKNOWN
    body = {"type": "m.login.password", "user": "alice", "password": "correct horse battery staple"}
    tokens = await server.anonymous.ok("POST", "login", json={**body, "refresh_token": True})
    assert (await Session(server, app.client_id, tokens).send_refresh()).status_code == 400
    assert await is_logged_in(await session.refresh())


async def test_a_forged_generation_of_a_refresh_token_ends_nothing(server: Server, alice: Client, app: App) -> None:
    session = await app.log_in(alice.user_id)
    family, generation, secret = session.refresh_token.split(".")
    for forged in (f"{family}.{int(generation) + 1}.{secret}", f"{family[:-1]}.1.{secret}", f"{family}.0.{secret}"):
        fields = {"grant_type": "refresh_token", "refresh_token": forged, "client_id": app.client_id}
        assert await refused(server, TOKEN, **fields) == INVALID_GRANT
    assert await is_logged_in(session)


# --- accounts ---


async def test_a_deactivated_account_gets_no_tokens(server: Server, alice: Client, app: App) -> None:
    session = await app.log_in(alice.user_id)
    code, request = await app.get_code(alice.user_id, "OTHER"), await app.read()
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    assert await session.client.refused("GET", "account/whoami") == UNKNOWN
    assert (await session.send_refresh()).json()["error"] == "invalid_grant"
    assert await refused(server, TOKEN, **app.exchange_fields(code)) == INVALID_GRANT
    with pytest.raises(MatrixError, match="M_USER_DEACTIVATED"):
        await server.write(store_code, request, alice.user_id)


async def test_a_locked_account_gets_no_tokens_and_keeps_its_sessions(server: Server, alice: Client, app: App) -> None:
    session = await app.log_in(alice.user_id)
    code = await app.get_code(alice.user_id, "OTHER")
    await server.write(authenticate.store_account_flags, alice.user_id, AccountFlags(is_locked=True))
    assert await refused(server, TOKEN, **app.exchange_fields(code)) == INVALID_GRANT
    waiting = await session.send_refresh()
    assert (waiting.status_code, waiting.json()["error"]) == (503, "temporarily_unavailable")
    await server.write(authenticate.store_account_flags, alice.user_id, AccountFlags())
    assert await is_logged_in(await session.refresh())


async def test_a_suspended_account_can_log_in_and_stays_suspended(server: Server, alice: Client, app: App) -> None:
    await server.write(authenticate.store_account_flags, alice.user_id, AccountFlags(is_suspended=True))
    session = await (await app.log_in(alice.user_id)).refresh()
    assert await is_logged_in(session)
    refusal = await session.client.refused("POST", "createRoom", json={})
    assert refusal == (403, "M_USER_SUSPENDED")


# --- nonsense ---


NONSENSE = (
    (b"", "unsupported_grant_type"),
    (b"{}", "unsupported_grant_type"),
    (b"\xff=\xff", "invalid_request"),
    (b"grant_type=password&username=alice&password=x", "unsupported_grant_type"),
    (b"grant_type=%C3%A4", "invalid_request"),
    (b"grant_type=refresh_token&grant_type=refresh_token", "invalid_request"),
    (b"grant_type=refresh_token", "invalid_client"),
    (b"grant_type=authorization_code&code=a", "invalid_client"),
    (b"&".join(b"a%d=1" % number for number in range(2000)), "invalid_request"),
)


async def test_nonsense_at_the_token_endpoint_is_refused(server: Server) -> None:
    for content, error in NONSENSE:
        answer = await server.anonymous.post(TOKEN, content=content)
        assert (answer.status_code, answer.json()["error"]) == (400, error)


async def test_a_token_of_a_thousand_characters_is_refused(server: Server, app: App) -> None:
    fields = {"client_id": app.client_id, "grant_type": "refresh_token", "refresh_token": "a" * 5_000}
    assert await refused(server, TOKEN, **fields) == INVALID_GRANT
    assert await refused(server, TOKEN, **app.exchange_fields("a" * 5_000)) == INVALID_GRANT
