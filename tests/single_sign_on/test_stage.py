"""Single sign-on where more than an access token is needed, and for the account pages.

Spec: client-server-api/#sso-during-user-interactive-authentication
"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.federation.identifiers import UserID
from homeserver.limits import PAGE_CONFIRMATION_MS, PAGE_SESSION_LIFETIME_MS
from homeserver.testing import now_ms
from homeserver.users.page_sessions import find_page_session
from homeserver.users.single_sign_on import insert_external_id
from tests.support.federation import Federation
from tests.support.homeservers import PASSWORD, Client, Server
from tests.support.openid_provider import Browser, OpenIDProvider, login_token_of, text_of

DONE = 'window.opener.postMessage("authDone", "*");'
SUBJECT = "248289761001"


@pytest.fixture
async def alice(server: Server, provider: OpenIDProvider) -> Client:
    """A client of a person who has no password here."""
    token = login_token_of(await Browser(server, provider).log_in())
    answer = await server.anonymous.ok("POST", "login", json={"type": "m.login.token", "token": token})
    return Client(server, answer["access_token"], UserID(answer["user_id"]), answer["device_id"])


def fallback(session: str) -> str:
    return f"/_matrix/client/v3/auth/m.login.sso/fallback/web?session={session}"


async def begin(client: Client) -> str:
    """A client asks to delete its device. Returns the session."""
    answer = await client.post("delete_devices", json={"devices": [client.device_id]})
    assert (answer.status_code, answer.json()["flows"]) == (401, [{"stages": ["m.login.sso"]}])
    return str(answer.json()["session"])


async def delete(client: Client, session: str, **auth: Any) -> int:
    body = {"devices": [client.device_id], "auth": {"session": session, **auth}}
    return (await client.post("delete_devices", json=body)).status_code


async def authenticate(browser: Browser, session: str) -> Any:
    """The person follows the fallback page to the provider and back. Returns the page that asks."""
    answer = await browser.get(fallback(session))
    answer = await browser.get(answer.headers["location"])
    return await browser.return_to(browser.provider.let_in(answer.headers["location"]))


async def test_a_person_without_a_password_confirms_with_the_provider(
    server: Server, provider: OpenIDProvider, alice: Client
) -> None:
    session = await begin(alice)
    browser = Browser(server, provider)
    page = await authenticate(browser, session)
    assert f"An app that is logged in as {alice.user_id} asks to remove devices from your account." in text_of(page)
    assert await delete(alice, session) == 401
    done = await browser.post(browser.at)
    assert DONE in done.text and "script-src 'sha256-" in done.headers["content-security-policy"]
    assert await delete(alice, session, type="m.login.sso") == 200
    assert (await alice.get("account/whoami")).status_code == 401


async def test_a_person_with_a_password_may_choose(server: Server, provider: OpenIDProvider) -> None:
    bob = await server.register("bob")
    await server.write(insert_external_id, bob.user_id, "example", SUBJECT)
    answer = await bob.post("account/deactivate", json={})
    assert answer.json()["flows"] == [{"stages": ["m.login.password"]}, {"stages": ["m.login.sso"]}]
    assert await bob.ok("POST", "account/deactivate", json={"auth": bob.password_auth(answer.json()["session"])})


async def test_a_person_without_a_provider_confirms_with_the_password(server: Server) -> None:
    bob = await server.register("bob")
    flows = (await bob.post("delete_devices", json={"devices": [bob.device_id]})).json()["flows"]
    assert flows == [{"stages": ["m.login.password"]}]


async def test_a_stage_that_was_not_completed_in_a_browser_is_refused(alice: Client) -> None:
    session = await begin(alice)
    assert await delete(alice, session, type="m.login.sso") == 401
    assert await delete(alice, session, type="m.login.password", user=alice.user_id, password=PASSWORD) == 401


async def test_an_operation_is_not_confirmed_without_a_click(
    server: Server, provider: OpenIDProvider, alice: Client
) -> None:
    """A thief of an access token leads its owner to the fallback page, and the provider lets them in without a word."""
    session = await begin(alice)
    await authenticate(Browser(server, provider), session)
    assert await delete(alice, session) == 401


async def test_a_person_who_logged_in_at_the_provider_long_ago_has_to_do_so_again(
    server: Server, provider: OpenIDProvider, alice: Client
) -> None:
    session = await begin(alice)
    provider.token = {"auth_time": now_ms() // 1000 - 3600}
    browser = Browser(server, provider)
    answer = await browser.get((await browser.get(fallback(session))).headers["location"])
    assert "&max_age=0" in answer.headers["location"]
    refused = await browser.return_to(provider.let_in(answer.headers["location"]))
    assert (refused.status_code, "did not ask you to log in again" in text_of(refused)) == (403, True)
    provider.token = {"auth_time": now_ms() // 1000 - 5}
    assert (await authenticate(browser, session)).status_code == 200


async def test_another_person_cannot_confirm(server: Server, provider: OpenIDProvider, alice: Client) -> None:
    session = await begin(alice)
    provider.claims = {"sub": "mallory", "preferred_username": "mallory"}
    login_token_of(await Browser(server, provider).log_in())
    page = await authenticate(Browser(server, provider), session)
    assert (page.status_code, f"The request is about {alice.user_id}" in text_of(page)) == (403, True)
    provider.claims = {"sub": "nobody", "preferred_username": "nobody"}
    assert (await authenticate(Browser(server, provider), session)).status_code == 403
    assert await delete(alice, session) == 401
    assert (await server.anonymous.get("profile/@nobody:a.example")).status_code == 404


async def test_a_confirmation_is_good_for_one_operation(
    server: Server, provider: OpenIDProvider, alice: Client
) -> None:
    session = await begin(alice)
    browser = Browser(server, provider)
    await authenticate(browser, session)
    await browser.post(browser.at)
    answer = await alice.post("account/deactivate", json={"auth": {"session": session}})
    assert (answer.status_code, answer.json()["errcode"]) == (403, "M_FORBIDDEN")
    assert (await browser.post(browser.at)).status_code == 400


async def test_an_unknown_session_is_told(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    answer = await browser.return_to(fallback("guessed"))
    assert (answer.status_code, "Please start again" in text_of(answer)) == (400, True)


# --- the account pages ---


async def test_a_browser_logs_in_to_the_account_pages(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    at_provider = await browser.get("/_homeserver/sso/begin?provider=example&return_to=/_homeserver/account/devices")
    arrived = await browser.get(provider.let_in(at_provider.headers["location"]))
    assert arrived.headers["location"] == "/_homeserver/account/devices"
    assert any("session" in name for name in browser.cookies)


@pytest.mark.parametrize("elsewhere", ["https://evil.example/", "//evil.example/", "/_matrix/client/versions", "", "x"])
async def test_a_browser_does_not_return_to_other_places(federation: Federation, elsewhere: str) -> None:
    provider = OpenIDProvider.on(federation.network)
    server = await federation.start("a.example", sso=[provider.settings()])
    browser = Browser(server, provider)
    at_provider = await browser.get(f"/_homeserver/sso/begin?provider=example&return_to={elsewhere}")
    arrived = await browser.get(provider.let_in(at_provider.headers["location"]))
    assert arrived.headers["location"] == "/_homeserver/account/"


async def page_session(browser: Browser, provider: OpenIDProvider) -> str:
    """The person logs in to the account pages. Returns the token of the session."""
    at_provider = await browser.get("/_homeserver/sso/begin?provider=example")
    await browser.get(provider.let_in(at_provider.headers["location"]))
    return next(value for name, value in browser.cookies.items() if "session" in name)


async def test_a_login_at_the_provider_of_long_ago_confirms_nothing_on_the_account_pages(
    server: Server, provider: OpenIDProvider, alice: Client
) -> None:
    """Whoever uses an unlocked browser gets in without a word, but dangerous actions still ask who it is."""
    ages_ms = []
    for logged_in_s in (5, 3600):
        provider.token = {"auth_time": now_ms() // 1000 - logged_in_s}
        session = await server.read(find_page_session, await page_session(Browser(server, provider), provider))
        assert session is not None and session.user_id == alice.user_id
        ages_ms.append(server.hs.now_ms() - session.created_ms)
    assert ages_ms[0] < PAGE_CONFIRMATION_MS <= ages_ms[1] < PAGE_SESSION_LIFETIME_MS


async def test_a_new_session_of_the_account_pages_ends_the_old_one_of_the_browser(
    server: Server, provider: OpenIDProvider, alice: Client
) -> None:
    browser = Browser(server, provider)
    old = await page_session(browser, provider)
    new = await page_session(browser, provider)
    assert await server.read(find_page_session, old) is None
    assert await server.read(find_page_session, new) is not None


async def test_a_locked_account_gets_no_session_of_the_pages(
    server: Server, provider: OpenIDProvider, alice: Client
) -> None:
    await server.write(store_account_flags, alice.user_id, AccountFlags(is_locked=True))
    browser = Browser(server, provider)
    at_provider = await browser.get("/_homeserver/sso/begin?provider=example")
    arrived = await browser.get(provider.let_in(at_provider.headers["location"]))
    assert arrived.status_code == 403 and not any("session" in name for name in browser.cookies)
