"""The client library of bots and of people who write Python: how it encrypts, across two servers."""

from __future__ import annotations

import json
import subprocess

from tests.interop.clients import PASSWORD, Client
from tests.interop.servers import Server
from tests.interop.setup import MATRIX_NIO, nio_venv

TIMEOUT_S = 240

Sides = tuple[Server, Server]


def assert_matrix_nio_encrypts(here: Server, there: Server) -> None:
    """Plays matrix_nio/encryption.py, which checks that every message is read by those it is for, and nobody else."""
    people = (Client(here, "alice"), Client(there, "bob"), Client(there, "carol"))
    described = [{"url": each.server.url, "user": each.localpart, "password": PASSWORD} for each in people]
    program = [str(nio_venv() / "bin" / "python"), str(MATRIX_NIO / "encryption.py"), json.dumps({"people": described})]
    ran = subprocess.run(program, capture_output=True, text=True, timeout=TIMEOUT_S)
    print(ran.stdout)
    assert ran.returncode == 0, f"{ran.stdout[-4000:]}\n{ran.stderr[-4000:]}"


def test_encryption_with_matrix_nio(organisations: Sides) -> None:
    assert_matrix_nio_encrypts(*organisations)


def test_encryption_with_matrix_nio_and_synapse(sides: Sides) -> None:
    assert_matrix_nio_encrypts(*sides)
