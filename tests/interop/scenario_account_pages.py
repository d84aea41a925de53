"""The account pages in Chromium, by keyboard alone: apps log in, and a person keeps an account."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme

from tests.interop.clients import PASSWORD, Client
from tests.interop.servers import OurProgram, Ports, Server, ServerFailed
from tests.interop.setup import ACCOUNT_PAGES, axe_source, find_chromium, playwright_venv

TIMEOUT_S = 280


class OpenProgram(OurProgram):
    """Our server, where people may register, at a name by which browsers offer passkeys without TLS."""

    def prepare(self, folder: Path, server_name: str, ports: Ports) -> None:
        super().prepare(folder, server_name, ports)
        config = folder / "homeserver.toml"
        text = config.read_text().replace("[registration]\n", "[registration]\nenabled = true\n")
        text = text.replace(f'base_url = "http://127.0.0.1:{ports.client}"', f'base_url = "{base_url(ports)}"')
        config.write_text(text)


def base_url(ports: Ports) -> str:
    return f"http://localhost:{ports.client}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(OpenProgram(), tmp_path / "server", "localhost", trustme.CA())
    try:
        server.start()
        yield server
        server.stop()
    finally:
        with suppress(ServerFailed):  # what is said above matters more
            server.stop()
        server.relay.close()


def test_account_pages_by_keyboard_on_all_screens(server: Server, tmp_path: Path) -> None:
    person = Client(server, "juliet")
    screenshots = Path(os.environ.get("INTEROP_SCREENSHOTS", tmp_path))
    print(f"\nscreenshots are in {screenshots}")
    plan = {
        "axe": str(axe_source()),
        "chromium": find_chromium(),
        "url": base_url(server.ports),
        "server_name": server.server_name,
        "user": person.localpart,
        "user_id": person.user_id,
        "password": PASSWORD,
        "screenshots": str(screenshots),
    }
    command = [str(playwright_venv() / "bin" / "python"), str(ACCOUNT_PAGES / "journey.py"), json.dumps(plan)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}\n{server.log_tail()}"
    assert json.loads(ran.stdout.splitlines()[-1])["complaints"] == []
