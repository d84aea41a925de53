"""Back-off: how long a destination that fails is left alone. Pure values; time is an argument.

Theory of operation

- A destination without a `BackOff` may be asked at any time. Its first failure gives it one.
- Each failure after the delay has passed doubles the delay, up to RETRY_MS_MAX. A failure during the delay changes
  nothing but `tried_ms`. Hence within one outage neither the delay nor the moment of the next attempt ever shrinks.
- Any sign of life ends it: the holder discards the value.
- The delay depends on both names, so that a server which comes back is not asked by all others in the same second.
"""

from __future__ import annotations

import zlib

import msgspec
from msgspec.structs import replace

from homeserver import limits


class BackOff(msgspec.Struct, frozen=True):
    """The state of a destination that does not answer.

    failures: consecutive ones. since_ms: when the first of them was. retry_after_ms: when it may be asked again in the
    background. tried_ms: when it was last asked anything.
    """

    failures: int
    since_ms: int
    retry_after_ms: int
    tried_ms: int = 0

    def is_over(self, now_ms: int) -> bool:
        """Returns whether the back-off has ended. It never lasts longer than its delay, even if the clock changed."""
        delay_ms_max = 2 * min(limits.peers.RETRY_MS << min(self.failures, 20), limits.peers.RETRY_MS_MAX)
        return not now_ms < self.retry_after_ms <= now_ms + delay_ms_max


def after_failure(before: BackOff | None, own: str, destination: str, now_ms: int) -> BackOff:
    """Returns the back-off of a destination that has just failed. `own`: the name by which this server asks it."""
    if before is None:
        return BackOff(1, now_ms, now_ms + retry_delay_ms(own, destination, 0), now_ms)
    if before.is_over(now_ms):
        retry_after_ms = now_ms + retry_delay_ms(own, destination, before.failures)
        return BackOff(before.failures + 1, before.since_ms, retry_after_ms, now_ms)
    return replace(before, tried_ms=now_ms)


def retry_delay_ms(own: str, destination: str, failures: int) -> int:
    """Returns the delay after `failures` earlier failures: doubling, and different between each two servers."""
    delay_ms = min(limits.peers.RETRY_MS << min(failures, 20), limits.peers.RETRY_MS_MAX)
    jitter = zlib.crc32(f"{own} {destination} {delay_ms}".encode()) % 1000
    return delay_ms * (800 + jitter * 400 // 1000) // 1000
