"""A server that dies by itself is one report, with the end of its log, and the tests that follow have it again."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from tests.end_to_end.conftest import bury, shorten
from tests.end_to_end.programs import Failed, Homeserver

pytestmark = pytest.mark.sockets


def make_report(outcome: str = "passed") -> Any:
    return SimpleNamespace(outcome=outcome, failed=outcome == "failed", longrepr="as it was", sections=[])


def die(server: Homeserver) -> None:
    """Ends the server unexpectedly."""
    assert server.process is not None
    with server.log.open("a") as log:
        log.write("its last words\n")
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()


def test_a_server_that_died_fails_the_test_and_is_restarted(montague: Homeserver) -> None:
    die(montague)
    for attempt in (lambda: montague.call("GET", "joined_rooms"), montague.stop):
        with pytest.raises(Failed, match=r"(?s)ended by itself with -9.*its last words"):
            attempt()
    report = make_report()
    bury(report, {"montague": montague})
    assert report.outcome == "failed"
    assert "montague died" in report.longrepr and report.longrepr.endswith("its last words\n")
    assert montague.register("benvolio")
    report = make_report("failed")
    bury(report, {"montague": montague})
    assert report.longrepr == "as it was"
    assert [title for title, _ in report.sections] == ["montague said"]


def test_a_server_that_fails_to_start_says_why_once() -> None:
    error = Failed("the port is taken")
    first, second = make_report("failed"), make_report("failed")
    shorten(first, error)
    shorten(second, error)
    assert first.longrepr == "as it was"
    assert "earlier report" in second.longrepr
