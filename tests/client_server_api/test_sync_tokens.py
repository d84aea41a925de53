"""Tokens of another history, as clients hold them after a restore from a backup. Spec: client-server-api/#syncing

Every server of this file keeps its database in a file, which is copied away and put back while the server is stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from homeserver.config import DatabaseSection
from homeserver.stream import Stream
from tests.support.homeservers import Client, NoWire, Server, config_for_tests, running
from tests.support.people import (
    all_messages,
    ids,
    invite,
    join,
    leave,
    messages,
    path_of,
    public_room,
    room_in,
    say,
    send,
    sync,
    texts,
    timeline,
)


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Server]:
    config = config_for_tests("test.example", folder, database=DatabaseSection(url="sqlite:homeserver.db"))
    async with running(config, wire=NoWire()) as server:
        yield server


def again(server: Server, client: Client) -> Client:
    """The same device, of the server that runs now."""
    return Client(server, client.token, client.user_id, client.device_id)
