"""Logs and metrics."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from homeserver.config import Log
from homeserver.log import set_up_logging
from homeserver.process.metrics import Metrics


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = (root.handlers[:], root.level)
    yield
    root.handlers[:], root.level = before
    logging.getLogger("homeserver").setLevel(logging.NOTSET)


def entry(config: Log) -> str:
    stream = io.StringIO()
    set_up_logging(config, stream)
    log = logging.getLogger("homeserver.test")
    log.debug("not told")
    try:
        raise ValueError("why")
    except ValueError:
        log.warning("destination unreachable", extra={"destination": "a\n.example", "tries": 3}, exc_info=True)
    return stream.getvalue()


@pytest.mark.usefixtures("restored_logging")
def test_json_logs_have_one_object_per_line() -> None:
    (line,) = entry(Log(format="json")).splitlines()
    told = json.loads(line)
    assert told["level"] == "warning"
    assert told["logger"] == "homeserver.test"
    assert told["message"] == "destination unreachable"
    assert (told["destination"], told["tries"]) == ("a\n.example", 3)
    assert "ValueError: why" in told["traceback"]
    assert told["ts"].endswith("Z")


@pytest.mark.usefixtures("restored_logging")
def test_control_characters_in_logged_values_are_escaped() -> None:
    first, *rest = entry(Log()).splitlines()
    assert first.endswith(r"warning homeserver.test: destination unreachable destination='a\n.example' tries=3")
    assert rest[-1] == "ValueError: why"


def test_metrics_are_in_the_prometheus_format() -> None:
    metrics = Metrics()
    metrics.describe("events_total", "Events.")
    metrics.count("events_total", (("type", 'a"b\\'),))
    metrics.count("events_total", (("type", "c"),), 1.5)
    metrics.count("bare_total")
    metrics.gauge("rooms", lambda: 7, "Rooms.")
    assert metrics.text() == (
        "# TYPE bare_total counter\nbare_total 1\n"
        '# HELP events_total Events.\n# TYPE events_total counter\nevents_total{type="a\\"b\\\\"} 1\n'
        'events_total{type="c"} 1.5\n'
        "# HELP rooms Rooms.\n# TYPE rooms gauge\nrooms 7\n"
    )
