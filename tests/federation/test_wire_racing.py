"""Races of staggered attempts: when each one starts, and which result wins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from homeserver.federation.wire.racing import Attempt, first_answer, race

STAGGER_S = 1.0


class Runners:
    """Attempts that take some seconds each, and answer with their name, or with None if they fail."""

    def __init__(self) -> None:
        self.starts: dict[str, float] = {}
        self.cancelled: list[str] = []

    def runner(self, name: str, takes_s: float, *, succeeds: bool = True) -> Callable[[], Awaitable[str | None]]:
        return partial(self._run, name, takes_s, succeeds)

    async def _run(self, name: str, takes_s: float, succeeds: bool) -> str | None:
        self.starts[name] = trio.current_time()
        try:
            await trio.sleep(takes_s)
        except trio.Cancelled:
            self.cancelled.append(name)
            raise
        return name if succeeds else None


@pytest.fixture
def runners() -> Runners:
    return Runners()


async def test_a_quick_answer_prevents_further_attempts(runners: Runners, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    assert await first_answer([runners.runner("a", 0.5), runners.runner("b", 0)], STAGGER_S) == "a"
    assert runners.starts == {"a": start}


async def test_a_slow_attempt_is_not_waited_for(runners: Runners, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    assert await first_answer([runners.runner("a", 60), runners.runner("b", 0.5)], STAGGER_S) == "b"
    assert runners.starts == {"a": start, "b": start + STAGGER_S}
    assert runners.cancelled == ["a"]


async def test_after_a_failure_the_next_one_starts_at_once(runners: Runners, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    attempts = [runners.runner("a", 0.25, succeeds=False), runners.runner("b", 0.25)]
    assert await first_answer(attempts, STAGGER_S) == "b"
    assert runners.starts["b"] == start + 0.25


async def test_a_slow_attempt_can_still_win(runners: Runners, autojump_clock: MockClock) -> None:
    assert await first_answer([runners.runner("a", 2), runners.runner("b", 60)], STAGGER_S) == "a"


async def test_all_attempts_may_fail(runners: Runners, autojump_clock: MockClock) -> None:
    nobody: list[Attempt[str | None]] = []
    assert await first_answer(nobody, STAGGER_S) is None
    assert await first_answer([runners.runner("a", 1, succeeds=False)], STAGGER_S) is None


async def test_the_attempts_share_one_deadline(runners: Runners, autojump_clock: MockClock) -> None:
    start = trio.current_time()
    assert await first_answer([runners.runner("a", 60), runners.runner("b", 60)], STAGGER_S, timeout_s=5) is None
    assert trio.current_time() == start + 5


async def test_no_attempt_starts_while_a_result_is_taken(runners: Runners, autojump_clock: MockClock) -> None:
    start = trio.current_time()

    async def accept(name: str | None) -> str | None:
        await trio.sleep(30)
        return name if name == "b" else None

    attempts = [runners.runner(name, 0) for name in ("a", "b", "c")]
    assert await race(attempts, STAGGER_S, accept) == "b"
    assert runners.starts == {"a": start, "b": start + 30}
