"""The pages about devices: what they show of hostile names, and what they log out."""

from __future__ import annotations

from urllib.parse import quote

import pytest
import trio

from tests.support.browser import ACCOUNT, Browser
from tests.support.homeservers import PASSWORD, Server

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'}}{{7*7}}"
HALF_AN_HOUR_S = 1800


async def test_devices_are_listed_with_name_and_last_use(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice", initial_device_display_name="Phone", device_id="PHONE")
    laptop = await homeserver.log_in("alice", initial_device_display_name="Laptop", device_id="LAPTOP")
    await laptop.get("account/whoami")
    await trio.sleep(2 * 3600)
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}devices")
    assert "Laptop Last seen 2 hours ago from 192.0.2.7" in page.text
    page = await browser.open(f"{ACCOUNT}devices/view?device_id=PHONE")
    assert page.heading == "Phone" and "14 November 2023" in page.text


async def test_a_device_is_logged_out(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice", device_id="PHONE")
    other = await homeserver.log_in("alice", device_id="OTHER")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}?action=org.matrix.device_delete&device_id=OTHER")
    assert page.heading == "Log out OTHER?"
    page = await browser.send(page, "devices/delete")
    assert "The device has been logged out." in page.text and "OTHER" not in page.text
    assert await other.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_logging_a_device_out_asks_again_if_the_log_in_is_old(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice", device_id="PHONE")
    await browser.log_in("alice", PASSWORD)
    form = await browser.open(f"{ACCOUNT}devices/delete?device_id=PHONE")
    await trio.sleep(HALF_AN_HOUR_S)
    page = await browser.send(form, "devices/delete")
    assert page.heading == "Is it you?"
    await alice.ok("GET", "account/whoami")
    wrong = await browser.send(page, password="wrong")
    assert wrong.problems == ["The username or the password is wrong."]
    page = await browser.send(wrong, password=PASSWORD)
    assert page.heading == "Log out PHONE?"
    await browser.send(page, "devices/delete")
    assert await alice.refused("GET", "account/whoami") == (401, "M_UNKNOWN_TOKEN")


async def test_nobody_logs_out_the_device_of_another_user(homeserver: Server, browser: Browser) -> None:
    bob = await homeserver.register("bob", device_id="BOBS")
    await homeserver.register("alice", device_id="ALICES")
    await browser.log_in("alice", PASSWORD)
    assert (await browser.open(f"{ACCOUNT}devices/delete?device_id=BOBS")).status == 404
    page = await browser.open(f"{ACCOUNT}devices/delete?device_id=ALICES")
    data = {**dict(page.form().form_values()), "device_id": "BOBS"}
    await browser.http.post(f"{ACCOUNT}devices/delete", data=data)
    await bob.ok("GET", "account/whoami")


async def test_a_device_is_renamed(homeserver: Server, browser: Browser) -> None:
    alice = await homeserver.register("alice", device_id="PHONE")
    await browser.log_in("alice", PASSWORD)
    page = await browser.send(await browser.open(f"{ACCOUNT}devices/view?device_id=PHONE"), name="  My  phone ")
    assert "My phone" in page.text
    assert (await alice.ok("GET", "devices/PHONE"))["display_name"] == "My phone"
    page = await browser.send(await browser.open(f"{ACCOUNT}devices/view?device_id=PHONE"), name="x" * 256)
    assert (page.status, page.problems) == (400, ["A name may have at most 255 characters."])


async def test_names_of_devices_are_shown_as_text(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice", device_id='A"><script>', initial_device_display_name=SCRIPT)
    await browser.log_in("alice", PASSWORD)
    for path in (
        "devices",
        f"devices/view?device_id={quote('A><script>')}",
        "devices/view?device_id=A%22%3E%3Cscript%3E",
    ):
        page = await browser.open(f"{ACCOUNT}{path}")  # examined: nothing of it is markup
        assert page.status in (200, 404)
    assert SCRIPT in page.text


@pytest.mark.parametrize(
    ("action", "path"),
    [
        ("org.matrix.profile", "profile"),
        ("org.matrix.devices_list", "devices"),
        ("org.matrix.device_view", "devices/view?device_id=A%2FB"),
        ("org.matrix.device_delete", "devices/delete?device_id=A%2FB"),
        ("org.matrix.account_deactivate", "deactivate"),
        ("org.matrix.cross_signing_reset", "cross_signing_reset"),
        ("org.matrix.session_end", "devices/delete?device_id=A%2FB"),
        ("session_view", "devices/view?device_id=A%2FB"),
        ("sessions_list", "devices"),
    ],
)
async def test_deep_links_of_clients_lead_to_their_page(
    homeserver: Server, browser: Browser, action: str, path: str
) -> None:
    await homeserver.register("alice", device_id="A/B")
    page = await browser.open(f"{ACCOUNT}?action={action}&device_id=A%2FB")  # through the log-in page
    await browser.send(page, username="alice", password=PASSWORD)
    answer = await browser.http.get(f"{ACCOUNT}?action={action}&device_id=A%2FB")
    assert (answer.status_code, answer.headers["location"]) == (303, ACCOUNT + path)


@pytest.mark.parametrize(
    "query", ["action=unknown", "action=org.matrix.device_delete", "action=org.matrix.device_view"]
)
async def test_deep_links_without_a_target_lead_to_a_list(homeserver: Server, browser: Browser, query: str) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}?{query}")
    assert page.heading in ("alice", "Devices")
