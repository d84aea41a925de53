"""What all tests share."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.bytecode import keep_bytecode
from tests.support.clock import run_under_virtual_clock, virtual_clock
from tests.support.coverage import CoverageOfProtocol
from tests.support.database import database_url, postgres_cluster, postgres_url, sqlite_url
from tests.support.engine import drop_databases
from tests.support.temporary import folder_on_disk, keep_in_memory
from tests.support.workers import Workers

__all__ = ["database_url", "folder_on_disk", "postgres_cluster", "postgres_url", "sqlite_url", "virtual_clock"]

# Other processes on the machine must not decide whether a property holds. `--hypothesis-profile=deep` looks at many
# more examples, and at others in each run.
_SHARED: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=20, **_SHARED)
settings.register_profile("deep", max_examples=400, **_SHARED)
settings.load_profile("default")

PASSED_PER_DOT = 25


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds our option."""
    parser.addoption("--workers", type=int, default=1, help="run the tests in so many processes")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Drops the PostgreSQL databases of a test's servers once its fixtures have ended.

    A fixture for all tests would cost each of them a fifth of what an empty test takes.
    """
    drop_databases()


class Progress:
    """Prints a dot only for every few passed tests, so that failures stand out."""

    def __init__(self) -> None:
        self.passed = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: Any) -> tuple[str, str, str] | None:
        """Category, letter and word of a report; None: pytest decides."""
        if report.when != "call" or report.outcome != "passed":
            return None
        self.passed += 1
        return "passed", "" if self.passed % PASSED_PER_DOT else ".", "PASSED"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Every test that uses the fixture `virtual_clock`, itself or through another fixture, runs under that clock."""
    for item in items:
        if "virtual_clock" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trio(run=run_under_virtual_clock))


def pytest_collection_finish() -> None:
    """Leaves what collecting has made out of every garbage collection to come: it stays until the end."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)


def pytest_configure(config: pytest.Config) -> None:
    """Makes the output short, and commits and imports fast."""
    keep_in_memory()
    keep_bytecode(config.rootpath / ".pytest_cache" / "bytecode")
    config.pluginmanager.register(Progress(), "progress")
    cov = config.pluginmanager.get_plugin("_cov")
    if cov is not None:
        config.pluginmanager.register(CoverageOfProtocol(cov), "coverage of the protocol")
    if config.option.workers > 1:
        config.pluginmanager.register(Workers(config.option.workers), "workers")
