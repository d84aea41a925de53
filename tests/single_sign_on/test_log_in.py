"""Spec: client-server-api/#sso-client-loginauthentication"""

from __future__ import annotations

import pytest
import trio

from homeserver.authenticate import AccountFlags, store_account_flags
from homeserver.features.single_sign_on.client_urls import is_trusted
from homeserver.features.single_sign_on.people import map_to_localpart
from homeserver.federation.identifiers import UserID
from homeserver.users.accounts import set_deactivated
from homeserver.users.single_sign_on import list_external_ids
from tests.support.federation import Federation
from tests.support.homeservers import Server
from tests.support.openid_provider import CLIENT, Browser, OpenIDProvider, login_token_of, text_of

ALICE = UserID("@alice:a.example")
SUBJECT = "248289761001"
REDIRECT = "/_matrix/client/v3/login/sso/redirect"


async def use(server: Server, token: str) -> str:
    """Logs in with a login token. Returns the user ID."""
    answer = await server.anonymous.ok("POST", "login", json={"type": "m.login.token", "token": token})
    assert (await server.with_token(answer["access_token"]).ok("GET", "account/whoami"))["user_id"] == answer["user_id"]
    return str(answer["user_id"])


# --- logging in ---


async def test_a_person_logs_in_with_a_provider(server: Server, provider: OpenIDProvider) -> None:
    flows = (await server.anonymous.ok("GET", "login"))["flows"]
    assert flows[0] == {"type": "m.login.sso", "identity_providers": [{"id": "example", "name": "Example ID"}]}
    assert {"type": "m.login.token", "get_login_token": True} in flows
    browser = Browser(server, provider)
    arrived = await browser.log_in(f"{CLIENT}in?app=1&loginToken=old#there")
    location = arrived.headers["location"]
    assert location.startswith(f"{CLIENT}in?app=1&loginToken=") and location.endswith("#there")
    assert browser.cookies == {}
    assert await use(server, login_token_of(arrived)) == ALICE


async def test_a_login_token_works_once_and_for_half_a_minute(server: Server, provider: OpenIDProvider) -> None:
    token = login_token_of(await Browser(server, provider).log_in())
    body = {"type": "m.login.token", "token": token}
    await use(server, token)
    assert await server.anonymous.refused("POST", "login", json=body) == (403, "M_FORBIDDEN")
    body["token"] = login_token_of(await Browser(server, provider).log_in())
    await trio.sleep(31)
    assert await server.anonymous.refused("POST", "login", json=body) == (403, "M_FORBIDDEN")


async def test_a_person_comes_back_to_the_same_account(server: Server, provider: OpenIDProvider) -> None:
    first = await use(server, login_token_of(await Browser(server, provider).log_in()))
    provider.claims["preferred_username"] = "alicia"
    assert await use(server, login_token_of(await Browser(server, provider).log_in())) == first


async def test_the_profile_of_a_new_account_comes_from_the_claims(server: Server, provider: OpenIDProvider) -> None:
    provider.claims |= {"name": "Alice Liddell"}
    provider.userinfo = {"email": "Alice@mail.example", "email_verified": True}
    answer = await server.anonymous.ok(
        "POST",
        "login",
        json={"type": "m.login.token", "token": login_token_of(await Browser(server, provider).log_in())},
    )
    alice = server.with_token(answer["access_token"])
    assert (await alice.ok("GET", f"profile/{ALICE}/displayname"))["displayname"] == "Alice Liddell"
    (threepid,) = (await alice.ok("GET", "account/3pid"))["threepids"]
    assert threepid["address"] == "alice@mail.example"


async def test_an_address_that_the_provider_has_not_verified_is_not_stored(
    server: Server, provider: OpenIDProvider
) -> None:
    provider.claims |= {"email": "alice@mail.example"}
    token = login_token_of(await Browser(server, provider).log_in())
    answer = await server.anonymous.ok("POST", "login", json={"type": "m.login.token", "token": token})
    assert await server.with_token(answer["access_token"]).ok("GET", "account/3pid") == {"threepids": []}


async def test_several_providers_are_offered_as_a_choice(federation: Federation, provider: OpenIDProvider) -> None:
    shown = {"brand": "gitlab", "icon": "mxc://a.example/icon"}
    second = provider.settings(id="other", name="Other & Co", **shown)
    server = await federation.start("a.example", sso=[provider.settings(), second])
    flow = (await server.anonymous.ok("GET", "login"))["flows"][0]
    assert flow["identity_providers"] == [
        {"id": "example", "name": "Example ID"}, {"id": "other", "name": "Other & Co", **shown},
    ]  # fmt: skip
    browser = Browser(server, provider)
    chosen = await browser.get(f"{REDIRECT}?redirectUrl={CLIENT}")
    page = await browser.get(chosen.headers["location"])
    assert "Example ID Other & Co" in text_of(page)
    assert f'href="{REDIRECT}/other?redirectUrl=https%3A%2F%2Fclient.example%2F"' in page.text
    assert (await browser.begin(provider="other")).startswith(provider.issuer)


async def test_an_unknown_provider_is_not_found(server: Server) -> None:
    path = f"{REDIRECT}/third?redirectUrl={CLIENT}"
    assert await server.anonymous.refused("GET", path) == (404, "M_NOT_FOUND")
    page = await server.http.get(path, headers={"accept": "text/html,*/*"})
    assert (page.status_code, "does not exist" in text_of(page)) == (404, True)


async def test_a_server_without_providers_has_no_single_sign_on(homeserver: Server) -> None:
    assert "m.login.sso" not in str(await homeserver.anonymous.ok("GET", "login"))
    for path in (REDIRECT, f"{REDIRECT}/example"):
        assert await homeserver.anonymous.refused("GET", f"{path}?redirectUrl={CLIENT}") == (404, "M_NOT_FOUND")


async def test_a_browser_at_another_host_name_is_sent_to_that_of_the_base_url(
    server: Server, provider: OpenIDProvider
) -> None:
    headers = {"host": "internal.example:8008"}
    path = f"{REDIRECT}/example?redirectUrl={CLIENT}"
    sent_on = (await server.anonymous.get(path, headers=headers)).headers["location"]
    assert sent_on == f"https://a.example{path}&at_base_url=1"
    behind_a_proxy = await server.anonymous.get(sent_on.removeprefix("https://a.example"), headers=headers)
    assert behind_a_proxy.headers["location"].startswith(provider.issuer)


async def test_administrators_see_and_change_whom_providers_know(server: Server, provider: OpenIDProvider) -> None:
    await use(server, login_token_of(await Browser(server, provider).log_in()))
    root = await server.register("root")
    assert (await root.get(f"/_synapse/admin/v1/auth_providers/example/users/{SUBJECT}")).status_code == 403
    await server.write(store_account_flags, root.user_id, AccountFlags(is_admin=True))
    found = await root.ok("GET", f"/_synapse/admin/v1/auth_providers/example/users/{SUBJECT}")
    assert found == {"user_id": ALICE}
    assert (await root.get("/_synapse/admin/v1/auth_providers/example/users/nobody")).status_code == 404
    account = await root.ok("GET", f"/_synapse/admin/v2/users/{ALICE}")
    assert account["external_ids"] == [{"auth_provider": "example", "external_id": SUBJECT}]
    body = {"external_ids": [{"auth_provider": "example", "external_id": "another"}]}
    changed = await root.ok("PUT", f"/_synapse/admin/v2/users/{ALICE}", json=body)
    assert changed["external_ids"] == [{"auth_provider": "example", "external_id": "another"}]
    refused = await root.put(f"/_synapse/admin/v2/users/{root.user_id}", json=body)
    assert refused.status_code == 409
    provider.claims["sub"] = "another"
    assert await use(server, login_token_of(await Browser(server, provider).log_in())) == ALICE


# --- choosing a username ---


async def test_a_person_chooses_a_username_at_first(federation: Federation, provider: OpenIDProvider) -> None:
    server = await federation.start("a.example", sso=[provider.settings(ask_for_name=True)])
    provider.claims["preferred_username"] = "Alice Ä"
    browser = Browser(server, provider)
    page = await browser.log_in()
    assert "Choose your username." in text_of(page) and 'value="alice=20=c3=a4"' in page.text
    assert "form-action 'self' https://client.example;" in page.headers["content-security-policy"]
    page = await browser.post(browser.at, username="Not a name!")
    assert page.status_code == 400 and "may only contain" in text_of(page) and 'value="Not a name!"' in page.text
    arrived = await browser.post(browser.at, username=" @alice ")
    assert await use(server, login_token_of(arrived)) == ALICE
    assert await use(server, login_token_of(await Browser(server, provider).log_in())) == ALICE


async def test_two_people_with_one_name_at_the_provider_get_two_accounts(
    server: Server, provider: OpenIDProvider
) -> None:
    assert await use(server, login_token_of(await Browser(server, provider).log_in())) == ALICE
    provider.claims["sub"] = "another alice"
    browser = Browser(server, provider)
    assert "Choose your username." in text_of(await browser.log_in())
    page = await browser.post(browser.at, username="alice")
    assert page.status_code == 400 and "This username is taken." in text_of(page)
    assert await use(server, login_token_of(await browser.post(browser.at, username="alice2"))) == "@alice2:a.example"


async def test_a_person_who_chooses_in_two_tabs_gets_one_account(
    federation: Federation, provider: OpenIDProvider
) -> None:
    server = await federation.start("a.example", sso=[provider.settings(ask_for_name=True)])
    browser = Browser(server, provider)
    await browser.log_in()
    first = browser.at
    await browser.log_in()
    second, cookies = browser.at, dict(browser.cookies)
    assert await use(server, login_token_of(await browser.post(first, username="alice"))) == ALICE
    browser.cookies = cookies
    assert await use(server, login_token_of(await browser.post(second, username="other"))) == ALICE


async def test_an_existing_account_is_linked_only_if_the_settings_say_so(
    federation: Federation, provider: OpenIDProvider
) -> None:
    settings = provider.settings(allow_existing_users=True, create_accounts=False)
    server = await federation.start("a.example", sso=[settings])
    await server.register("alice")
    assert await use(server, login_token_of(await Browser(server, provider).log_in())) == ALICE
    assert await server.read(list_external_ids, ALICE) == [("example", provider.claims["sub"])]
    provider.claims["sub"] = "somebody who has taken over the name"
    refused = await Browser(server, provider).log_in()
    assert (refused.status_code, "You have no account" in text_of(refused)) == (403, True)


async def test_an_existing_account_is_not_given_away_by_default(server: Server, provider: OpenIDProvider) -> None:
    await server.register("alice")
    assert "Choose your username." in text_of(await Browser(server, provider).log_in())


@pytest.mark.parametrize("flags", [AccountFlags(is_admin=True), AccountFlags(is_guest=True)])
async def test_accounts_of_administrators_and_guests_are_not_linked_by_name(
    federation: Federation, provider: OpenIDProvider, flags: AccountFlags
) -> None:
    server = await federation.start("a.example", sso=[provider.settings(allow_existing_users=True)])
    await server.register("alice")
    await server.write(store_account_flags, ALICE, flags)
    assert "Choose your username." in text_of(await Browser(server, provider).log_in())
    assert await server.read(list_external_ids, ALICE) == []


@pytest.mark.parametrize(("verified", "is_linked"), [(True, True), (False, False), (None, False)])
async def test_an_unverified_email_address_links_no_existing_account(
    federation: Federation, provider: OpenIDProvider, verified: bool | None, is_linked: bool
) -> None:
    settings = provider.settings(allow_existing_users=True, localpart_template="{email|localpart}")
    server = await federation.start("a.example", sso=[settings])
    await server.register("alice")
    provider.claims |= {"email": "alice@elsewhere.example", "email_verified": verified}
    answer = await Browser(server, provider).log_in()
    if is_linked:
        assert await use(server, login_token_of(answer)) == ALICE
    else:
        assert "Choose your username." in text_of(answer)
    assert bool(await server.read(list_external_ids, ALICE)) == is_linked


def test_localparts_are_mapped_as_the_appendix_says() -> None:
    """Spec: appendices/#mapping-from-other-character-sets"""
    assert map_to_localpart("Alice.B-c_d/+") == "alice.b-c_d/+"
    assert map_to_localpart("a=b@c é") == "a=3db=40c=20=c3=a9"


# --- clients ---


async def test_a_client_that_is_not_trusted_gets_a_token_only_after_a_confirmation(
    server: Server, provider: OpenIDProvider
) -> None:
    browser = Browser(server, provider)
    page = await browser.log_in("https://evil.example/in")
    assert f"You are {ALICE}. If you continue, evil.example gets full access" in text_of(page)
    assert "form-action 'self' https://evil.example;" in page.headers["content-security-policy"]
    assert "loginToken" not in page.text
    arrived = await browser.post(browser.at)
    assert arrived.headers["location"].startswith("https://evil.example/in?loginToken=")
    assert await use(server, login_token_of(arrived)) == ALICE
    assert (await browser.post(browser.at)).status_code == 400


async def test_a_confirmation_cannot_be_clicked_from_another_site_or_in_a_frame(
    server: Server, provider: OpenIDProvider
) -> None:
    browser = Browser(server, provider)
    page = await browser.log_in("https://evil.example/in")
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    browser.cookies = {}  # SameSite=Lax: browsers send none with a form of another site
    assert (await browser.post(browser.at)).status_code == 400


async def test_an_app_with_a_scheme_of_its_own_is_a_client(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    page = await browser.log_in("io.element.app:/callback")
    assert "the app for “io.element.app:” gets full access" in text_of(page)
    assert (await browser.post(browser.at)).headers["location"].startswith("io.element.app:/callback?loginToken=hslt_")


@pytest.mark.parametrize(
    "url",
    [
        "javascript:alert(1)", "JavaScript:alert(1)", "java%0ascript:alert(1)", " javascript:alert(1)",
        "data:text/html,<script>", "data:text/html;base64,PHNjcmlwdD4=", "vbscript:x", "file:///etc/passwd",
        "blob:https://client.example/x", "intent://x", "//evil.example/", "/path", "", "https://", "https:///path",
        "https://client.example@evil.example/", "https://client.example\\@evil.example/", "http://[", "x" * 2001,
        "https://client.example/\r\nSet-Cookie: a=b", "https://client.example:port/", "about:blank",
        "https://cliént.example/", "https://client.example/ x",
    ],
)  # fmt: skip
async def test_a_redirect_to_what_is_no_client_is_refused(federation: Federation, url: str) -> None:
    provider = OpenIDProvider("id.example")
    server = await federation.start("a.example", sso=[provider.settings()])
    for path in (REDIRECT, f"{REDIRECT}/example"):
        answer = await server.anonymous.request("GET", path, params={"redirectUrl": url})
        assert answer.status_code == 400 and "location" not in answer.headers


@pytest.mark.parametrize(
    "url",
    [
        "https://app.example.evil.example/", "https://app.example:444/ok/", "http://app.example/ok/",
        "https://app.example/okay", "https://app.example/ok/../", "https://app.example/ok/%2e%2e/x",
        "https://app.example/ok/%2E./x", "https://app.example/", "app://ok",
    ],
)  # fmt: skip
def test_trust_ends_where_the_trusted_path_ends(url: str) -> None:
    assert not is_trusted(url, ["https://app.example/ok/", "app:/ok"])
    assert is_trusted("https://app.example/ok?x", ["https://app.example/ok/"])
    assert is_trusted("https://APP.example/ok/x/y#z", ["https://app.example/ok"])


# --- attacks on the way ---


async def test_an_answer_in_another_browser_is_refused(server: Server, provider: OpenIDProvider) -> None:
    """Login CSRF: an attacker sends a victim the way back of the attacker's own log-in. Also a stolen state."""
    attacker, victim = Browser(server, provider), Browser(server, provider)
    way_back = provider.let_in(await attacker.begin())
    assert (await victim.return_to(way_back)).status_code == 400
    await victim.begin()
    assert (await victim.return_to(way_back)).status_code == 400
    assert "/token" not in provider.asked
    assert (await attacker.return_to(way_back)).status_code == 302


async def test_an_answer_works_once(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    way_back = provider.let_in(await browser.begin())
    cookies = dict(browser.cookies)
    assert (await browser.return_to(way_back)).status_code == 302
    browser.cookies = cookies
    assert (await browser.return_to(way_back)).status_code == 400
    assert provider.asked.count("/token") == 1


async def test_an_answer_that_failed_is_not_used_again(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    way_back = provider.let_in(await browser.begin())
    provider.answers["/token"] = (500, {})
    assert (await browser.return_to(way_back)).status_code == 502
    del provider.answers["/token"]
    assert (await browser.return_to(way_back)).status_code == 400


async def test_a_code_of_another_attempt_is_refused(server: Server, provider: OpenIDProvider) -> None:
    """A stolen code: PKCE ties it to its attempt, and the nonce ties its ID token, if a provider ignores PKCE."""
    thief, victim = Browser(server, provider), Browser(server, provider)
    stolen = provider.let_in(await victim.begin()).partition("code=")[2].partition("&")[0]
    own = provider.let_in(await thief.begin())
    used = own.replace("code=code1", f"code={stolen}")
    assert used != own
    provider.forgets_pkce = True
    assert (await thief.return_to(used)).status_code == 502


async def test_an_attempt_ends_after_a_quarter_of_an_hour(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    way_back = provider.let_in(await browser.begin())
    await trio.sleep(15 * 60 + 1)
    assert (await browser.return_to(way_back)).status_code == 400


async def test_a_refusal_of_the_provider_is_told(server: Server, provider: OpenIDProvider) -> None:
    browser = Browser(server, provider)
    state = provider.let_in(await browser.begin()).partition("state=")[2].partition("&")[0]
    answer = await browser.get(f"/_homeserver/sso/callback?state={state}&error=access_denied")
    assert (answer.status_code, "Example ID did not log you in" in text_of(answer)) == (403, True)


async def test_an_answer_of_another_issuer_is_refused(server: Server, provider: OpenIDProvider) -> None:
    """The mix-up attack. Spec: RFC 9207"""
    browser = Browser(server, provider)
    way_back = provider.let_in(await browser.begin())
    assert (await browser.return_to(way_back.replace("id.example", "evil.example"))).status_code == 502
    assert "/token" not in provider.asked


# --- accounts that may not log in ---


async def test_a_deactivated_account_does_not_come_back(server: Server, provider: OpenIDProvider) -> None:
    token = login_token_of(await Browser(server, provider).log_in())
    answer = await server.anonymous.ok("POST", "login", json={"type": "m.login.token", "token": token})
    await server.write(set_deactivated, ALICE, erase=False)
    refused = await Browser(server, provider).log_in()
    assert (refused.status_code, "has been deactivated" in text_of(refused)) == (403, True)
    assert (await server.with_token(answer["access_token"]).get("account/whoami")).status_code == 401


async def test_a_locked_account_gets_no_token(server: Server, provider: OpenIDProvider) -> None:
    await use(server, login_token_of(await Browser(server, provider).log_in()))
    waiting = Browser(server, provider)
    await waiting.log_in("https://other.example/")
    await server.write(store_account_flags, ALICE, AccountFlags(is_locked=True))
    refused = await Browser(server, provider).log_in()
    assert (refused.status_code, "is locked" in text_of(refused)) == (403, True)
    assert (await waiting.post(waiting.at)).status_code == 403


async def test_a_suspended_account_may_log_in(server: Server, provider: OpenIDProvider) -> None:
    await use(server, login_token_of(await Browser(server, provider).log_in()))
    await server.write(store_account_flags, ALICE, AccountFlags(is_suspended=True))
    assert await use(server, login_token_of(await Browser(server, provider).log_in())) == ALICE
