"""What the comparison with Synapse (tests/differential) has found, pinned by value, so that it holds without Synapse too."""

from __future__ import annotations

import pytest

from federation.redaction import redact
from federation.room_versions import ROOM_VERSIONS


@pytest.mark.parametrize("version", ["11", "12"])
def test_redacted_third_party_invite_stays_an_object(version: str) -> None:
    """An event ID depends on it: of a `third_party_invite` without `signed`, the empty object survives."""
    pdu = {"type": "m.room.member", "content": {"membership": "invite", "third_party_invite": {"display_name": "x"}}}
    assert redact(pdu, ROOM_VERSIONS[version])["content"] == {"membership": "invite", "third_party_invite": {}}
    pdu = {"type": "m.room.member", "content": {"membership": "invite", "third_party_invite": "x"}}
    assert redact(pdu, ROOM_VERSIONS[version])["content"] == {"membership": "invite"}
