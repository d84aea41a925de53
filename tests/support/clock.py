"""The virtual clock: an hour passes at once when there is nothing to do in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.abc import Clock, Instrument
from trio.testing import MockClock


def run_under_virtual_clock(
    test: Callable[[], Any], clock: Clock | None = None, instruments: Sequence[Instrument] = ()
) -> Any:
    """As trio.run; the time jumps to the next deadline whenever there is nothing to do."""
    return trio.run(test, clock=clock or MockClock(autojump_threshold=0), instruments=instruments)


@pytest.fixture
def virtual_clock() -> None:
    """Makes a test run under the virtual clock, as does every fixture that uses this one: see `tests/conftest.py`."""
