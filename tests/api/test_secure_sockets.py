"""WebSockets over TLS, on a real listener."""

from __future__ import annotations

import ssl
from pathlib import Path

import trio

from homeserver.authenticate import create_tokens
from homeserver.config import FederationSection, Listener
from homeserver.federation.identifiers import UserID
from homeserver.server import Homeserver
from homeserver.socket_client import open_socket_client
from homeserver.testing import config_for_tests


async def test_a_client_is_told_of_messages_over_tls(
    tls_files: tuple[str, str, ssl.SSLContext], tmp_path: Path
) -> None:
    cert, key, context = tls_files
    listener = Listener(bind="127.0.0.1:0", tls_cert=cert, tls_key=key)
    federation = FederationSection(enabled=False)
    config = config_for_tests("test.example", tmp_path, listeners=(listener,), federation=federation)
    async with Homeserver(config, inline_database=True) as homeserver, trio.open_nursery() as nursery:
        bound = await nursery.start(homeserver.serve)
        alice = await homeserver.register("alice")
        room_id = await alice.create_room()
        tokens = await homeserver.resources.database.write(create_tokens, UserID("@alice:test.example"), "LAPTOP")
        url = f"https://{bound[0].address}"
        with trio.fail_after(30):
            async with open_socket_client(url, tokens.access_token, ssl_context=context) as client:
                events = client.events()
                while (await anext(events)).room_id != room_id:
                    pass
                long = "tea " * 10_000  # more than one record of TLS
                await client.send(room_id, long)
                event = await anext(events)
                while event.type != "m.room.message":
                    event = await anext(events)
                assert event.body == long
                assert client.connections == 1
        nursery.cancel_scope.cancel()
