"""Providers of OpenID Connect that lie, fail, or are attacked. Spec: OpenID Connect Core 1.0, section 3.1.3.7"""

from __future__ import annotations

import hmac
import json
from base64 import urlsafe_b64encode
from typing import Any

import pytest
import trio
from joserfc import jwk, jwt

from homeserver.testing import now_ms
from tests.support.federation import Federation
from tests.support.homeservers import Server
from tests.support.openid_provider import CLIENT_SECRET, Browser, OpenIDProvider, login_token_of, make_key, text_of

UNUSABLE = "Example ID cannot be used at the moment"


async def is_refused(server: Server, provider: OpenIDProvider) -> bool:
    """Returns whether a log-in ends with the page that says that the provider cannot be used."""
    answer = await Browser(server, provider).log_in()
    return answer.status_code == 502 and UNUSABLE in text_of(answer)


def encoded(part: Any) -> str:
    return urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


def signed_with(secret: bytes, claims: Any) -> str:
    """Returns a token signed with HS256. The library refuses to sign with a public key, as an attacker would."""
    text = f"{encoded({'alg': 'HS256', 'kid': 'first'})}.{encoded(claims)}"
    digest = hmac.new(secret, text.encode(), "sha256").digest()
    return f"{text}.{urlsafe_b64encode(digest).decode().rstrip('=')}"


# --- ID tokens ---


@pytest.mark.parametrize(
    "wrong",
    [
        {"iss": "https://evil.example"}, {"iss": "https://id.example/"}, {"iss": None},
        {"aud": "another client"}, {"aud": ["another client"]}, {"aud": None},
        {"aud": ["homeserver", "another"]}, {"azp": "another client"},
        {"nonce": "of another attempt"}, {"nonce": None}, {"nonce": ["x"]},
        {"exp": 1}, {"exp": None}, {"exp": "tomorrow"}, {"iat": 1 << 40}, {"nbf": 1 << 40},
        {"sub": ""}, {"sub": None}, {"sub": 17}, {"sub": "x" * 256}, {"at_hash": "of another token"},
    ],
)  # fmt: skip
async def test_an_id_token_with_a_wrong_claim_is_refused(federation: Federation, wrong: dict[str, Any]) -> None:
    provider = OpenIDProvider.on(federation.network)
    server = await federation.start("a.example", sso=[provider.settings()])
    provider.token = wrong
    assert await is_refused(server, provider)


async def test_an_id_token_for_several_audiences_names_its_party(server: Server, provider: OpenIDProvider) -> None:
    provider.token = {"aud": ["another", "homeserver"], "azp": "homeserver"}
    assert login_token_of(await Browser(server, provider).log_in())


async def test_an_unsigned_id_token_is_refused(server: Server, provider: OpenIDProvider) -> None:
    for algorithm in ("none", "None", "nOnE", "", None, 7):
        provider.sign = lambda claims, alg=algorithm: f"{encoded({'alg': alg})}.{encoded(claims)}."
        assert await is_refused(server, provider)


async def test_an_id_token_signed_with_a_secret_is_refused(server: Server, provider: OpenIDProvider) -> None:
    """Neither the client's secret nor the public key, taken for one, proves who has signed."""
    for secret in (CLIENT_SECRET.encode(), provider.key.as_pem(private=False)):
        provider.sign = lambda claims, secret=secret: signed_with(secret, claims)
        assert await is_refused(server, provider)


async def test_an_id_token_signed_with_a_key_of_its_own_is_refused(server: Server, provider: OpenIDProvider) -> None:
    other = make_key("other")
    for header in ({"kid": "first"}, {"kid": "other"}, {}, {"jwk": other.as_dict(private=False)}):
        provider.sign = lambda claims, header=header: jwt.encode({"alg": "RS256", **header}, claims, other)
        assert await is_refused(server, provider)


@pytest.mark.parametrize(
    "token",
    ["", "x", "a.b", "a.b.c", "é.b.c", "..", f"{encoded({'alg': 'RS256'})}.{'[' * 5000}.x", f"{encoded([])}..x"],
)
async def test_a_text_that_is_no_token_is_refused(federation: Federation, token: str) -> None:
    provider = OpenIDProvider.on(federation.network)
    server = await federation.start("a.example", sso=[provider.settings()])
    provider.sign = lambda claims: token
    assert await is_refused(server, provider)


async def test_keys_of_other_kinds_are_accepted(server: Server, provider: OpenIDProvider) -> None:
    for key, algorithm in (
        (jwk.ECKey.generate_key("P-256", {"kid": "ec"}), "ES256"), (jwk.OKPKey.generate_key("Ed25519"), "Ed25519"),
    ):  # fmt: skip
        provider.answers["/keys"] = (200, {"keys": [key.as_dict(private=False)]})
        provider.sign = lambda claims, key=key, algorithm=algorithm: jwt.encode(
            {"alg": algorithm, **({"kid": key.kid} if key.kid else {})}, claims, key, [algorithm]
        )
        await trio.sleep(3601)
        assert login_token_of(await Browser(server, provider).log_in())


async def test_a_new_key_is_fetched_but_not_again_and_again(server: Server, provider: OpenIDProvider) -> None:
    assert login_token_of(await Browser(server, provider).log_in())
    provider.key = make_key("second")
    await trio.sleep(61)
    assert login_token_of(await Browser(server, provider).log_in())
    assert provider.asked.count("/keys") == 2
    provider.sign = lambda claims: jwt.encode({"alg": "RS256", "kid": "third"}, claims, make_key("third"))
    for _ in range(5):
        assert await is_refused(server, provider)
    assert provider.asked.count("/keys") == 2


async def test_clocks_may_differ_by_a_minute(server: Server, provider: OpenIDProvider) -> None:
    provider.token = {"iat": now_ms() // 1000 + 50, "exp": now_ms() // 1000 - 50}
    assert login_token_of(await Browser(server, provider).log_in())


async def test_userinfo_about_somebody_else_is_refused(server: Server, provider: OpenIDProvider) -> None:
    provider.userinfo = {"sub": "mallory", "name": "Mallory"}
    assert await is_refused(server, provider)


# --- what a provider publishes, and how it answers ---


@pytest.mark.parametrize(
    "published",
    [
        {"issuer": "https://evil.example"}, {"issuer": None}, {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": None}, {"token_endpoint": 7}, {"jwks_uri": "https://"}, {"jwks_uri": "file:///x"},
        {"authorization_endpoint": "https://id.example/\r\nSet-Cookie: a=b"},
    ],
)  # fmt: skip
async def test_unusable_metadata_lead_to_a_page_that_says_so(federation: Federation, published: Any) -> None:
    provider = OpenIDProvider.on(federation.network)
    server = await federation.start("a.example", sso=[provider.settings()])
    provider.answers["/.well-known/openid-configuration"] = (200, {**provider.metadata(), **published})
    browser = Browser(server, provider)
    answer = await browser.return_to("/_matrix/client/v3/login/sso/redirect?redirectUrl=https://client.example/")
    assert (answer.status_code, UNUSABLE in text_of(answer)) == (502, True)
    del provider.answers["/.well-known/openid-configuration"]
    if "issuer" in published:  # a failure is not remembered
        assert (await browser.begin()).startswith(provider.issuer)


@pytest.mark.parametrize("path", ["/.well-known/openid-configuration", "/keys", "/token", "/userinfo"])
@pytest.mark.parametrize(
    "answer",
    [(500, {}), (302, {}), (200, b"<html>"), (200, b"[]"), (200, b""), (200, b"[" * 5000), (200, b" " * (1 << 19)),
     (200, {}), (400, {"error": ["x"] * 1000})],
)  # fmt: skip
async def test_a_provider_that_answers_nonsense_is_refused(federation: Federation, path: str, answer: Any) -> None:
    provider = OpenIDProvider.on(federation.network)
    server = await federation.start("a.example", sso=[provider.settings()])
    provider.answers[path] = answer
    browser = Browser(server, provider)
    first = await browser.return_to("/_matrix/client/v3/login/sso/redirect?redirectUrl=https://client.example/")
    if first.headers.get("location", "").startswith(provider.issuer):
        first = await browser.return_to(provider.let_in(first.headers["location"]))
    assert (first.status_code, UNUSABLE in text_of(first)) == (502, True)


async def test_a_silent_provider_is_given_up_after_ten_seconds(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    way_back = provider.let_in(await browser.begin())
    provider.wait = trio.sleep_forever
    begun = trio.current_time()
    assert (await browser.return_to(way_back)).status_code == 502
    assert 10 <= trio.current_time() - begun < 11


async def test_a_dead_provider_disturbs_nobody_else(
    federation: Federation, server: Server, provider: OpenIDProvider
) -> None:
    federation.network.leave(provider.name)
    answer = await Browser(server, provider).return_to(
        "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://client.example/"
    )
    assert (answer.status_code, UNUSABLE in text_of(answer)) == (502, True)
    assert "id.example" not in answer.text
    await server.register("bob")
    federation.network.join(provider.name, provider.app)
    assert login_token_of(await Browser(server, provider).log_in())


async def test_people_who_come_at_once_share_one_fetch(server: Server, provider: OpenIDProvider) -> None:
    async def slowly() -> None:
        await trio.sleep(1)

    provider.wait = slowly
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(Browser(server, provider).log_in)
    assert [provider.asked.count(path) for path in ("/.well-known/openid-configuration", "/keys")] == [1, 1]


async def test_endpoints_of_the_configuration_replace_the_published_ones(
    federation: Federation, provider: OpenIDProvider
) -> None:
    names = {"authorization_endpoint": "authorize", "token_endpoint": "token", "jwks_uri": "keys"}
    endpoints = {key: f"{provider.issuer}/{name}" for key, name in names.items()}
    server = await federation.start("a.example", sso=[provider.settings(discover=False, **endpoints)])
    assert login_token_of(await Browser(server, provider).log_in())
    assert provider.asked == ["/token", "/keys"]


async def test_a_provider_at_a_private_address_is_not_asked(federation: Federation) -> None:
    """The fake network refuses http, like the guard of [outbound_http] without `allow_private_addresses`."""
    provider = OpenIDProvider.on(federation.network)
    settings = provider.settings(issuer="http://id.example")
    server = await federation.start("a.example", sso=[settings])
    answer = await Browser(server, provider).return_to(
        "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://client.example/"
    )
    assert (answer.status_code, provider.asked) == (502, [])
