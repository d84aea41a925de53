"""The account pages through our own listeners: what the ASGI door of the other tests does not show."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlencode

import httpx
import pytest
import trio
from lxml import html

from homeserver.config import Listener, Public
from homeserver.testing import one_server
from tests.support.browser import ACCOUNT
from tests.support.homeservers import PASSWORD

pytestmark = pytest.mark.sockets

FORM = {"content-type": "application/x-www-form-urlencoded"}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    """A client on a real socket; alice has an account."""
    sections = {"public": Public(base_url="http://127.0.0.1"), "listeners": (Listener(bind="127.0.0.1:0"),)}
    async with one_server(**sections) as hs, trio.open_nursery() as nursery:  # type: ignore[arg-type]
        await hs.register("alice", PASSWORD)
        (bound,) = await nursery.start(hs.serve)
        async with httpx.AsyncClient(base_url=bound.url, verify=False) as client:
            yield client
        hs.stop()


async def token_on(http: httpx.AsyncClient, path: str) -> str:
    """The token in the form of a page."""
    page = html.document_fromstring((await http.get(f"{ACCOUNT}{path}")).text)
    token: str = page.xpath("//input[@name='form_token']/@value")[0]
    return token


async def test_forms_are_read_from_sockets_however_they_are_sent(http: httpx.AsyncClient) -> None:
    form = {"username": "alice", "password": PASSWORD, "form_token": await token_on(http, "login")}

    async def pieces() -> AsyncIterator[bytes]:
        for byte in urlencode(form).encode():
            yield bytes([byte])

    answer = await http.post(f"{ACCOUNT}login", content=pieces(), headers=FORM)
    assert (answer.status_code, answer.headers["location"]) == (303, ACCOUNT)
    assert "alice" in (await http.get(ACCOUNT)).text


async def test_too_large_a_form_is_refused_and_the_answer_arrives(http: httpx.AsyncClient) -> None:
    token = await token_on(http, "login")
    answer = await http.post(f"{ACCOUNT}login", data={"form_token": token, "username": "a" * (1 << 20)})
    assert answer.status_code == 413 and "too large" in answer.text
    assert (await http.get(f"{ACCOUNT}login")).status_code == 200


async def test_pages_are_for_reading_unless_they_have_a_form(http: httpx.AsyncClient) -> None:
    assert (await http.post(ACCOUNT, data={})).status_code == 405
    assert (await http.put(f"{ACCOUNT}login", content=b"x")).status_code == 405
    head = await http.head(f"{ACCOUNT}login")
    assert (head.status_code, head.content) == (200, b"")
