"""Processes that are killed at a step: a child gets SIGKILL just before its nth change of the file system."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import count

_CHANGES = frozenset({"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"})


def kill_at_every_step(act: Callable[[], object]) -> Iterator[int]:
    """Runs `act` in a child that is killed at its first step, then in one that is killed at its second, and so on.

    Yields the step after each kill, and ends when a child has finished unharmed.
    """
    for step in count(1):
        if not _is_killed(step, act):
            return
        yield step


def _is_killed(step: int, act: Callable[[], object]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of threads, which have nothing that the child needs
        child = os.fork()
    if child == 0:
        _live(step, act)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0, "the child has failed by itself"
    return False


def _live(step: int, act: Callable[[], object]) -> None:
    left = step

    def watch(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        flags = args[2] if event == "open" and isinstance(args[2], int) else 0
        if event in _CHANGES or flags & (os.O_WRONLY | os.O_RDWR):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    try:
        act()
    except BaseException:  # whatever it is, the child must not go on as a test
        os._exit(1)
    os._exit(0)
