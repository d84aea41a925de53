"""The chat page in Chromium: what two people of two servers see and do, and whether everybody can use it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.interop.clients import PASSWORD, Client
from tests.interop.servers import Server
from tests.interop.setup import CHAT_PAGE, axe_source, find_chromium, playwright_venv

TIMEOUT_S = 280


def test_a_conversation_on_the_chat_page(organisations: tuple[Server, Server], tmp_path: Path) -> None:
    people = [Client(server, name) for server, name in zip(organisations, ("romeo", "juliet"), strict=True)]
    screenshots = Path(os.environ.get("INTEROP_SCREENSHOTS", tmp_path))
    print(f"\nscreenshots are in {screenshots}")
    plan = {
        "axe": str(axe_source()),
        "chromium": find_chromium(),
        "people": [
            {"url": each.server.url, "user": each.localpart, "user_id": each.user_id, "password": PASSWORD}
            for each in people
        ],
        "screenshots": str(screenshots),
    }
    command = [str(playwright_venv() / "bin" / "python"), str(CHAT_PAGE / "conversation.py"), json.dumps(plan)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    assert json.loads(ran.stdout.splitlines()[-1])["complaints"] == []
