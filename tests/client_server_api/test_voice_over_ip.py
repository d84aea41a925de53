"""Spec: client-server-api/#voice-over-ip"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from pathlib import Path

from homeserver.config import Turn
from homeserver.testing import now_ms
from tests.support.homeservers import Homeservers

URIS = ("turn:turn.test.example?transport=udp", "turns:turn.test.example")


async def test_credentials_are_what_a_turn_server_expects_that_shares_the_secret(
    homeservers: Homeservers, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("north wind\n")
    server = await homeservers.start(turn=Turn(uris=URIS, shared_secret_file=str(tmp_path / "secret"), lifetime_s=600))
    alice = await server.register("alice")
    told = await alice.ok("GET", "voip/turnServer")
    assert (tuple(told["uris"]), told["ttl"]) == (URIS, 600)
    until, _, user_id = told["username"].partition(":")
    assert (user_id, int(until)) == (alice.user_id, now_ms() // 1000 + 600)
    signature = hmac.digest(b"north wind", told["username"].encode(), hashlib.sha1)
    assert told["password"] == b64encode(signature).decode()
