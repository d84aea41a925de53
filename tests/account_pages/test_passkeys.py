"""Passkeys: adding, removing, logging in, and answers that must not work."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from homeserver import authenticate
from homeserver.authenticate import AccountFlags
from homeserver.config import Public, RateLimitsSection
from homeserver.users.passkeys import list_passkeys
from tests.support.authenticator import PRESENT, Authenticator
from tests.support.browser import ACCOUNT, Browser, PageShown
from tests.support.homeservers import PASSWORD, Homeservers, Server

ORIGIN = "https://test.example"
ALICE = "@alice:test.example"


async def options_of(browser: Browser, page: PageShown, action: str) -> dict[str, Any]:
    """The options that the script of the page gets before it asks the person."""
    form = page.form(action)
    token = form.xpath(".//input[@name='form_token']/@value")[0]
    answer = await browser.http.post(form.get("data-options"), data={"form_token": token})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def add_passkey(browser: Browser, key: Authenticator, name: str = "Laptop") -> PageShown:
    page = await browser.open(f"{ACCOUNT}passkeys")
    options = await options_of(browser, page, "passkeys")
    return await browser.send(page, "passkeys", credential=key.create(options), name=name)


async def log_in(browser: Browser, key: Authenticator, path: str = "login") -> PageShown:
    page = await browser.open(f"{ACCOUNT}{path}")
    options = await options_of(browser, page, "passkeys/login")
    return await browser.send(page, "passkeys/login", credential=key.get(options))


@pytest.fixture
async def key(homeserver: Server, browser: Browser) -> Authenticator:
    """A passkey of alice."""
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    authenticator = Authenticator(ORIGIN)
    await add_passkey(browser, authenticator)
    return authenticator


async def test_a_passkey_is_added_and_logs_in(homeserver: Server, browser: Browser, key: Authenticator) -> None:
    page = await browser.open(f"{ACCOUNT}passkeys")
    assert "Laptop Added 14 November 2023" in page.text
    other = Browser(homeserver.app, homeserver.name)
    page = await log_in(other, key)
    assert (page.path, page.heading) == (ACCOUNT, "alice")
    assert "last used 14 November 2023" in (await other.open(f"{ACCOUNT}passkeys")).text


async def test_options_ask_for_a_key_that_knows_the_person(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}passkeys")
    options = await options_of(browser, page, "passkeys")
    assert options["rp"] == {"id": "test.example", "name": "test.example"}
    assert options["user"]["name"] == ALICE
    chosen = options["authenticatorSelection"]
    assert (chosen["residentKey"], chosen["userVerification"]) == ("required", "required")
    again = await options_of(browser, page, "passkeys")
    assert again["challenge"] != options["challenge"] and again["user"]["id"] == options["user"]["id"]


async def test_a_passkey_is_removed(homeserver: Server, browser: Browser, key: Authenticator) -> None:
    page = await browser.send(await browser.open(f"{ACCOUNT}passkeys"), "passkeys/delete")
    assert "You have none." in page.text
    page = await log_in(Browser(homeserver.app, homeserver.name), key)
    assert (page.status, page.problems) == (403, ["This passkey is not known here, or did not work."])


async def test_a_passkey_of_another_user_is_not_removed(
    homeserver: Server, browser: Browser, key: Authenticator
) -> None:
    page = await browser.open(f"{ACCOUNT}passkeys")
    stolen = page.form("passkeys/delete").xpath(".//input[@name='id']/@value")[0]
    await homeserver.register("mallory")
    other = Browser(homeserver.app, homeserver.name)
    await other.log_in("mallory", PASSWORD)
    page = await add_passkey(other, Authenticator(ORIGIN))
    await other.send(page, "passkeys/delete", id=stolen)
    assert len(await homeserver.read(list_passkeys, ALICE)) == 1


async def test_an_answer_works_once_and_in_one_browser(homeserver: Server, key: Authenticator) -> None:
    """Whoever has overheard an answer, or has made a person give one, cannot use it elsewhere or again."""
    one, other = (Browser(homeserver.app, homeserver.name) for _ in range(2))
    page = await one.open(f"{ACCOUNT}login")
    answer = key.get(await options_of(one, page, "passkeys/login"))
    theirs = await other.open(f"{ACCOUNT}login")
    await options_of(other, theirs, "passkeys/login")
    assert (await other.send(theirs, "passkeys/login", credential=answer)).status == 403
    assert (await one.send(page, "passkeys/login", credential=answer)).heading == "alice"
    one.http.cookies.clear()
    page = await one.open(f"{ACCOUNT}login")
    assert (await one.send(page, "passkeys/login", credential=answer)).status == 403


async def test_an_answer_that_took_too_long_is_refused(homeserver: Server, key: Authenticator) -> None:
    browser = Browser(homeserver.app, homeserver.name)
    page = await browser.open(f"{ACCOUNT}login")
    answer = key.get(await options_of(browser, page, "passkeys/login"))
    await trio.sleep(6 * 60)
    page = await browser.send(page, "passkeys/login", credential=answer)
    assert page.problems == ["That took too long, or was done already. Try again."]


async def test_answers_for_other_sites_or_without_the_person_are_refused(
    homeserver: Server, key: Authenticator
) -> None:
    impostor = Authenticator(ORIGIN, credential_id=key.credential_id)
    elsewhere = Authenticator("https://evil.example", credential_id=key.credential_id, key=key.key)
    nobody = Authenticator(ORIGIN, PRESENT, credential_id=key.credential_id, key=key.key)
    for wrong in (impostor, elsewhere, nobody):
        page = await log_in(Browser(homeserver.app, homeserver.name), wrong)
        assert (page.status, page.problems) == (403, ["This passkey is not known here, or did not work."])


async def test_a_copied_key_is_noticed_by_its_count(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    key = Authenticator(ORIGIN, count=5)
    await add_passkey(browser, key)
    copy = Authenticator(ORIGIN, count=5, credential_id=key.credential_id, key=key.key)
    assert (await log_in(Browser(homeserver.app, homeserver.name), key)).heading == "alice"
    assert (await log_in(Browser(homeserver.app, homeserver.name), copy)).status == 403


@pytest.mark.parametrize("nonsense", ["", "{}", "[]", "null", '{"id":"AA"}', "x" * 40_000, '{"id": {"a": 1}}', "\x00"])
async def test_nonsense_is_refused(homeserver: Server, key: Authenticator, browser: Browser, nonsense: str) -> None:
    other = Browser(homeserver.app, homeserver.name)
    page = await other.open(f"{ACCOUNT}login")
    await options_of(other, page, "passkeys/login")
    assert (await other.send(page, "passkeys/login", credential=nonsense)).status == 403
    page = await browser.open(f"{ACCOUNT}passkeys")
    await options_of(browser, page, "passkeys")
    page = await browser.send(page, "passkeys", credential=nonsense)
    assert (page.status, page.problems) == (400, ["This passkey cannot be used."])


async def test_a_passkey_is_added_after_showing_who_one_is(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}passkeys")
    key = Authenticator(ORIGIN)
    answer = key.create(await options_of(browser, page, "passkeys"))
    await trio.sleep(1800)
    assert not (await browser.open(f"{ACCOUNT}passkeys")).tree.xpath("//form[@data-passkey]")
    assert (await browser.send(page, "passkeys", credential=answer)).heading == "Is it you?"
    assert await homeserver.read(list_passkeys, ALICE) == []


async def test_a_passkey_shows_again_who_a_person_is(homeserver: Server, browser: Browser, key: Authenticator) -> None:
    await trio.sleep(1800)
    page = await log_in(browser, key, "confirm?return_to=/_homeserver/account/passkeys")
    assert page.path == f"{ACCOUNT}passkeys" and page.tree.xpath("//form[@data-passkey]")


async def test_a_passkey_of_another_user_shows_nothing(
    homeserver: Server, browser: Browser, key: Authenticator
) -> None:
    await homeserver.register("bob")
    other = Browser(homeserver.app, homeserver.name)
    await other.log_in("bob", PASSWORD)
    own = Authenticator(ORIGIN)
    await add_passkey(other, own)
    page = await other.open(f"{ACCOUNT}confirm")
    answer = key.get(await options_of(other, page, "passkeys/login"))
    assert (await other.send(page, "passkeys/login", credential=answer)).status == 403
    assert (await other.open(ACCOUNT)).heading == "bob"


async def test_accounts_that_are_locked_do_not_log_in_by_passkey(homeserver: Server, key: Authenticator) -> None:
    await homeserver.write(authenticate.store_account_flags, ALICE, AccountFlags(is_locked=True))
    page = await log_in(Browser(homeserver.app, homeserver.name), key)
    assert page.problems == ["This account has been locked by the people who run this server."]


async def test_passkeys_end_with_the_account(homeserver: Server, key: Authenticator) -> None:
    alice = await homeserver.log_in("alice")
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    assert await homeserver.read(list_passkeys, ALICE) == []
    assert (await log_in(Browser(homeserver.app, homeserver.name), key)).status == 403


async def test_passkey_log_ins_are_limited_by_address(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    browser = Browser(server.app, server.name)
    page = await browser.open(f"{ACCOUNT}login")
    answers = [await browser.send(page, "passkeys/login", credential="{}") for _ in range(12)]
    assert answers[-1].status == 429


async def test_passkeys_are_not_offered_where_browsers_have_none(homeservers: Homeservers) -> None:
    server = await homeservers.start(public=Public(base_url="http://test.example"))
    await server.register("alice")
    browser = Browser(server.app, server.name)
    browser.http.base_url = "http://test.example"  # type: ignore[assignment]
    assert not (await browser.open(f"{ACCOUNT}login")).tree.xpath("//form[@data-passkey]")
    await browser.log_in("alice", PASSWORD)
    assert "over TLS only" in (await browser.open(f"{ACCOUNT}passkeys")).text
