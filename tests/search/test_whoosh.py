"""Whoosh was written for older Pythons. Users do not see what newer ones say about its code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_importing_whoosh_says_nothing_even_if_it_has_to_be_compiled(tmp_path: Path) -> None:
    program = "import homeserver.search.service as s; s.Stemmers()"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program],
        capture_output=True, text=True, env=environment, timeout=60, check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


def test_a_server_does_not_import_whoosh() -> None:
    program = "import sys, homeserver.server, homeserver.cli; print([name for name in sys.modules if 'whoosh' in name])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
