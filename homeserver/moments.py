"""Moments: stored wall time, which may have been written or may now be read by a wrong clock.

A machine's clock may jump forward and back: a flat battery, a wrong time server, a restored snapshot. All decisions
about stored moments are made here, so that nothing takes longer than its usual span once the clock is right again:
- `is_recent`: something happened less than a span ago. A moment in the future was noted by a wrong clock, and is not.
- `is_ahead`: a deadline is still to come. One further ahead than deadlines are ever set was set by a wrong clock, and
  has passed.

`tests/tidy/test_moments.py` lists every column that holds a moment, and which of these reads it.
"""

from __future__ import annotations

from homeserver.limits import CLOCK_SKEW_MS


def is_recent(moment_ms: int, now_ms: int, span_ms: int) -> bool:
    """Returns whether the moment is less than `span_ms` ago. Clocks of several nodes may differ a little."""
    return -CLOCK_SKEW_MS <= now_ms - moment_ms < span_ms


def is_ahead(deadline_ms: int, now_ms: int, span_ms_max: int) -> bool:
    """Returns whether a deadline, which is set at most `span_ms_max` ahead, is still in the future."""
    return now_ms < deadline_ms <= latest(now_ms, span_ms_max)


def latest(now_ms: int, span_ms_max: int) -> int:
    """Returns the latest deadline that a correct clock can have set up to now."""
    return now_ms + span_ms_max + CLOCK_SKEW_MS


def passed(moment_ms: int, now_ms: int) -> int:
    """Returns a moment in the past unchanged. For one in the future returns 0, as if it had never happened."""
    return moment_ms if moment_ms <= now_ms + CLOCK_SKEW_MS else 0
