"""The client library that Element is built on: what people do with Element, and how it encrypts, across two servers."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.interop.clients import PASSWORD, Client
from tests.interop.servers import Server
from tests.interop.setup import JS_SDK, js_sdk_folder

TIMEOUT_S = 240

# The SDK asks for a key backup before there is one, and for keys in it before they are uploaded.
NO_BACKUP = "404 GET /_matrix/client/v3/room_keys/version M_NOT_FOUND"
NO_KEY_IN_BACKUP = "404 GET /_matrix/client/v3/room_keys/keys/… M_NOT_FOUND"
# It sends the password only after it was asked for it.
PASSWORD_WANTED = "401 POST /_matrix/client/v3/keys/device_signing/upload"

Sides = tuple[Server, Server]


def run_program(program: str, *people: Client, **plan: bool) -> set[str]:
    """Runs a program of js_sdk/ to its end. Returns what the servers refused."""
    described = [
        {
            "url": person.server.url,
            "server_name": person.server.server_name,
            "user": person.localpart,
            "password": PASSWORD,
        }
        for person in people
    ]
    command = ["node", str(JS_SDK / program), str(js_sdk_folder()), json.dumps({**plan, "people": described})]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return set(json.loads(ran.stdout.splitlines()[-1])["refused"])


@pytest.mark.parametrize("encryption", [False, True], ids=["without-encryption", "with-encryption"])
def test_a_conversation_with_matrix_js_sdk(organisations: Sides, encryption: bool) -> None:
    here, there = organisations
    refused = run_program("conversation.mjs", Client(here, "alice"), Client(there, "bob"), encryption=encryption)
    assert refused == ({NO_BACKUP} if encryption else set())


def assert_matrix_js_sdk_encrypts(here: Server, there: Server) -> None:
    """Plays encryption.mjs, which checks that every message is read by the devices it is for, and by no others."""
    refused = run_program("encryption.mjs", Client(here, "alice"), Client(there, "bob"), Client(there, "carol"))
    assert refused <= {NO_BACKUP, NO_KEY_IN_BACKUP, PASSWORD_WANTED}


def test_encryption_with_matrix_js_sdk(organisations: Sides) -> None:
    assert_matrix_js_sdk_encrypts(*organisations)


def test_encryption_with_matrix_js_sdk_and_synapse(sides: Sides) -> None:
    assert_matrix_js_sdk_encrypts(*sides)
