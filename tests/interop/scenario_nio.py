"""The client library of bots and of people who write Python: how it encrypts, across two servers."""

from __future__ import annotations

import json

from tests.interop.clients import Client
from tests.interop.programs import describe, run
from tests.interop.servers import Server
from tests.interop.setup import MATRIX_NIO, nio_venv

Sides = tuple[Server, Server]


def assert_matrix_nio_encrypts(here: Server, there: Server) -> None:
    """Plays matrix_nio/encryption.py, which checks that every message is read by those it is for, and nobody else."""
    people = (Client(here, "alice"), Client(there, "bob"), Client(there, "carol"))
    plan = json.dumps({"people": describe(*people)})
    run([str(nio_venv() / "bin" / "python"), str(MATRIX_NIO / "encryption.py"), plan])


def test_encryption_with_matrix_nio(organisations: Sides) -> None:
    assert_matrix_nio_encrypts(*organisations)


def test_encryption_with_matrix_nio_and_synapse(sides: Sides) -> None:
    assert_matrix_nio_encrypts(*sides)
