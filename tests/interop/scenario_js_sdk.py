"""The client library that Element is built on: what people do with Element, and how it encrypts, across two servers."""

from __future__ import annotations

import pytest

from tests.interop.clients import Client
from tests.interop.programs import run_js_sdk
from tests.interop.servers import Server

# The SDK asks for a key backup before there is one, and for keys in it before they are uploaded.
NO_BACKUP = "404 GET /_matrix/client/v3/room_keys/version M_NOT_FOUND"
NO_KEY_IN_BACKUP = "404 GET /_matrix/client/v3/room_keys/keys/… M_NOT_FOUND"
# It sends the password only after it was asked for it.
PASSWORD_WANTED = "401 POST /_matrix/client/v3/keys/device_signing/upload"
FORGOTTEN = "400 POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync M_UNKNOWN_POS"
# What a server answers to a client that waits for news when it is stopped.
STOPPED = "503 POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync M_UNKNOWN"

# What a delayed event that was cancelled answers to a restart, and a rendezvous that was closed.
CANCELLED = "404 POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/… M_NOT_FOUND"
CLOSED = "404 GET /_matrix/client/unstable/org.matrix.msc4108/rendezvous/… M_NOT_FOUND"

Sides = tuple[Server, Server]


@pytest.mark.parametrize("encryption", [False, True], ids=["without-encryption", "with-encryption"])
def test_a_conversation_with_matrix_js_sdk(organisations: Sides, encryption: bool) -> None:
    here, there = organisations
    refused = run_js_sdk("conversation.mjs", Client(here, "alice"), Client(there, "bob"), encryption=encryption)
    assert refused == ({NO_BACKUP} if encryption else set())


def assert_matrix_js_sdk_encrypts(here: Server, there: Server) -> None:
    """Plays encryption.mjs, which checks that every message is read by the devices it is for, and by no others."""
    refused = run_js_sdk("encryption.mjs", Client(here, "alice"), Client(there, "bob"), Client(there, "carol"))
    assert refused <= {NO_BACKUP, NO_KEY_IN_BACKUP, PASSWORD_WANTED}


def test_encryption_with_matrix_js_sdk(organisations: Sides) -> None:
    assert_matrix_js_sdk_encrypts(*organisations)


def test_encryption_with_matrix_js_sdk_and_synapse(sides: Sides) -> None:
    assert_matrix_js_sdk_encrypts(*sides)


def test_sliding_sync_with_matrix_js_sdk(organisations: Sides) -> None:
    """Restarts both servers and loses answers on their way: nothing is lost, and nothing comes twice."""
    here, there = organisations

    def restart(wish: dict[str, int]) -> None:
        organisations[wish["restart"]].stop()
        organisations[wish["restart"]].start()

    refused = run_js_sdk("sliding.mjs", Client(here, "alice"), Client(there, "bob"), grant=restart)
    assert refused <= {NO_BACKUP, STOPPED}


def test_sliding_sync_with_matrix_js_sdk_and_synapse(sides: Sides) -> None:
    here, there = sides
    refused = run_js_sdk("sliding.mjs", Client(here, "alice"), Client(there, "bob"), brief=True)
    # Alice's client changes its lists while it waits. Synapse sometimes forgets the connection for that.
    assert refused <= ({NO_BACKUP, FORGOTTEN} if here.kind == "Synapse" else {NO_BACKUP})


def test_calls_with_matrix_js_sdk(organisations: Sides) -> None:
    """Delayed events, MatrixRTC between two servers with a member who disappears, and the rendezvous for log-in."""
    here, there = organisations
    assert run_js_sdk("calls.mjs", Client(here, "alice"), Client(there, "bob")) <= {CANCELLED, CLOSED, NO_BACKUP}
