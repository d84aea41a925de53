"""Quiet: tests that damage or take away what is stored begin when nobody is about to read it."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from homeserver.limits import FOLLOWER_REST_SECONDS_MAX


async def until_quiet() -> None:
    """Waits until all who follow the change stream have read what there is. For servers with the real clock."""
    await trio.sleep(4 * FOLLOWER_REST_SECONDS_MAX)  # they rest between two reads
    await wait_all_tasks_blocked(FOLLOWER_REST_SECONDS_MAX / 5)
