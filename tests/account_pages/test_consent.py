"""Consent: how a person lets an app in on the page of the authorization endpoint, and what apps cannot make of it."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from homeserver import authenticate
from homeserver.authenticate import AccountFlags
from homeserver.config import OAuthSection, Registration
from tests.support.browser import ACCOUNT, Browser, PageShown
from tests.support.homeservers import PASSWORD, Homeservers, Server
from tests.support.oauth import CALLBACK, TOKEN, App, post_form, register_app

SCRIPT = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
NATIVE = {"application_type": "native", "redirect_uris": ["com.example.app:/callback", "http://127.0.0.1/callback"]}


def address_of(app: App, **changes: str | None) -> str:
    """The address that an app opens in a browser."""
    return f"{ACCOUNT}authorize?{urlencode(app.request(**changes), doseq=True)}"


async def open_consent(server: Server, browser: Browser, **changes: Any) -> tuple[App, PageShown]:
    """A new app's page of consent, for alice, who is logged in."""
    await server.register("alice")
    await browser.log_in("alice", PASSWORD)
    app = await register_app(server)
    return app, await browser.open(address_of(app, **changes))


async def test_a_person_logs_in_and_lets_an_app_in(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    app = await register_app(homeserver)
    page = await browser.open(address_of(app))
    assert page.heading == "Log in to test.example"
    page = await browser.send(page, username="alice", password=PASSWORD)
    assert page.heading == "Log in to An App?"
    for shown in (
        "@alice:test.example",
        "example.com",
        "APPDEVICE1, which is new",
        "app.example.com",
        "messages as you",
    ):
        assert shown in page.text
    answer = await browser.post(page, decision="allow")
    assert answer.status_code == 303 and answer.headers["location"].startswith(f"{CALLBACK}?")
    given = parse_qs(urlsplit(answer.headers["location"]).query)
    assert given["state"] == ["a state"]
    tokens = (await post_form(homeserver, TOKEN, **app.exchange_fields(given["code"][0]))).json()
    whoami = await homeserver.with_token(tokens["access_token"]).ok("GET", "account/whoami")
    assert whoami == {"user_id": "@alice:test.example", "device_id": "APPDEVICE1", "is_guest": False}


async def test_a_person_keeps_an_app_out(homeserver: Server, browser: Browser) -> None:
    _, page = await open_consent(homeserver, browser, response_mode="fragment")
    answer = await browser.post(page, decision="refuse")
    parts = urlsplit(answer.headers["location"])
    assert parse_qs(parts.fragment) == {"error": ["access_denied"], "state": ["a state"]}


async def test_consent_needs_a_decision(homeserver: Server, browser: Browser) -> None:
    _, page = await open_consent(homeserver, browser)
    form = dict(page.form().form_values())
    answer = await browser.http.post(page.path, data=form)
    assert answer.status_code == 400 and "location" not in answer.headers


async def test_consent_is_nothing_that_another_site_can_give(homeserver: Server, browser: Browser) -> None:
    _, page = await open_consent(homeserver, browser)
    for data in ({"decision": "allow"}, {"decision": "allow", "form_token": "guessed"}):
        answer = await browser.http.post(page.path, data=data)
        assert answer.status_code == 403
    whole = {**dict(page.form().form_values()), "decision": "allow"}
    answer = await browser.http.post(page.path, data=whole, headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403
    assert await homeserver.read(lambda tx: tx.all("SELECT * FROM oauth_codes")) == []


async def test_clickjacking_consent_cannot_be_framed(homeserver: Server, browser: Browser) -> None:
    _, page = await open_consent(homeserver, browser)
    assert page.response.headers["x-frame-options"] == "DENY"
    assert "frame-ancestors 'none'" in page.response.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("redirect_uri", "source"),
    [
        ("com.example.app:/callback", "com.example.app:"),
        ("http://127.0.0.1:4711/callback", "http://127.0.0.1:4711"),
    ],
)
async def test_consent_leads_to_apps_on_the_same_machine(
    homeserver: Server, browser: Browser, redirect_uri: str, source: str
) -> None:
    """Browsers refuse the redirect after a form unless the policy of its page names the target."""
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    app = await register_app(homeserver, **NATIVE)
    page = await browser.open(address_of(app, redirect_uri=redirect_uri))
    assert f"form-action 'self' {source};" in page.response.headers["content-security-policy"]
    answer = await browser.post(page, decision="allow")
    assert answer.headers["location"].startswith(f"{redirect_uri}?code=")


async def test_requests_that_are_wrong_are_explained_and_lead_nowhere_by_themselves(
    homeserver: Server, browser: Browser
) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    app = await register_app(homeserver)
    for changes in (
        {"redirect_uri": "https://evil.example/"},
        {"client_id": "hsoc_unknown"},
        {"code_challenge": None},
        {"code_challenge_method": "plain"},
        {"scope": "openid"},
        {"response_type": "token"},
    ):
        answer = await browser.http.get(address_of(app, **changes))
        assert answer.status_code == 400 and "location" not in answer.headers, changes
        assert 'href="https://evil.example' not in answer.text
        post = await browser.http.post(address_of(app, **changes), data={"decision": "allow"})
        assert post.status_code in (400, 403) and "location" not in post.headers


async def test_parameters_that_come_twice_are_refused(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    app = await register_app(homeserver)
    answer = await browser.http.get(f"{address_of(app)}&redirect_uri=https%3A%2F%2Fevil.example%2F")
    assert answer.status_code == 400
    answer = await browser.http.get(address_of(app) + "&a=1" * 1000)
    assert answer.status_code == 400


async def test_names_of_apps_are_shown_as_text(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice", initial_device_display_name=SCRIPT, device_id="OLD")
    await browser.log_in("alice", PASSWORD)
    app = await register_app(homeserver, client_name=SCRIPT)
    page = await browser.open(address_of(app, device_id="OLD"))  # examined: nothing of it is markup
    assert SCRIPT in page.heading and "which is logged in already" in page.text
    await app.log_in("@alice:test.example", "NEW")  # type: ignore[arg-type]
    assert SCRIPT in (await browser.open(f"{ACCOUNT}devices")).text


async def test_links_and_logos_of_apps_are_https_or_left_out(homeserver: Server, browser: Browser) -> None:
    """Whatever is stored: a URI of another scheme would run in the person's browser."""
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    links = {"policy_uri": "https://example.com/policy", "tos_uri": "https://example.com/terms"}
    app = await register_app(homeserver, **links, logo_uri="https://example.com/logo.png")
    page = await browser.open(address_of(app))
    assert set(links.values()) <= set(page.links()) and "logo.png" not in page.response.text
    bad = "REPLACE(metadata, 'https://example.com/', 'javascript:alert(1)//')"
    await homeserver.write(lambda tx: tx.run(f"UPDATE oauth_clients SET metadata = {bad}"))
    answer = await browser.http.get(address_of(app))
    assert 'href="javascript:' not in answer.text.lower()


async def test_an_app_that_wishes_for_a_new_account_gets_the_page_for_it(homeserver: Server, browser: Browser) -> None:
    app = await register_app(homeserver)
    page = await browser.open(address_of(app, prompt="create"))
    assert page.heading == "Create an account on test.example"
    page = await browser.send(page, username="alice", password=PASSWORD, repeated=PASSWORD)
    assert page.heading == "Log in to An App?"
    page = await browser.open(address_of(app, prompt="create"))
    assert "You are logged in as @alice:test.example" in page.text
    (go_on,) = [link for link in page.links() if "authorize" in link and "logout" not in link]
    assert (await browser.open(go_on)).heading == "Log in to An App?"


async def test_an_app_that_wishes_for_a_new_account_gets_the_log_in_if_there_are_none(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=False))
    app = await register_app(server)
    page = await Browser(server.app, server.name).open(address_of(app, prompt="create"))
    assert page.heading == "Log in to test.example"


async def test_an_app_can_say_whose_log_in_it_expects(homeserver: Server, browser: Browser) -> None:
    app = await register_app(homeserver)
    for hint, name in (("mxid:@alice:test.example", "alice"), ("mxid:@alice:evil.example", ""), (SCRIPT, "")):
        page = await browser.open(address_of(app, login_hint=hint))
        assert page.tree.xpath("//input[@id='username']/@value") == [name]


async def test_a_person_can_use_another_account(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("bob")
    _, page = await open_consent(homeserver, browser)
    (other,) = [link for link in page.links() if "logout?" in link]
    page = await browser.send(await browser.open(other), "logout")
    page = await browser.send(page, username="bob", password=PASSWORD)
    assert page.heading == "Log in to An App?" and "@bob:test.example" in page.text


@pytest.mark.parametrize("flags", [AccountFlags(is_locked=True), AccountFlags(is_suspended=True)])
async def test_accounts_that_are_locked_let_nobody_in(
    homeserver: Server, browser: Browser, flags: AccountFlags
) -> None:
    _, page = await open_consent(homeserver, browser)
    await homeserver.write(authenticate.store_account_flags, "@alice:test.example", flags)
    answer = await browser.post(page, decision="allow")
    assert (answer.status_code == 403) == flags.is_locked  # suspended accounts may log in, to read


async def test_accounts_that_are_deactivated_let_nobody_in(homeserver: Server, browser: Browser) -> None:
    _, page = await open_consent(homeserver, browser)
    alice = await homeserver.log_in("alice")
    await alice.ok("POST", "account/deactivate", json={"auth": {**alice.password_auth()}})
    answer = await browser.post(page, decision="allow")
    assert answer.headers["location"].startswith(f"{ACCOUNT}login")
    assert await homeserver.read(lambda tx: tx.all("SELECT * FROM oauth_codes")) == []


async def test_consent_is_not_there_without_oauth(homeservers: Homeservers) -> None:
    server = await homeservers.start(oauth=OAuthSection(enabled=False))
    await server.register("alice")
    browser = Browser(server.app, server.name)
    await browser.log_in("alice", PASSWORD)
    for path in ("authorize", "link"):
        assert (await browser.open(f"{ACCOUNT}{path}")).status == 404
