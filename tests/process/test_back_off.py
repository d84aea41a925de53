"""How long a destination that fails is left alone."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from homeserver import limits
from homeserver.process.back_off import after_failure, retry_delay_ms


@given(st.lists(st.integers(0, 10_000_000), min_size=2, max_size=40), st.text(max_size=8))
def test_back_off_never_shrinks_within_an_outage(pauses_ms: list[int], destination: str) -> None:
    back_off, now_ms = None, 0
    before_ms = delay_before_ms = 0
    for pause_ms in pauses_ms:
        now_ms += pause_ms
        is_new = back_off is None or back_off.is_over(now_ms)
        back_off = after_failure(back_off, "a.example", destination, now_ms)
        assert back_off.retry_after_ms >= before_ms
        if is_new:
            assert back_off.retry_after_ms - now_ms >= delay_before_ms
            delay_before_ms = back_off.retry_after_ms - now_ms
        before_ms = back_off.retry_after_ms
        assert back_off.since_ms == pauses_ms[0]


@given(st.text(max_size=20))
def test_delays_are_bounded(destination: str) -> None:
    delays_ms = [retry_delay_ms("a.example", destination, failures) for failures in range(40)]
    assert delays_ms == sorted(delays_ms)
    assert delays_ms[0] < 3_000
    assert delays_ms[-1] <= 1.2 * limits.peers.RETRY_MS_MAX
