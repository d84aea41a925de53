"""The page with which apps log in that do not know how. Spec: client-server-api/#login-fallback

What its script does is tried in Chromium, by `make interop`; here is what the server says.
"""

from __future__ import annotations

from urllib.parse import parse_qs, urlsplit

from lxml import html

from homeserver.config import Public, SsoProvider
from tests.support.homeservers import Homeservers, Server

PATH = "/_matrix/static/client/login/"
SSO = SsoProvider(
    id="keycloak", name="Example login", issuer="https://login.example.org", client_id="matrix", client_secret="secret"
)


async def test_the_page_asks_for_name_and_password_and_cannot_be_framed(homeserver: Server) -> None:
    answer = await homeserver.anonymous.get(PATH)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = html.fromstring(answer.text)
    assert page.xpath("//input/@name") == ["username", "password"]
    assert "matrixLogin" in page.xpath("string(//script)")
    policy = answer.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy and "connect-src 'self'" in policy and "script-src 'sha256-" in policy


async def test_providers_lead_back_to_the_page_with_the_parameters_of_the_log_in(homeservers: Homeservers) -> None:
    server = await homeservers.start(sso=[SSO], public=Public(base_url="https://matrix.example.org"))
    answer = await server.anonymous.get(f"{PATH}?device_id=A%22%3E&initial_device_display_name=My+phone&evil=1")
    (link,) = html.fromstring(answer.text).xpath("//div[@class='links']/a")
    assert link.text == "Example login"
    (target,) = parse_qs(urlsplit(link.get("href")).query)["redirectUrl"]
    assert target.startswith(f"https://matrix.example.org{PATH}?")
    assert parse_qs(urlsplit(target).query) == {"device_id": ['A">'], "initial_device_display_name": ["My phone"]}
