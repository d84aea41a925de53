"""Workers: work that would hold up the event loop. Threads for what releases the GIL, a process for what may be hostile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class WorkerFailed(Exception):
    """The separate process ran out of memory or time, or died."""


class Workers:
    """`run`: a bounded number of threads. `run_process`: one separate process with limits, started when first needed."""

    def __init__(self, threads: int = 2) -> None:
        self._limiter = trio.CapacityLimiter(threads)

    async def run(self, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """fn(*args) in a thread; waits while all are busy."""
        return await trio.to_thread.run_sync(fn, *args, limiter=self._limiter)

    async def run_process(self, function: str, *args: Any, timeout_s: float = 20.0) -> Any:
        """Calls `function` ("package.module:name") with picklable `args` in a separate process. WorkerFailed if it dies."""

    async def aclose(self) -> None:
        """Ends the separate process."""
