"""Spec: client-server-api/#client-registration, #redirect-uri-validation"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.config import OAuthSection, RateLimitsSection
from homeserver.database import Transaction
from homeserver.users.oauth.cleanup import delete_expired
from homeserver.users.oauth.clients import parse_metadata, store_client
from homeserver.users.oauth.errors import OAuthError
from homeserver.users.oauth.redirect_uris import is_registered
from tests.support.homeservers import Homeservers, Server
from tests.support.oauth import DEVICE_CODE, METADATA, REGISTER, register_app


def refusal_of(metadata: Mapping[str, Any]) -> str:
    """The error code for metadata that must be refused."""
    with pytest.raises(OAuthError) as caught:
        parse_metadata(metadata)
    return caught.value.code


def test_metadata_is_kept_as_far_as_it_is_supported() -> None:
    metadata = parse_metadata(
        {
            **METADATA,
            "client_name#fr": "Une application",
            "logo_uri": "https://app.example.com/logo.png",
            "tos_uri": "https://example.com:8443/tos",
            "grant_types": [*METADATA["grant_types"], "urn:ietf:params:oauth:grant-type:token-exchange"],
            "response_types": ["code", "token"],
            "jwks_uri": "https://evil.example/",
        }
    )
    assert metadata == parse_with(tos_uri="https://example.com:8443/tos", logo_uri="https://app.example.com/logo.png")


def parse_with(**changes: Any) -> Any:
    """The metadata of METADATA, with changes."""
    return parse_metadata({**METADATA, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"client_uri": None},
        {"client_uri": "http://example.com/"},
        {"client_uri": "https://alice:secret@example.com/"},
        {"client_uri": "https:example.com"},
        {"client_uri": "https://exa mple.com/"},
        {"client_uri": "https://example.com\\@evil.example/"},
        {"client_uri": "https://example.com/#top"},
        {"client_uri": "https://example.com:port/"},
        {"client_uri": "https://exämple.com/"},
        {"client_uri": "https://example.com/" + "a" * 3000},
        {"client_uri": ["https://example.com/"]},
        {"logo_uri": "https://evil.example/logo.png"},
        {"tos_uri": "javascript:alert(1)"},
        {"policy_uri": "https://notexample.com/"},
        {"application_type": "toaster"},
        {"token_endpoint_auth_method": "client_secret_basic"},
        {"grant_types": ["password"]},
        {"grant_types": "authorization_code"},
        {"response_types": ["token"]},
        {"redirect_uris": "https://example.com/"},
        {"redirect_uris": [7]},
        {"redirect_uris": [f"https://example.com/{number}" for number in range(21)]},
        {"client_name": 7},
        {"client_name": "A" * 101},
        {"client_name": "Element\u202eevil"},
        {"client_name": "Element\nAllow"},
    ],
)  # fmt: skip
def test_metadata_that_is_wrong_is_refused(changes: Mapping[str, Any]) -> None:
    assert refusal_of({**METADATA, **changes}) == "invalid_client_metadata"


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        ("web", "https://example.com/callback"),
        ("web", "https://app.example.com/callback"),
        ("web", "https://example.com:5173/?query=value"),
        ("native", "com.example.app:/callback"),
        ("native", "com.example:/"),
        ("native", "com.example:callback"),
        ("native", "http://localhost/callback"),
        ("native", "http://127.0.0.1/callback"),
        ("native", "http://[::1]/callback"),
        ("native", "https://app.example.com/callback"),
    ],
)
def test_redirect_uris_of_the_client_are_registered(kind: str, uri: str) -> None:
    assert parse_with(application_type=kind, redirect_uris=[uri]).redirect_uris == (uri,)


@pytest.mark.parametrize(
    ("kind", "uri"),
    [
        ("web", "https://example.com/callback#fragment"),
        ("web", "https://example.com/callback#"),
        ("web", "http://example.com/callback"),
        ("web", "http://localhost/"),
        ("web", "com.example:/"),
        ("web", "https://evil.example/"),
        ("web", "https://evilexample.com/"),
        ("web", "https://example.com.evil.example/"),
        ("web", "https://example.com@evil.example/"),
        ("web", "https://evil.example\\.example.com/"),
        ("web", "https://evil.example\t.example.com/"),
        ("web", "https:/example.com/"),
        ("web", "https:///example.com/"),
        ("web", "https://example.com:99999/"),
        ("web", "//example.com/"),
        ("web", "javascript:alert(1)"),
        ("web", ""),
        ("native", "example:/callback"),
        ("native", "com.example.app://callback"),
        ("native", "com.example2:/callback"),
        ("native", "com.example.a;b:/callback"),
        ("native", "com.example.a@b:/callback"),
        ("native", "com.evil:/callback"),
        ("native", "https://localhost/callback"),
        ("native", "http://localhost:1234/callback"),
        ("native", "http://localhost.evil.example/"),
        ("native", "http://localhost@evil.example/"),
        ("native", "http://127.0.0.1.evil.example/"),
        ("native", "http://127.0.0.2/"),
        ("native", "javascript:alert(1)"),
        ("native", "data:text/html,hello"),
    ],
)
def test_redirect_uris_of_others_are_not_registered(kind: str, uri: str) -> None:
    changes = {"application_type": kind, "redirect_uris": [uri]}
    assert refusal_of({**METADATA, **changes}) == "invalid_redirect_uri"


def test_a_client_with_one_label_cannot_have_a_scheme_such_as_javascript() -> None:
    changes = {"client_uri": "https://javascript/", "redirect_uris": ["javascript:alert(1)"]}
    assert refusal_of({**METADATA, **changes, "application_type": "native"}) == "invalid_redirect_uri"


@pytest.mark.parametrize(
    ("used", "fits"),
    [
        ("http://localhost/callback", True),
        ("http://localhost:1234/callback", True),
        ("http://localhost:0/callback", False),
        ("http://localhost:65536/callback", False),
        ("http://localhost:12a/callback", False),
        ("http://localhost:1234/other", False),
        ("http://127.0.0.1:1234/callback", False),
        ("http://localhost:80@evil.example/callback", False),
        ("http://localhost:1234/callback#fragment", False),
    ],
)
def test_a_native_client_may_use_any_port_of_the_loopback_interface(used: str, fits: bool) -> None:
    assert is_registered(used, ("http://localhost/callback",), "native") is fits
    assert not is_registered(used.replace("localhost/", "localhost:1/"), ("http://localhost/callback",), "web")


def test_a_client_for_device_codes_alone_needs_no_redirect_uri() -> None:
    metadata = parse_with(grant_types=[DEVICE_CODE], redirect_uris=[], response_types=[])
    assert (metadata.grant_types, metadata.redirect_uris) == (("refresh_token", DEVICE_CODE), ())
    assert refusal_of({**METADATA, "redirect_uris": []}) == "invalid_redirect_uri"


async def test_registration_answers_with_what_was_registered(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    answer = await server.anonymous.post(REGISTER, json=dict(METADATA))
    assert answer.status_code == 201
    body = answer.json()
    client_id = body.pop("client_id")
    assert body == METADATA
    assert (await server.anonymous.post(REGISTER, json=dict(METADATA))).json()["client_id"] == client_id
    other = await server.anonymous.post(REGISTER, json={**METADATA, "client_name": "Another App"})
    assert other.json()["client_id"] != client_id
    refused = await server.anonymous.post(REGISTER, json={"client_uri": "http://example.com"})
    assert refused.status_code == 400
    assert refused.json().keys() == {"error", "error_description"}
    assert refused.headers["cache-control"] == "no-store"


async def test_registration_is_limited_by_address_and_size(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    large = {**METADATA, "client_name#fr": "x" * limits.users.OAUTH_METADATA_BYTES_MAX}
    assert (await server.anonymous.post(REGISTER, json=large)).status_code == 413
    spam = [{**METADATA, "client_name": f"Spam {number}"} for number in range(20)]
    statuses = [(await server.anonymous.post(REGISTER, json=each)).status_code for each in spam]
    assert statuses == [201] * 10 + [429] * 10
    assert (await server.anonymous.post(REGISTER, json=spam[0])).status_code == 201  # it is known: people log in


def spam(tx: Transaction, count: int) -> None:
    for number in range(count):
        store_client(tx, parse_metadata({**METADATA, "client_name": f"Spam {number}"}))


async def count_clients(server: Server) -> int:
    rows = await server.read(lambda tx: tx.one("SELECT COUNT(*) FROM oauth_clients"))
    return int(rows[0])


async def test_spam_drops_only_clients_that_nobody_uses(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    used, waiting = await register_app(server), await register_app(server, client_name="Waiting")
    session = await used.log_in(alice.user_id)
    code = await waiting.get_code(alice.user_id, "OTHER")
    await trio.sleep(1)
    await server.write(spam, limits.users.OAUTH_CLIENTS_MAX + 5)
    assert await count_clients(server) == limits.users.OAUTH_CLIENTS_MAX
    await session.refresh()
    assert code and (await waiting.read()).client.name == "Waiting"


def let_time_pass(tx: Transaction) -> None:
    """A month in the table of clients alone: the server has much to do in a month."""
    tx.run("UPDATE oauth_clients SET used_ms = used_ms - ?", limits.users.OAUTH_CLIENT_UNUSED_MS)


async def test_clients_without_sessions_expire(homeservers: Homeservers) -> None:
    server = await homeservers.start()
    alice = await server.register("alice")
    used, _ = await register_app(server), await register_app(server, client_name="Another App")
    session = await used.log_in(alice.user_id)
    await server.write(let_time_pass)
    await server.write(delete_expired)
    assert await count_clients(server) == 1
    assert (await used.read()).client.client_id == used.client_id
    await session.send_revocation()
    await server.write(let_time_pass)
    await server.write(delete_expired)
    assert await count_clients(server) == 0


async def test_everything_is_unrecognized_if_it_is_turned_off(homeservers: Homeservers) -> None:
    server = await homeservers.start(oauth=OAuthSection(enabled=False))
    unrecognized = (404, "M_UNRECOGNIZED")
    for path in (
        "/_matrix/client/v1/auth_metadata",
        "/_matrix/client/unstable/org.matrix.msc2965/auth_metadata",
        "/_matrix/client/unstable/org.matrix.msc2965/auth_issuer",
        "/.well-known/oauth-authorization-server",
    ):
        assert await server.anonymous.refused("GET", path) == unrecognized
    assert await server.anonymous.refused("POST", REGISTER, json=dict(METADATA)) == unrecognized
    for path in ("token", "revoke", "device"):
        assert await server.anonymous.refused("POST", f"/_homeserver/oauth/{path}", content=b"a=b") == unrecognized
