"""Element Web in Chromium: what people see and do, across two servers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.interop.clients import PASSWORD, Client
from tests.interop.servers import Server
from tests.interop.setup import ELEMENT, element_site, find_chromium, playwright_venv

TIMEOUT_S = 280

# What is refused whenever Element is used: it asks for a key backup before there is one, and whether the server leaves
# logging in to another program.
ALWAYS = {
    "404 GET /_matrix/client/v3/room_keys/version",
    "404 GET /_matrix/client/unstable/org.matrix.msc2965/auth_issuer",
}
# It asks for the members of a room of another server before the user has accepted the invite, and does without them.
BEFORE_JOINING = {"403 GET /_matrix/client/v3/rooms/…/members"}
BEFORE_JOINING_SYNAPSE = {"404 GET /_matrix/client/v3/rooms/…/members"}
# It tries to look into a room before it joins, and asks whether an alias is free.
PUBLIC_ROOMS = {"403 GET /_matrix/client/v3/rooms/…/initialSync", "404 GET /_matrix/client/v3/directory/room/…"}
# It asks for a device that has received keys meanwhile, in two versions, and for keys before they are in the backup.
NEW_DEVICE = {
    "404 GET /_matrix/client/unstable/org.matrix.msc2697.v2/dehydrated_device",
    "404 GET /_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device",
    "404 GET /_matrix/client/v3/room_keys/keys/…/…",
}

Sides = tuple[Server, Server]


def run_program(program: str, here: Server, there: Server, tmp_path: Path) -> set[str]:
    """Runs a program of element/ to its end, with a user of each server. Returns what the servers refused."""
    people = [Client(here, "alice"), Client(there, "bob")]
    screenshots = Path(os.environ.get("INTEROP_SCREENSHOTS", tmp_path))
    print(f"\nscreenshots are in {screenshots}")
    plan = {
        "chromium": find_chromium(),
        "people": [
            {"url": each.server.url, "user": each.localpart, "user_id": each.user_id, "password": PASSWORD}
            for each in people
        ],
        "screenshots": str(screenshots),
        "site": str(element_site()),
    }
    command = [str(playwright_venv() / "bin" / "python"), str(ELEMENT / program), json.dumps(plan)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return set(json.loads(ran.stdout.splitlines()[-1])["refused"])


def test_an_encrypted_conversation_with_element(organisations: Sides, tmp_path: Path) -> None:
    assert run_program("conversation.py", *organisations, tmp_path) <= ALWAYS | BEFORE_JOINING


def test_an_encrypted_conversation_with_element_and_synapse(sides: Sides, tmp_path: Path) -> None:
    expected = ALWAYS | BEFORE_JOINING | BEFORE_JOINING_SYNAPSE
    assert run_program("conversation.py", *sides, tmp_path) <= expected


def test_public_rooms_search_upgrades_and_spaces_with_element(organisations: Sides, tmp_path: Path) -> None:
    assert run_program("rooms.py", *organisations, tmp_path) <= ALWAYS | PUBLIC_ROOMS


def test_a_key_backup_with_element(organisations: Sides, tmp_path: Path) -> None:
    assert run_program("backup.py", *organisations, tmp_path) <= ALWAYS | BEFORE_JOINING | NEW_DEVICE
