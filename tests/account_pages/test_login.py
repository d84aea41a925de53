"""Logging in to the account pages: who gets in, where it leads, and what others cannot do with it."""

from __future__ import annotations

import httpx
import pytest
import trio
from msgspec.structs import replace

from homeserver import authenticate
from homeserver.authenticate import AccountFlags
from homeserver.config import Public, RateLimitsSection, SsoProvider
from homeserver.users.accounts import create_user
from homeserver.users.page_sessions import PAGES_PATH, local_path
from homeserver.users.threepids import EMAIL, store_threepid
from tests.support.browser import ACCOUNT, Browser
from tests.support.homeservers import PASSWORD, Homeservers, Server

SESSION = "__Host-homeserver-session"


async def test_a_person_logs_in_with_a_password(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    page = await browser.log_in("alice", PASSWORD)
    assert (page.path, page.heading) == (ACCOUNT, "alice")
    assert "@alice:test.example" in page.text


async def test_a_person_is_led_back_after_the_log_in(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    page = await browser.open(f"{ACCOUNT}devices/view?device_id={alice.device_id}")
    assert page.heading == "Log in to test.example"
    page = await browser.send(page, username="@alice:test.example", password=PASSWORD)
    assert page.path == f"{ACCOUNT}devices/view?device_id={alice.device_id}"


async def test_the_log_in_page_says_what_is_missing(browser: Browser) -> None:
    page = await browser.send(await browser.open(f"{ACCOUNT}login"))
    assert page.status == 400
    assert page.problems == ["Enter your username.", "Enter your password."]
    assert page.title.startswith("Error: ")
    assert page.links()[1:3] == ["#username", "#password"]
    assert page.tree.xpath("//input[@id='password']/@aria-invalid") == ["true"]


async def test_a_wrong_password_and_a_wrong_name_are_refused_alike(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    wrong, nobody = await browser.log_in("alice", "wrong"), await browser.log_in("nobody", PASSWORD)
    assert wrong.status == nobody.status == 403
    assert wrong.problems == nobody.problems == ["The username or the password is wrong."]
    assert SESSION not in browser.http.cookies
    assert wrong.tree.xpath("//input[@id='username']/@value") == ["alice"]
    assert wrong.tree.xpath("//input[@id='password']/@value") == [""]


async def test_an_email_address_logs_in_too(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    await homeserver.write(store_threepid, alice.user_id, EMAIL, "alice@example.org", 1)
    assert (await browser.log_in("Alice@Example.org", PASSWORD)).heading == "alice"


async def test_session_fixation_a_session_from_before_the_log_in_is_not_used(
    homeserver: Server, browser: Browser
) -> None:
    """An attacker who can set cookies in a browser gains nothing from it: each log-in makes a new token."""
    await homeserver.register("alice")
    await homeserver.register("mallory")
    other = Browser(homeserver.app, homeserver.name)
    await other.log_in("mallory", PASSWORD)
    prepared = other.http.cookies[SESSION]
    browser.http.cookies.set(SESSION, "hsps_made_up_by_the_attacker", domain="test.example")
    await browser.log_in("alice", PASSWORD)
    assert browser.http.cookies[SESSION] not in ("hsps_made_up_by_the_attacker", prepared)
    first = browser.http.cookies[SESSION]
    page = await browser.open(f"{ACCOUNT}confirm")
    await browser.send(page, password=PASSWORD)
    assert browser.http.cookies[SESSION] != first
    old = Browser(homeserver.app, homeserver.name)
    old.http.cookies.set(SESSION, first, domain="test.example")
    assert (await old.open(ACCOUNT)).heading == "Log in to test.example"


async def test_session_cookies_are_out_of_reach_of_scripts_other_sites_and_plain_http(
    homeserver: Server, browser: Browser
) -> None:
    await homeserver.register("alice")
    answer = await browser.post(await browser.open(f"{ACCOUNT}login"), username="alice", password=PASSWORD)
    cookie = next(each for each in answer.headers.get_list("set-cookie") if each.startswith(SESSION))
    attributes = cookie.split("; ")[1:]
    assert {"Path=/", "HttpOnly", "SameSite=Lax", "Secure"} <= set(attributes)
    assert not any(each.startswith("Domain") for each in attributes)


async def test_session_cookies_work_on_a_server_without_tls(homeservers: Homeservers) -> None:
    server = await homeservers.start(public=Public(base_url="http://test.example"))
    await server.register("alice")
    browser = Browser(server.app, server.name)
    answer = await browser.post(await browser.open(f"{ACCOUNT}login"), username="alice", password=PASSWORD)
    (cookie,) = [each for each in answer.headers.get_list("set-cookie") if each.startswith("homeserver-session=hsps")]
    assert "Secure" not in cookie and "HttpOnly" in cookie


async def test_login_csrf_another_site_cannot_log_a_browser_in(homeserver: Server, browser: Browser) -> None:
    """A form of the attacker's, with the attacker's own password: the victim would use the attacker's account."""
    await homeserver.register("mallory")
    theirs = Browser(homeserver.app, homeserver.name)
    stolen = (await theirs.open(f"{ACCOUNT}login")).tree.xpath("//input[@name='form_token']/@value")[0]
    await browser.open(f"{ACCOUNT}login")  # the browser has a cookie of its own, of which the token is not
    for token in ("", stolen):
        data = {"username": "mallory", "password": PASSWORD, "form_token": token}
        answer = await browser.http.post(f"{ACCOUNT}login", data=data)
        assert answer.status_code == 403
        assert SESSION not in browser.http.cookies


async def test_forms_of_other_sites_are_refused_even_with_the_token(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    page = await browser.open(f"{ACCOUNT}login")
    data = {**dict(page.form().form_values()), "username": "alice", "password": PASSWORD}
    for site in ("cross-site", "same-site"):
        answer = await browser.http.post(f"{ACCOUNT}login", data=data, headers={"sec-fetch-site": site})
        assert answer.status_code == 403, site
        assert SESSION not in browser.http.cookies


OPEN_REDIRECTS = (
    "https://evil.example/",
    "//evil.example/",
    "/\\evil.example",
    "/_homeserver/account/../../evil",
    "/_homeserver/account/%2e%2e/%2E./evil",
    "/_homeserver/account/..%2f..%2fevil",
    "/_homeserver/account//evil.example",
    "/_homeserver/account/\\\\evil.example",
    "/_homeserver/account/\r\nset-cookie: a=b",
    "/_homeserver/account/\x00",
    "/_homeserver/accountevil",
    "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://evil.example",
    "javascript:alert(1)",
    "/_homeserver/account/" + "a" * 10_000,
    "",
)


@pytest.mark.parametrize("target", OPEN_REDIRECTS)
def test_open_redirects_a_log_in_leads_to_account_pages_only(target: str) -> None:
    assert local_path(target) == PAGES_PATH


async def test_open_redirects_are_not_taken_from_forms_and_links(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    page = await browser.open(f"{ACCOUNT}login?return_to=https://evil.example/")
    form = dict(page.form().form_values())
    assert form["return_to"] == PAGES_PATH
    data = {**form, "return_to": "//evil.example", "username": "alice", "password": PASSWORD}
    answer = await browser.http.post(f"{ACCOUNT}login", data=data)
    assert (answer.status_code, answer.headers["location"]) == (303, PAGES_PATH)
    for path in ("login", "logout", "confirm"):
        answer = await browser.http.get(f"{ACCOUNT}{path}?return_to=//evil.example")
        assert "evil.example" not in answer.text + answer.headers.get("location", "")


async def test_return_paths_keep_their_query() -> None:
    path = "/_homeserver/account/authorize?client_id=a&redirect_uri=https%3A%2F%2Fb.example%2F&scope=urn%3Aa%20b&x=../"
    assert local_path(path) == path


async def test_password_guesses_through_pages_are_limited_like_those_of_the_operation(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    await server.register("alice")
    browser = Browser(server.app, server.name)
    answers = [await browser.log_in("alice", "wrong") for _ in range(12)]
    refused = [page for page in answers if page.status == 429]
    assert 1 <= len(refused) <= 3
    assert refused[0].problems[0].startswith("Too many attempts. Try again")
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": PASSWORD}
    assert await server.anonymous.refused("POST", "login", json=login) == (429, "M_LIMIT_EXCEEDED")
    elsewhere = Browser(server.app, server.name, address="198.51.100.1")
    assert (await elsewhere.log_in("alice", PASSWORD)).heading == "alice"


async def test_failed_log_ins_are_logged_for_programs_that_block_addresses(
    homeserver: Server, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    await browser.log_in("alice", "wrong")
    (record,) = [each for each in caplog.records if each.getMessage() == "login failed"]
    assert (record.address, record.errcode) == ("192.0.2.7", "M_FORBIDDEN")  # type: ignore[attr-defined]


async def test_people_behind_a_proxy_are_limited_by_their_own_address(homeserver: Server) -> None:
    """Without that, one person with a wrong password would keep out everybody."""
    browser = Browser(homeserver.app, homeserver.name, address="127.0.0.1")
    browser.http.headers["x-forwarded-for"] = "203.0.113.9"
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    address = await homeserver.read(lambda tx: tx.one("SELECT address FROM page_sessions"))
    assert address == ("203.0.113.9",)


@pytest.mark.parametrize("flag", ["is_locked", "is_guest"])
async def test_accounts_that_are_locked_or_guests_are_refused(homeserver: Server, browser: Browser, flag: str) -> None:
    alice = await homeserver.register("alice")
    flags = replace(AccountFlags(), **{flag: True})
    await homeserver.write(authenticate.store_account_flags, alice.user_id, flags)
    page = await browser.log_in("alice", PASSWORD)
    assert page.status in (401, 403) and SESSION not in browser.http.cookies
    assert page.problems == [
        "This account has been locked by the people who run this server."
        if flag == "is_locked"
        else "Guests have no account pages."
    ]


async def test_accounts_that_are_locked_later_see_nothing_but_that(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    await homeserver.write(authenticate.store_account_flags, alice.user_id, AccountFlags(is_locked=True))
    for path in ("", "devices", "password", "login", "confirm"):
        page = await browser.open(f"{ACCOUNT}{path}")
        assert (page.status, page.heading) == (403, "Your account is locked"), path
    page = await browser.send(await browser.open(f"{ACCOUNT}logout"), "logout")
    assert page.heading == "Log in to test.example"


async def test_accounts_that_are_suspended_get_in(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    await homeserver.write(authenticate.store_account_flags, alice.user_id, AccountFlags(is_suspended=True))
    assert (await browser.log_in("alice", PASSWORD)).heading == "alice"


async def test_accounts_that_are_deactivated_lose_their_sessions(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    assert (await browser.open(ACCOUNT)).heading == "Log in to test.example"
    assert await homeserver.read(lambda tx: tx.all("SELECT * FROM page_sessions")) == []
    page = await browser.log_in("alice", PASSWORD)
    assert page.problems == ["This account has been deactivated."]


async def test_accounts_without_a_password_cannot_log_in_with_one(homeserver: Server, browser: Browser) -> None:
    await homeserver.write(create_user, "@bridge:test.example", None)
    assert (await browser.log_in("bridge", "")).status == 400
    assert (await browser.log_in("bridge", "None")).status == 403


async def test_sessions_end_when_the_user_logs_out_everywhere(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    await alice.ok("POST", "logout/all")
    assert (await browser.open(ACCOUNT)).heading == "Log in to test.example"


@pytest.mark.parametrize("logout_devices", [True, False])
async def test_sessions_end_with_a_change_of_the_password(
    homeserver: Server, browser: Browser, logout_devices: bool
) -> None:
    alice = await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    body = {"new_password": "another good one", "logout_devices": logout_devices, "auth": alice.password_auth()}
    await alice.ok("POST", "account/password", json=body)
    assert (await browser.open(ACCOUNT)).heading == "Log in to test.example"


async def test_sessions_end_after_a_day_and_with_the_log_out(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    await trio.sleep(13 * 3600)
    assert (await browser.open(ACCOUNT)).heading == "Log in to test.example"
    await browser.log_in("alice", PASSWORD)
    token = browser.http.cookies[SESSION]
    page = await browser.open(f"{ACCOUNT}logout")
    page = await browser.send(page, "logout")
    assert page.heading == "Log in to test.example"
    browser.http.cookies.set(SESSION, token, domain="test.example")
    assert (await browser.open(ACCOUNT)).heading == "Log in to test.example"


async def test_logging_out_is_nothing_that_a_link_can_do(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    assert (await browser.open(f"{ACCOUNT}logout")).heading == "Log out of these pages?"
    assert (await browser.open(ACCOUNT)).heading == "alice"


async def test_pages_are_served_below_another_path(homeserver: Server) -> None:
    """The server may be mounted there by an embedding program."""
    await homeserver.register("alice")
    transport = httpx.ASGITransport(homeserver.app, root_path="/chat", client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="https://test.example") as http:
        answer = await http.get(f"/chat{ACCOUNT}devices")
        assert answer.headers["location"].startswith(f"/chat{ACCOUNT}login?return_to=%2F_homeserver")
        page = await http.get(answer.headers["location"])
        assert f'action="/chat{ACCOUNT}login"' in page.text


async def test_links_are_those_of_a_proxy_that_serves_the_pages_below_another_path(homeservers: Homeservers) -> None:
    server = await homeservers.start(public=Public(base_url="https://test.example/chat"))
    browser = Browser(server.app, server.name)
    answer = await browser.http.get(f"{ACCOUNT}devices")
    assert answer.headers["location"].startswith(f"/chat{ACCOUNT}login?return_to=%2F_homeserver")
    assert f'action="/chat{ACCOUNT}login"' in (await browser.http.get(f"{ACCOUNT}login")).text


async def test_forms_that_are_too_large_are_refused(homeserver: Server, browser: Browser) -> None:
    page = await browser.open(f"{ACCOUNT}login")
    answer = await browser.post(page, username="a" * 100_000, password="x")
    assert answer.status_code == 413
    many = "&".join(f"a{number}=1" for number in range(5_000))
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert (await browser.http.post(f"{ACCOUNT}login", content=many, headers=headers)).status_code in (403, 413)


async def test_outside_providers_are_offered(homeservers: Homeservers) -> None:
    provider = SsoProvider(id="work", name="Work & <Co>", issuer="https://login.example", client_id="matrix")
    server = await homeservers.start(sso=(provider,))
    await server.register("alice")
    browser = Browser(server.app, server.name)
    page = await browser.open(f"{ACCOUNT}devices")
    link = "/_homeserver/sso/begin?provider=work&return_to=%2F_homeserver%2Faccount%2Fdevices"
    assert link in page.links() and "Continue with Work & <Co>" in page.text
    await browser.send(page, username="alice", password=PASSWORD)
    page = await browser.open(f"{ACCOUNT}confirm?return_to=/_homeserver/account/devices")
    assert link in page.links()


async def test_failures_of_the_server_are_told_without_details(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    await homeserver.write(lambda tx: tx.run("ALTER TABLE page_sessions RENAME COLUMN method TO other"))
    page = await browser.open(ACCOUNT)
    assert page.status in (500, 503) and page.heading == "That did not work"
    assert "method" not in page.text and "SELECT" not in page.text
