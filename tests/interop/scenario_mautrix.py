"""The library of bridges and of maubot, which holds every answer to types of its own, across two servers."""

from __future__ import annotations

import json

import pytest

from tests.interop.clients import Client
from tests.interop.programs import describe, run
from tests.interop.servers import Server, bridge_registration
from tests.interop.setup import MAUTRIX, mautrix_venv

Sides = tuple[Server, Server]


def converse(here: Server, there: Server) -> None:
    """Plays mautrix_client/conversation.py."""
    plan = json.dumps({"people": describe(Client(here, "alice"), Client(there, "bob"))})
    run([str(mautrix_venv() / "bin" / "python"), str(MAUTRIX / "conversation.py"), plan])


def test_a_conversation_with_mautrix(organisations: Sides) -> None:
    converse(*organisations)


def test_a_conversation_with_mautrix_and_synapse(sides: Sides) -> None:
    converse(*sides)


@pytest.mark.parametrize("program", ["bridge.py", "encrypted_bridge.py"])
def test_a_bridge_on_mautrix(organisations: Sides, program: str) -> None:
    """Plays a bridge of the first server, and people of both."""
    here, there = organisations
    plan = {
        "people": describe(Client(here, "alice"), Client(there, "bob")),
        "port": here.ports.bridge,
        "registration": bridge_registration(here.ports),
    }
    run([str(mautrix_venv() / "bin" / "python"), str(MAUTRIX / program), json.dumps(plan)])
