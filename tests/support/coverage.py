"""Coverage of the protocol in the one run of all tests: only the examples in `tests/federation` are watched.

Watching makes Python several times slower, and most tests never call the protocol directly. Properties are not watched
either: what holds the protocol to its requirements has to be visible in the examples.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from typing import Any

import pytest

from homeserver import federation

WATCHED = "tests/federation/"


class CoverageOfProtocol:
    """Starts and stops the measurement of pytest-cov, whose plugin is `cov`."""

    def __init__(self, cov: Any) -> None:
        self._cov = cov
        self._is_on = True

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self) -> None:
        """Executes the modules of the protocol while they are watched. pytest-cov has started before this."""
        for module in pkgutil.walk_packages(federation.__path__, f"{federation.__name__}."):
            import_module(module.name)
        self._switch(False)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Watches this test if it is an example."""
        is_property = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        self._switch(item.nodeid.startswith(WATCHED) and not is_property)
        return (yield)

    def _switch(self, on: bool) -> None:
        if on != self._is_on:
            self._is_on = on
            controller = self._cov.cov_controller
            if on:
                controller.resume()
            else:
                controller.pause()
