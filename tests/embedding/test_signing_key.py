"""The server's identity: made at the first start, and then never again. Spec: server-server-api/#publishing-keys"""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from homeserver.config import ConfigError
from homeserver.server import read_signing_key


def test_the_first_start_makes_a_key_that_only_the_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "signing.key"
    key = read_signing_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == ["signing.key"]
    again = read_signing_key(path)
    assert (again.key_id, again.sign(b"words")) == (key.key_id, key.sign(b"words"))


def test_what_a_power_failure_has_left_of_a_key_is_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "signing.key.new").write_text("ed25519 ab")
    read_signing_key(tmp_path / "signing.key")


@pytest.mark.parametrize("text", ["", "ed25519 a", "ed25519 a !", "rsa a b", "ed25519 a AAAA", "\udcff"])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "signing.key"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"signing_key_file"):
        read_signing_key(path)
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")
