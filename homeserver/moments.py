"""Moments: wall time that was stored, read by a clock that may have been wrong when it was, or is wrong now.

A machine's clock goes forward and back: a flat battery, a wrong time server, a restored snapshot. What is decided by a
stored moment is decided here, so that, once the clock is right again, nothing takes longer than its usual span:
- `is_recent`: something happened less than a span ago. A moment in the future was noted by a wrong clock, and is not.
- `is_ahead`: a deadline is still to come. One further ahead than deadlines are ever set was set by a wrong clock, and
  has passed.

`tests/tidy/test_moments.py` lists every column that holds a moment, and which of these reads it.
"""

from __future__ import annotations

from homeserver.limits import CLOCK_SKEW_MS


def is_recent(moment_ms: int, now_ms: int, span_ms: int) -> bool:
    """Whether the moment is less than `span_ms` ago. Clocks of several nodes may differ a little."""
    return -CLOCK_SKEW_MS <= now_ms - moment_ms < span_ms


def is_ahead(deadline_ms: int, now_ms: int, span_ms_max: int) -> bool:
    """Whether a deadline, which is set no more than `span_ms_max` ahead, is still to come."""
    return now_ms < deadline_ms <= latest(now_ms, span_ms_max)


def latest(now_ms: int, span_ms_max: int) -> int:
    """The latest deadline that a right clock can have set up to now."""
    return now_ms + span_ms_max + CLOCK_SKEW_MS


def passed(moment_ms: int, now_ms: int) -> int:
    """A moment of the past; 0, as if it had never been, for one in the future."""
    return moment_ms if moment_ms <= now_ms + CLOCK_SKEW_MS else 0
