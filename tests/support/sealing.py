"""A master key for tests that open a database without a server."""

from __future__ import annotations

from homeserver.process.sealing import MasterKey, MasterKeys

MASTER_KEYS = MasterKeys(lambda: [MasterKey(bytes(32))], "the tests")
