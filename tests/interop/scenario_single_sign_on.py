"""A log-in with a real provider of OpenID Connect (oidc-provider), and with its login token into matrix-nio."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import nio
import pytest
import trustme

from tests.interop.servers import OurProgram, Ports, Server, free_port
from tests.interop.setup import OPENID_PROVIDER, openid_provider_folder

CLIENT = "http://127.0.0.1:1/client"


class SingleSignOnProgram(OurProgram):
    """Our server with a provider in its configuration."""

    def __init__(self, provider_port: int) -> None:
        self._port = provider_port

    def prepare(self, folder: Path, server_name: str, ports: Ports) -> None:
        super().prepare(folder, server_name, ports)
        with (folder / "homeserver.toml").open("a") as config:
            config.write(f"""
[[sso]]
id = "interop"
name = "Interop ID"
issuer = "http://127.0.0.1:{self._port}"
client_id = "matrix"
client_secret = "a secret: 100%"
""")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Our server, and a provider that knows it."""
    port = free_port()
    server = Server(SingleSignOnProgram(port), tmp_path / "ours", "localhost", trustme.CA())
    plan = {
        "port": port, "client_id": "matrix", "client_secret": "a secret: 100%",
        "redirect_uri": f"{server.url}/_homeserver/sso/callback",
    }  # fmt: skip
    command = ["node", str(OPENID_PROVIDER / "provider.mjs"), str(openid_provider_folder()), json.dumps(plan)]
    with (tmp_path / "provider.log").open("wb") as log:
        provider = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
    try:
        assert provider.stdout is not None and provider.stdout.readline() == b"ready\n"
        server.start()
        yield server
    finally:
        provider.kill()
        provider.wait()
        server.stop()
        server.relay.close()


def follow(browser: httpx.Client, answer: httpx.Response) -> httpx.Response:
    """Follows redirects, up to a page or the client."""
    while answer.is_redirect and not answer.headers["location"].startswith(CLIENT):
        answer = browser.get(urljoin(str(answer.url), answer.headers["location"]))
    return answer


def submit(browser: httpx.Client, page: httpx.Response, **fields: str) -> httpx.Response:
    """Sends the form of a page with its hidden fields and these, and follows redirects."""
    assert page.status_code == 200, page.text
    action = re.search(r'<form[^>]* action="([^"]*)"', page.text)
    hidden = dict(re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)"', page.text))
    url = urljoin(str(page.url), unescape(action[1])) if action else str(page.url)
    return follow(browser, browser.post(url, data={**hidden, **fields}))


def log_in(server: Server, name: str, username: str = "") -> str:
    """A person logs in at the provider, chooses a username the first time, and agrees. Returns the login token."""
    with httpx.Client(timeout=30) as browser:
        begin = f"{server.url}/_matrix/client/v3/login/sso/redirect/interop?redirectUrl={CLIENT}"
        page = follow(browser, browser.get(begin))
        page = submit(browser, page, login=name, password="any")  # the log-in of the provider
        page = submit(browser, page)  # its consent
        if username:
            assert f'value="{name}"' in page.text and "Choose your username" in page.text
            page = submit(browser, page, username=username)
        assert "gets full access to this account" in page.text
        arrived = submit(browser, page)
        (token,) = parse_qs(urlsplit(arrived.headers["location"]).query)["loginToken"]
        return token


async def use(server: Server, token: str) -> tuple[str, str]:
    """Logs matrix-nio in with the token. Returns the user ID and the display name."""
    client = nio.AsyncClient(server.url)
    try:
        answer = await client.login(token=token)
        assert isinstance(answer, nio.LoginResponse), answer
        profile = await client.get_profile()
        assert isinstance(profile, nio.ProfileGetResponse), profile
        synced = await client.sync(timeout=0)
        assert isinstance(synced, nio.SyncResponse), synced
        return answer.user_id, profile.displayname
    finally:
        await client.close()


def test_people_log_in_with_a_real_provider(server: Server) -> None:
    flows = httpx.get(f"{server.url}/_matrix/client/v3/login").json()["flows"]
    assert flows[0] == {"type": "m.login.sso", "identity_providers": [{"id": "interop", "name": "Interop ID"}]}
    user_id, name = asyncio.run(use(server, log_in(server, "juliet", "juliet.c")))
    assert (user_id, name) == (f"@juliet.c:{server.server_name}", "juliet of the provider")
    assert asyncio.run(use(server, log_in(server, "juliet")))[0] == user_id
    assert asyncio.run(use(server, log_in(server, "romeo", "romeo")))[0] == f"@romeo:{server.server_name}"
