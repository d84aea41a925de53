"""The virtual clock: an hour passes at once when there is nothing to do in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.abc import Clock, Instrument
from trio.testing import MockClock

HOUR_S = 3600


def run_under_virtual_clock(
    test: Callable[[], Any], clock: Clock | None = None, instruments: Sequence[Instrument] = ()
) -> Any:
    """As trio.run; the time jumps to the next deadline whenever there is nothing to do."""
    return trio.run(test, clock=clock or MockClock(autojump_threshold=0), instruments=instruments)


async def let_days_pass(days: float) -> None:
    """Lets days pass an hour at a time: what a server does every minute is done once an hour.

    `trio.sleep` would do it every minute, which takes a third of a second for each day and server.
    """
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, MockClock)
    end = trio.current_time() + days * 24 * HOUR_S
    while (rest := end - trio.current_time()) > HOUR_S:
        clock.jump(HOUR_S - 1)
        await trio.sleep(1)  # until there is nothing to do any more
    await trio.sleep(rest)


@pytest.fixture
def virtual_clock() -> None:
    """Makes a test run under the virtual clock, as does every fixture that uses this one: see `tests/conftest.py`."""
