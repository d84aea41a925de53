"""Creating an account on the account pages, under the rules of the operation."""

from __future__ import annotations

from homeserver.config import RateLimitsSection, Registration
from homeserver.users.registration_tokens import create_token, list_tokens
from tests.support.browser import ACCOUNT, Browser, PageShown
from tests.support.homeservers import PASSWORD, Homeservers, Server


async def fill_in(browser: Browser, name: str = "alice", password: str = PASSWORD, **fields: str) -> PageShown:
    page = await browser.open(f"{ACCOUNT}register")
    return await browser.send(page, username=name, password=password, **{"repeated": password, **fields})


async def test_a_person_creates_an_account_and_is_logged_in(homeserver: Server, browser: Browser) -> None:
    page = await fill_in(browser, "Alice")
    assert (page.heading, page.path) == ("alice", ACCOUNT)
    await homeserver.log_in("alice")


async def test_a_person_is_led_back_after_creating_an_account(browser: Browser) -> None:
    page = await browser.open(f"{ACCOUNT}password")
    assert f"{ACCOUNT}register?return_to=%2F_homeserver%2Faccount%2Fpassword" in page.links()
    page = await browser.open(f"{ACCOUNT}register?return_to=%2F_homeserver%2Faccount%2Fpassword")
    page = await browser.send(page, username="alice", password=PASSWORD, repeated=PASSWORD)
    assert page.heading == "Change your password"


async def test_names_and_passwords_keep_to_the_rules_of_the_operation(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("bob")
    for fields, said in (
        ({"name": "bob"}, "This username is taken."),
        ({"name": "a b"}, "A username may only contain"),
        ({"name": ""}, "A username may only contain"),
        ({"password": "short"}, "The password must have at least 8 characters."),
        ({"repeated": "other"}, "The two passwords are not the same."),
    ):
        page = await fill_in(browser, **fields)
        assert page.status == 400 and page.problems[0].startswith(said), said
        assert PASSWORD not in page.response.text
    assert await homeserver.anonymous.refused(
        "POST", "login", json={"type": "m.login.password", "user": "alice", "password": PASSWORD}
    ) == (403, "M_FORBIDDEN")


async def test_closed_registration_is_closed_on_the_pages_too(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=False))
    browser = Browser(server.app, server.name)
    login = await browser.open(f"{ACCOUNT}login")
    assert not [link for link in login.links() if "register" in link]
    page = await browser.open(f"{ACCOUNT}register")
    assert page.status == 403 and "Ask them for one" in page.text
    data = {**dict(login.form().form_values()), "username": "alice", "password": PASSWORD, "repeated": PASSWORD}
    assert (await browser.http.post(f"{ACCOUNT}register", data=data)).status_code == 403


async def test_registration_tokens_are_asked_for_and_counted(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, require_token=True))
    await server.write(create_token, "once", 1)
    browser = Browser(server.app, server.name)
    page = await fill_in(browser, token="")
    assert page.problems == ["Enter the registration token that you have been given."]
    page = await fill_in(browser, token="wrong")
    assert (page.status, page.problems) == (401, ["This registration token is not valid."])
    assert (await fill_in(browser, token="once")).heading == "alice"
    assert [each.uses for each in await server.read(list_tokens)] == [1]
    page = await fill_in(Browser(server.app, server.name), "bob", token="once")
    assert page.problems == ["This registration token is not valid."]


async def test_accounts_by_one_address_are_limited_like_those_of_the_operation(homeservers: Homeservers) -> None:
    server = await homeservers.start(rate_limits=RateLimitsSection(enabled=True))
    pages = [await fill_in(Browser(server.app, server.name), f"spam{number}") for number in range(7)]
    assert pages[-1].status == 429 and pages[0].heading == "spam0"
    assert await server.anonymous.refused("POST", "register", json={"username": "x"}) == (429, "M_LIMIT_EXCEEDED")


async def test_a_person_who_is_logged_in_is_asked_which_account_to_use(homeserver: Server, browser: Browser) -> None:
    await homeserver.register("alice")
    await browser.log_in("alice", PASSWORD)
    page = await browser.open(f"{ACCOUNT}register")
    assert "You are logged in as @alice:test.example" in page.text and not page.tree.xpath("//form")
