"""Two of our servers, and the client library that Element is built on: what a person does with Element, across both."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import trustme

from tests.interop.clients import PASSWORD, Client
from tests.interop.servers import OurProgram, Server, ServerFailed
from tests.interop.setup import JS_SDK, js_sdk_folder

TIMEOUT_S = 240

# What the SDK's cryptography asks for and the server does not have.
WITHOUT_BACKUP = ["404 GET /_matrix/client/v3/room_keys/version M_NOT_FOUND"]


@pytest.fixture(scope="module")
def organisations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two of our servers."""
    folder, ca = tmp_path_factory.mktemp("js-sdk"), trustme.CA()
    print(f"\nconfigurations, databases and logs are in {folder}")
    servers = (
        Server(OurProgram(), folder / "one", "localhost", ca),
        Server(OurProgram(), folder / "other", "127.0.0.1", ca),
    )
    try:
        for server in servers:
            server.start()
        yield servers
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            with suppress(ServerFailed):  # what is said above matters more
                server.stop()
            server.relay.close()


def run_program(name: str, organisations: tuple[Server, Server], **more: Any) -> list[str]:
    """The lines that a program prints which has two people, of different servers. Fails if the program does."""
    people = [Client(server, name) for server, name in zip(organisations, ("alice", "bob"), strict=True)]
    plan = {
        **more,
        "people": [
            {
                "url": person.server.url,
                "server_name": person.server.server_name,
                "user": person.localpart,
                "password": PASSWORD,
            }
            for person in people
        ],
    }
    command = ["node", str(JS_SDK / name), str(js_sdk_folder()), json.dumps(plan)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"
    return ran.stdout.splitlines()


@pytest.mark.parametrize("encryption", [False, True], ids=["without-encryption", "with-encryption"])
def test_a_conversation_with_matrix_js_sdk(organisations: tuple[Server, Server], encryption: bool) -> None:
    lines = run_program("conversation.mjs", organisations, encryption=encryption)
    refused = json.loads(lines[-1])["refused"]
    assert refused == (WITHOUT_BACKUP if encryption else [])


def test_an_encrypted_conversation_with_matrix_js_sdk(organisations: tuple[Server, Server]) -> None:
    run_program("secrets.mjs", organisations)
