"""Collecting for several workers: each imports all tests, which takes long in a checkout whose tests never ran."""

from __future__ import annotations

import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


def import_own_share() -> None:
    """Imports every nth test module in the nth worker, so that no two rewrite and compile the same one.

    Afterwards each worker collects all of them, and finds what the others have compiled.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER", ""), os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")
    if not worker:
        return
    files = sorted(TESTS.glob("*/test_*.py"))
    for path in files[int(worker.removeprefix("gw")) :: int(workers)]:
        with suppress(Exception):  # collecting will find the fault again, and report it
            import_module(f"{TESTS.name}.{path.parent.name}.{path.stem}")
