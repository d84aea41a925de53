"""Captcha, terms, and the fallback pages of stages. Spec: client-server-api/#google-recaptcha, #fallback"""

from __future__ import annotations

import json
import re
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
import trio

from homeserver.config import Registration
from homeserver.users.registration_tokens import create_token
from tests.support.federation import Federation, until
from tests.support.homeservers import PASSWORD, Homeservers, Server
from tests.support.mail_server import MailServer, link_in
from tests.support.openid_provider import text_of

URL = "https://captcha.example/siteverify"
ADDRESS = "alice@mail.example"
EMAIL = "m.login.email.identity"
DONE = 'window.opener.postMessage("authDone", "*");'


@dataclass(slots=True)
class Captcha:
    """A service that checks captchas. `solved` is the only right response; `answer` replaces what it says."""

    solved: str = "solved"
    answer: tuple[int, bytes] | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    is_silent: bool = False

    async def app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        form = dict(parse_qsl((await receive())["body"].decode()))
        self.asked.append(form)
        if self.is_silent:
            await trio.sleep_forever()
        right = form == {"secret": "private", "response": self.solved}
        status, body = self.answer or (200, json.dumps({"success": right}).encode())
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def captcha(federation: Federation) -> Captcha:
    service = Captcha()
    federation.network.join("captcha.example", service.app)
    return service


async def start(federation: Federation, **settings: Any) -> Server:
    keys = {"recaptcha_public_key": "public", "recaptcha_private_key": "private", "recaptcha_verify_url": URL}
    return await federation.start("a.example", registration=Registration(enabled=True, **{**keys, **settings}))


async def register(server: Server, **auth: Any) -> Any:
    return await server.anonymous.post("register", json={"username": "alice", "password": PASSWORD, "auth": auth})


async def post(server: Server, stage: str, session: str, **form: str) -> Any:
    """Sends the form of a fallback page."""
    headers = {"content-type": "application/x-www-form-urlencoded"}
    path = f"auth/{stage}/fallback/web?{urlencode({'session': session})}"
    return await server.anonymous.request("POST", path, headers=headers, content=urlencode(form).encode())


async def show(server: Server, stage: str, session: str) -> Any:
    return await server.anonymous.get(f"auth/{stage}/fallback/web?{urlencode({'session': session})}")


async def test_a_registration_needs_a_solved_captcha(federation: Federation, captcha: Captcha) -> None:
    server = await start(federation)
    asked = (await register(server)).json()
    assert asked["flows"] == [{"stages": ["m.login.recaptcha"]}]
    assert asked["params"] == {"m.login.recaptcha": {"public_key": "public"}}
    for response in ("wrong", "", "x" * 8001):
        answer = await register(server, type="m.login.recaptcha", response=response, session=asked["session"])
        assert (answer.status_code, answer.json()["errcode"]) == (401, "M_UNAUTHORIZED")
    assert (await register(server, type="m.login.dummy", session=asked["session"])).status_code == 401
    answer = await register(server, type="m.login.recaptcha", response="solved", session=asked["session"])
    assert (answer.status_code, answer.json()["user_id"]) == (200, "@alice:a.example")


@pytest.mark.parametrize(
    "answer", [(500, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"success": "yes"}'), (200, b" " * 99999)]
)
async def test_a_captcha_that_cannot_be_checked_lets_nobody_in(
    federation: Federation, captcha: Captcha, answer: tuple[int, bytes]
) -> None:
    server = await start(federation)
    captcha.answer = answer
    refused = await register(server, type="m.login.recaptcha", response="solved")
    assert (refused.status_code, refused.json()["errcode"]) == (502, "M_UNKNOWN")


async def test_a_silent_captcha_service_is_given_up(federation: Federation, captcha: Captcha) -> None:
    server = await start(federation)
    captcha.is_silent = True
    assert (await register(server, type="m.login.recaptcha", response="solved")).status_code == 502
    federation.network.leave("captcha.example")
    assert (await register(server, type="m.login.recaptcha", response="solved")).status_code == 502


async def test_terms_have_to_be_accepted(federation: Federation) -> None:
    settings = {"recaptcha_public_key": "", "recaptcha_private_key": "", "terms_url": "https://a.example/terms"}
    server = await start(federation, require_token=True, **settings)
    await server.write(create_token, "letmein")
    asked = (await register(server)).json()
    assert asked["flows"] == [{"stages": ["m.login.registration_token", "m.login.terms"]}]
    document = {"version": "1", "en": {"name": "Terms of service", "url": "https://a.example/terms"}}
    assert asked["params"] == {"m.login.terms": {"policies": {"terms_of_service": document}}}
    session = asked["session"]
    assert (
        await register(server, type="m.login.registration_token", token="letmein", session=session)
    ).status_code == 401
    assert (await register(server, type="m.login.terms", session=session)).status_code == 200


# --- fallback pages ---


async def test_every_stage_of_a_registration_can_be_completed_in_a_browser(
    federation: Federation, captcha: Captcha
) -> None:
    server = await start(federation, require_token=True, terms_url="https://a.example/terms?a&b")
    await server.write(create_token, "letmein")
    session = (await register(server)).json()["session"]
    assert "Registration token" in text_of(await show(server, "m.login.registration_token", session))
    wrong = await post(server, "m.login.registration_token", session, token="guessed")
    assert "This registration token is not valid." in text_of(wrong) and DONE not in wrong.text
    assert DONE in (await post(server, "m.login.registration_token", session, token="letmein")).text
    page = await show(server, "m.login.recaptcha", session)
    assert 'data-sitekey="public"' in page.text
    assert "script-src https://www.recaptcha.net" in page.headers["content-security-policy"]
    assert DONE not in (await post(server, "m.login.recaptcha", session)).text
    assert DONE in (await post(server, "m.login.recaptcha", session, **{"g-recaptcha-response": "solved"})).text
    assert 'href="https://a.example/terms?a&amp;b"' in (await show(server, "m.login.terms", session)).text
    assert (await register(server, session=session)).status_code == 401
    assert DONE in (await post(server, "m.login.terms", session)).text
    assert DONE in (await show(server, "m.login.terms", session)).text
    assert (await register(server, session=session)).status_code == 200
    assert (await post(server, "m.login.terms", session)).status_code == 400


async def test_a_password_can_be_given_in_a_browser(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    body = {"devices": [alice.device_id]}
    session = (await alice.post("delete_devices", json=body)).json()["session"]
    assert f"Password of {alice.user_id}" in text_of(await show(homeserver, "m.login.password", session))
    assert "wrong" in text_of(await post(homeserver, "m.login.password", session, password="guessed"))
    assert DONE in (await post(homeserver, "m.login.password", session, password=PASSWORD)).text
    await alice.ok("POST", "delete_devices", json={**body, "auth": {"session": session}})


async def test_an_email_address_can_be_confirmed_in_a_browser(homeservers: Homeservers) -> None:
    with MailServer() as mail:
        server = await homeservers.start(email=mail.settings())
        session = (await server.anonymous.post("register", json={"username": "alice"})).json()["session"]
        assert "Email address" in text_of(await show(server, EMAIL, session))
        assert "not an email address" in text_of(await post(server, EMAIL, session, email="nonsense"))
        page = await post(server, EMAIL, session, email=ADDRESS)
        hidden = dict(re.findall(r'type="hidden" name="([^"]*)" value="([^"]*)"', page.text))
        early = await post(server, EMAIL, session, **hidden)
        assert "not validated yet" in text_of(early) and DONE not in early.text
        assert "not validated yet" in text_of(await post(server, EMAIL, session, sid=hidden["sid"], client_secret="x"))
        await until(partial(has_mail, mail))
        path, query = link_in(mail.to(ADDRESS)[0])
        assert (await server.http.post(path, params=query)).status_code == 200
        assert DONE in (await post(server, EMAIL, session, **hidden)).text
        body = {"username": "alice", "password": PASSWORD, "auth": {"session": session}}
        alice = server.with_token((await server.anonymous.ok("POST", "register", json=body))["access_token"])
        assert [each["address"] for each in (await alice.ok("GET", "account/3pid"))["threepids"]] == [ADDRESS]


async def has_mail(mail: MailServer) -> bool:
    return bool(mail.to(ADDRESS))


async def test_a_session_without_a_user_has_no_page_for_a_password(homeserver: Server) -> None:
    session = (await homeserver.anonymous.post("register", json={"username": "bob"})).json()["session"]
    assert (await show(homeserver, "m.login.password", session)).status_code == 400
    assert (await post(homeserver, "m.login.password", session, password=PASSWORD)).status_code == 400
    assert DONE in (await post(homeserver, "m.login.dummy", session)).text


async def test_stages_that_this_server_does_not_have_have_no_page(homeserver: Server) -> None:
    session = (await homeserver.anonymous.post("register", json={"username": "bob"})).json()["session"]
    for stage in ("m.login.sso", "m.login.recaptcha", "m.login.terms", "m.login.registration_token", "nonsense"):
        path = f"auth/{stage}/fallback/web?session={session}"
        assert await homeserver.anonymous.refused("GET", path) == (404, "M_NOT_FOUND")


async def test_a_guessed_session_has_no_page(homeserver: Server) -> None:
    assert "Please start again" in text_of(await show(homeserver, "m.login.dummy", "guessed"))
    assert (await post(homeserver, "m.login.dummy", "guessed")).status_code == 400
