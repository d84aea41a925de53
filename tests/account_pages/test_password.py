"""Changing the password on the account pages."""

from __future__ import annotations

import trio

from homeserver import limits
from homeserver.config import RateLimitsSection
from homeserver.users.accounts import store_password_hash
from tests.support.browser import ACCOUNT, Browser
from tests.support.homeservers import PASSWORD, Homeservers, Server

ALICE = "@alice:test.example"
NEW = "a better password"


async def test_the_password_is_changed_and_devices_are_logged_out(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    elsewhere = Browser(homeserver.app, homeserver.name)
    await elsewhere.log_in("alice", PASSWORD)
    await browser.log_in("alice", PASSWORD)
    before = browser.http.cookies["__Host-homeserver-session"]
    page = await browser.open(f"{ACCOUNT}password")
    page = await browser.send(page, current=PASSWORD, new=NEW, repeated=NEW)
    assert "Your password has been changed." in page.text
    assert browser.http.cookies["__Host-homeserver-session"] != before
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert (await elsewhere.open(ACCOUNT)).heading == "Log in to test.example"
    await homeserver.log_in("alice", NEW)


async def test_devices_stay_logged_in_if_the_person_wishes(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}password")
    await browser.send(page, current=PASSWORD, new=NEW, repeated=NEW, logout_devices=None)
    await alice.ok("GET", "account/whoami")


async def test_the_new_password_is_checked(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}password")
    for fields, said in (
        ({"current": "", "new": NEW, "repeated": NEW}, "Enter your current password."),
        ({"current": PASSWORD, "new": "short", "repeated": "short"}, "The password must have at least 8 characters."),
        ({"current": PASSWORD, "new": NEW, "repeated": "other"}, "The two new passwords are not the same."),
        ({"current": "wrong", "new": NEW, "repeated": NEW}, "The password is wrong."),
    ):
        page = await browser.send(page, **fields)
        assert (page.problems, page.status >= 400) == ([said], True)
        assert not {PASSWORD, NEW, "wrong"} & set(page.tree.xpath("//input/@value"))
    await homeserver.log_in("alice", PASSWORD)


async def test_an_account_without_a_password_gets_one_soon_after_a_log_in(homeserver: Server, browser: Browser) -> None:
    """People who come by single sign-on or with a passkey have none."""
    alice = await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    await homeserver.write(store_password_hash, ALICE, None)
    page = await browser.open(f"{ACCOUNT}password")
    assert page.heading == "Set a password" and not page.tree.xpath("//input[@name='current']")
    page = await browser.send(page, new="short", repeated="short")
    assert page.problems == ["The password must have at least 8 characters."]
    page = await browser.send(page, new=NEW, repeated=NEW)
    assert "Your password has been changed." in page.text
    await alice.ok("GET", "account/whoami")
    await homeserver.log_in("alice", NEW)


async def test_setting_a_first_password_asks_again_if_the_log_in_is_old(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    await homeserver.write(store_password_hash, ALICE, None)
    page = await browser.open(f"{ACCOUNT}password")
    await trio.sleep(limits.PAGE_CONFIRMATION_MS / 1000 + 1)
    assert (await browser.send(page, new=NEW, repeated=NEW)).heading == "Is it you?"
    assert (await browser.open(f"{ACCOUNT}password")).heading == "Is it you?"
    assert await homeserver.read(lambda tx: tx.values("SELECT password_hash FROM users")) == [None]


async def test_a_first_password_does_not_replace_one_that_was_set_meanwhile(
    homeserver: Server, browser: Browser
) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    (old_hash,) = await homeserver.read(lambda tx: tx.values("SELECT password_hash FROM users"))
    await homeserver.write(store_password_hash, ALICE, None)
    page = await browser.open(f"{ACCOUNT}password")
    await homeserver.write(store_password_hash, ALICE, old_hash)
    page = await browser.send(page, new=NEW, repeated=NEW)
    assert page.problems == ["Enter your current password."]
    await homeserver.log_in("alice", PASSWORD)


async def test_guesses_of_the_present_password_are_limited_like_those_of_the_operation(
    homeservers: Homeservers,
) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    alice = await server.register("alice")
    browser = Browser(server.app, server.name)
    page = await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}password")
    for _ in range(12):
        page = await browser.send(page, current="wrong", new=NEW, repeated=NEW)
    assert page.status == 429
    body = {"new_password": NEW, "auth": alice.password_auth()}
    assert await alice.refused("POST", "account/password", json=body) == (429, "M_LIMIT_EXCEEDED")


async def test_every_form_needs_its_token(homeserver: Server, browser: Browser) -> None:
    """Another site can make a browser send a form, with the cookie even, but does not know the token."""
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}password")
    data = {"current": PASSWORD, "new": NEW, "repeated": NEW}
    for token in ("", "guessed", page.form().form_values()[0][1][:-1]):
        answer = await browser.http.post(f"{ACCOUNT}password", data={**data, "form_token": token})
        assert answer.status_code == 403
    await homeserver.log_in("alice", PASSWORD)
