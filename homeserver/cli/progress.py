"""A progress bar for commands that take long."""

from __future__ import annotations

import sys
import time

_BAR_CHARACTERS = 40


class Bar:
    """A progress bar on standard error, if that is a terminal. unit: what is counted."""

    def __init__(self, unit: str, *, is_shown: bool) -> None:
        self._unit = unit
        self._is_shown = is_shown and sys.stderr.isatty()
        self._has_begun = False
        self._began = time.monotonic()

    def show(self, done: int, of: int) -> None:
        """Shows how much is done."""
        if self._is_shown:
            self._has_begun = True
            share = done / of if of else 1.0
            filled = "#" * int(share * _BAR_CHARACTERS)
            speed = done / max(0.001, time.monotonic() - self._began)
            text = f"[{filled:<{_BAR_CHARACTERS}}] {share:4.0%}  {done} of {of} {self._unit}, {speed:.0f}/s"
            print(f"\r{text}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leaves the line of the bar."""
        if self._has_begun:
            self._has_begun = False
            print(file=sys.stderr)
