"""Spec: client-server-api/#authorisation-code-flow"""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs, parse_qsl, urlsplit

import pytest

from homeserver.users.oauth.requests import deny, store_code
from tests.support.homeservers import Homeservers
from tests.support.oauth import TOKEN, post_form, register_app


async def test_a_client_logs_in_with_a_code(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    metadata = await server.anonymous.ok("GET", "/_matrix/client/v1/auth_metadata")
    assert metadata["token_endpoint"].endswith(TOKEN)
    app = await register_app(server)
    code = await app.get_code(alice.user_id)
    answer = await post_form(server, TOKEN, **app.exchange_fields(code))
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    tokens = answer.json()
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 3600)
    assert tokens["scope"] == "urn:matrix:client:api:* urn:matrix:client:device:APPDEVICE1"
    owner = await server.with_token(tokens["access_token"]).ok("GET", "account/whoami")
    assert owner == {"user_id": alice.user_id, "device_id": "APPDEVICE1", "is_guest": False}
    devices = (await alice.ok("GET", "devices"))["devices"]
    assert {"device_id": "APPDEVICE1", "display_name": "An App"}.items() <= next(
        each for each in devices if each["device_id"] == "APPDEVICE1"
    ).items()


async def test_the_browser_returns_with_code_and_state_as_the_client_likes(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    app = await register_app(server, redirect_uris=["https://app.example.com/callback?page=1"])
    state = "a state & more"
    for mode in ("query", "fragment"):
        request = await app.read(response_mode=mode, state=state)
        for uri, answer in (
            (await server.write(store_code, request, alice.user_id), "code"),
            (deny(request), "error"),
        ):
            parts = urlsplit(uri)
            assert (parts.scheme, parts.netloc, parts.path) == ("https", "app.example.com", "/callback")
            query, fragment = parse_qs(parts.query), parse_qs(parts.fragment)
            assert query.pop("page") == ["1"]
            told, other = (query, fragment) if mode == "query" else (fragment, query)
            assert (told["state"], len(told[answer]), other) == ([state], 1, {})


@pytest.mark.parametrize(
    ("registered", "used"),
    [
        ("com.example.app:/callback", "com.example.app:/callback"),
        ("com.example:callback", "com.example:callback"),
        ("http://localhost/callback", "http://localhost:4711/callback"),
        ("http://[::1]/callback", "http://[::1]:4711/callback"),
    ],
)
async def test_a_native_client_logs_in_on_its_machine(homeservers: Homeservers, registered: str, used: str) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    app = replace(await register_app(server, application_type="native", redirect_uris=[registered]), redirect_uri=used)
    request = await app.read(response_mode="fragment")
    uri = await server.write(store_code, request, alice.user_id)
    told = dict(parse_qsl(uri.removeprefix(f"{used}#")))
    assert told["state"] == "a state"
    assert (await post_form(server, TOKEN, **app.exchange_fields(told["code"]))).status_code == 200
