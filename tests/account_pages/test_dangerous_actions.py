"""Deactivating the account and resetting cross-signing: only by the person, and only on purpose."""

from __future__ import annotations

import trio

from homeserver import authenticate
from homeserver.authenticate import AccountFlags
from homeserver.users.accounts import store_password_hash
from homeserver.users.oauth.cross_signing import is_reset_approved
from tests.support.browser import ACCOUNT, Browser, PageShown
from tests.support.homeservers import PASSWORD, Server

ALICE = "@alice:test.example"


async def open_page(server: Server, browser: Browser, path: str) -> PageShown:
    await server.register("alice")
    await browser.log_in("alice", PASSWORD)
    return await browser.open(f"{ACCOUNT}{path}")


async def is_active(server: Server) -> bool:
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "password": PASSWORD}
    return (await server.anonymous.post("login", json=login)).status_code == 200


async def test_a_person_deactivates_the_account(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "?action=org.matrix.account_deactivate")
    alice, bob = await homeserver.log_in("alice"), await homeserver.register("bob")
    room_id = await homeserver.make_room(bob, alice)
    page = await browser.send(page, sure="yes", password=PASSWORD)
    assert page.heading == "Log in to test.example" and "Your account has been deactivated." in page.text
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")
    assert not await is_active(homeserver)
    await trio.sleep(1)
    assert list((await bob.ok("GET", f"rooms/{room_id}/joined_members"))["joined"]) == [bob.user_id]


async def test_a_deactivation_can_hide_the_messages(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "deactivate")
    await browser.send(page, sure="yes", erase="yes", password=PASSWORD)
    assert await homeserver.read(lambda tx: tx.values("SELECT erased FROM users")) == [1]


async def test_a_deactivation_needs_the_password_and_a_tick(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "deactivate")
    page = await browser.send(page, sure=None)
    assert page.problems == ["Tick the box if you are sure.", "Enter your password."]
    page = await browser.send(page, sure="yes", password="wrong")
    assert (page.status, page.problems) == (403, ["The password is wrong."])
    assert await is_active(homeserver)


async def test_a_deactivation_is_nothing_that_another_site_can_do(homeserver: Server, browser: Browser) -> None:
    await open_page(homeserver, browser, "deactivate")
    answer = await browser.http.post(f"{ACCOUNT}deactivate", data={"sure": "yes", "password": PASSWORD})
    assert answer.status_code == 403 and await is_active(homeserver)


async def test_a_deactivation_without_a_password_needs_a_new_log_in(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "deactivate")
    await homeserver.write(store_password_hash, ALICE, None)
    page = await browser.open(f"{ACCOUNT}deactivate")
    assert not page.tree.xpath("//input[@id='password']")
    await trio.sleep(1800)
    assert (await browser.send(page, sure="yes")).heading == "Is it you?"
    assert await homeserver.read(lambda tx: tx.values("SELECT deactivated_ms FROM users")) == [None]


async def test_accounts_that_are_suspended_can_be_deactivated(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "deactivate")
    await homeserver.write(authenticate.store_account_flags, ALICE, AccountFlags(is_suspended=True))
    await browser.send(page, sure="yes", password=PASSWORD)
    assert not await is_active(homeserver)


async def test_accounts_that_are_locked_cannot_be_deactivated(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "deactivate")
    await homeserver.write(authenticate.store_account_flags, ALICE, AccountFlags(is_locked=True))
    assert (await browser.send(page, sure="yes", password=PASSWORD)).heading == "Your account is locked"
    await homeserver.write(authenticate.store_account_flags, ALICE, AccountFlags())
    assert await is_active(homeserver)


async def test_a_person_approves_a_reset_of_cross_signing(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "?action=org.matrix.cross_signing_reset")
    assert not await homeserver.read(is_reset_approved, ALICE)
    page = await browser.send(page, "cross_signing_reset")
    assert "within the next ten minutes" in page.text
    assert await homeserver.read(is_reset_approved, ALICE)
    await trio.sleep(11 * 60)
    assert not await homeserver.read(is_reset_approved, ALICE)


async def test_a_reset_of_cross_signing_asks_again_if_the_log_in_is_old(homeserver: Server, browser: Browser) -> None:
    page = await open_page(homeserver, browser, "cross_signing_reset")
    await trio.sleep(1800)
    assert (await browser.open(f"{ACCOUNT}cross_signing_reset")).heading == "Is it you?"
    asked = await browser.send(page, "cross_signing_reset")
    assert asked.heading == "Is it you?" and not await homeserver.read(is_reset_approved, ALICE)
    page = await browser.send(asked, "confirm", password=PASSWORD)
    assert page.heading == "Reset your digital identity?"


async def test_a_reset_of_cross_signing_is_nothing_that_another_site_can_approve(
    homeserver: Server, browser: Browser
) -> None:
    await open_page(homeserver, browser, "cross_signing_reset")
    assert (await browser.http.post(f"{ACCOUNT}cross_signing_reset", data={})).status_code == 403
    assert not await homeserver.read(is_reset_approved, ALICE)
