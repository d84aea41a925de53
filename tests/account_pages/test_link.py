"""Logging in a device that has no browser: the code is typed, what asks is shown, and a person decides."""

from __future__ import annotations

import pytest
import trio

from homeserver.config import RateLimitsSection
from tests.support.browser import ACCOUNT, Browser, PageShown
from tests.support.homeservers import PASSWORD, Homeservers, Server
from tests.support.oauth import DEVICE, DEVICE_CODE, TOKEN, App, post_form, refused, register_app, scope_of

SCRIPT = "<script>alert(1)</script><b onclick=alert(1)>"


async def begin(server: Server, **metadata: str) -> tuple[App, dict[str, str]]:
    """A television that shows a code."""
    app = await register_app(server, client_name="Television", **metadata)
    fields = {"client_id": app.client_id, "scope": scope_of("TV")}
    return app, (await post_form(server, DEVICE, **fields)).json()


async def poll(server: Server, app: App, codes: dict[str, str]) -> tuple[int, str]:
    fields = {"grant_type": DEVICE_CODE, "device_code": codes["device_code"], "client_id": app.client_id}
    answer = await post_form(server, TOKEN, **fields)
    return answer.status_code, answer.json().get("error", answer.json().get("access_token", ""))


async def open_link(server: Server, browser: Browser, path: str = "link") -> PageShown:
    await server.register("alice")
    page = await browser.open(f"{ACCOUNT}{path}")
    return await browser.send(page, username="alice", password=PASSWORD)


@pytest.mark.parametrize("decision", ["allow", "refuse"])
async def test_a_person_decides_about_a_device(homeserver: Server, browser: Browser, decision: str) -> None:
    app, codes = await begin(homeserver)
    page = await open_link(homeserver, browser)
    typed = codes["user_code"].lower().replace("-", " ")
    page = await browser.send(page, "link", user_code=typed)
    assert page.heading == "Log in Television on another device?"
    for shown in ("example.com", "192.0.2.7", "TV", "@alice:test.example"):
        assert shown in page.text
    page = await browser.send(page, "link/decide", decision=decision)
    assert ("is being logged in" in page.text) == (decision == "allow")
    status, told = await poll(homeserver, app, codes)
    assert (status, told.startswith("hsat_")) == (200, True) if decision == "allow" else (400, False)


async def test_the_page_asks_even_if_the_code_is_in_the_link(homeserver: Server, browser: Browser) -> None:
    """Somebody else may have sent the link."""
    app, codes = await begin(homeserver)
    page = await open_link(homeserver, browser, f"link?user_code={codes['user_code']}")
    assert page.tree.xpath("//input[@id='user_code']/@value") == [codes["user_code"]]
    assert "Check that the other device shows the same code." in page.text
    page = await browser.send(page, "link")
    assert page.heading.startswith("Log in Television")
    assert await poll(homeserver, app, codes) == (400, "authorization_pending")


async def test_wrong_codes_are_refused_and_few(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    browser = Browser(server.app, server.name)
    page = await browser.send(await open_link(server, browser), "link", user_code="")
    assert page.problems == ["Enter the code that the other device shows."]
    for _ in range(30):
        page = await browser.send(page, "link", user_code="BCDF-GHJK")
        assert page.status in (404, 429)
        if page.status == 429:
            break
    assert page.status == 429 and page.problems[0].startswith("Too many attempts.")


async def test_a_code_is_decided_about_once(homeserver: Server, browser: Browser) -> None:
    app, codes = await begin(homeserver)
    page = await open_link(homeserver, browser)
    confirm = await browser.send(page, "link", user_code=codes["user_code"])
    await browser.send(confirm, "link/decide", decision="refuse")
    page = await browser.send(confirm, "link/decide", decision="allow")
    assert page.status == 404 and page.problems
    assert await poll(homeserver, app, codes) == (400, "access_denied")


async def test_a_code_expires_while_the_page_is_open(homeserver: Server, browser: Browser) -> None:
    _, codes = await begin(homeserver)
    page = await open_link(homeserver, browser)
    confirm = await browser.send(page, "link", user_code=codes["user_code"])
    await trio.sleep(3600)
    page = await browser.send(confirm, "link/decide", decision="allow")
    assert page.status == 404 and "expired" in page.problems[0]


async def test_a_device_is_not_approved_by_another_site(homeserver: Server, browser: Browser) -> None:
    app, codes = await begin(homeserver)
    await open_link(homeserver, browser)
    data = {"user_code": codes["user_code"], "decision": "allow"}
    assert (await browser.http.post(f"{ACCOUNT}link/decide", data=data)).status_code == 403
    assert await poll(homeserver, app, codes) == (400, "authorization_pending")


async def test_names_and_programs_of_devices_are_shown_as_text(homeserver: Server, browser: Browser) -> None:
    app = await register_app(homeserver, client_name=SCRIPT)
    form = f"client_id={app.client_id}&scope=urn:matrix:client:api:*%20urn:matrix:client:device:%3Cscript%3E"
    headers = {"user-agent": SCRIPT, "content-type": "application/x-www-form-urlencoded"}
    codes = (await homeserver.anonymous.post(DEVICE, content=form.encode(), headers=headers)).json()
    page = await open_link(homeserver, browser)
    page = await browser.send(page, "link", user_code=codes["user_code"])  # examined: nothing of it is markup
    assert page.text.count(SCRIPT) >= 2
    page = await browser.send(await browser.open(f"{ACCOUNT}link?user_code={SCRIPT}"), "link")
    assert page.status == 404


async def test_refusals_reach_the_device_that_waits(homeserver: Server, browser: Browser) -> None:
    app, codes = await begin(homeserver)
    page = await browser.send(await open_link(homeserver, browser), "link", user_code=codes["user_code"])
    await browser.send(page, "link/decide", decision="anything else")
    fields = {"grant_type": DEVICE_CODE, "device_code": codes["device_code"], "client_id": app.client_id}
    assert await refused(homeserver, TOKEN, **fields) == (400, "access_denied")
