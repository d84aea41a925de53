"""`make interop`: a real Synapse as the other organisation and as the judge of ours; several client libraries.

Arguments go to pytest.

SYNAPSE_VENV names an environment to use instead of our own; INTEROP_BOTH=synapse lets Synapse play both parts, which
tells mistakes of the scenarios from ours; INTEROP_LOG_LEVEL and INTEROP_SYNAPSE_LOG_LEVEL set how much the servers say;
DIFFERENTIAL_SEED and DIFFERENTIAL_COUNT (percent) which and how many comparisons are made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NEED_NODE = ("scenario_js_sdk.py", "scenario_bot_sdk.py")
sys.path.insert(0, str(REPOSITORY))

from tests.interop.setup import ensure_nio, ensure_node_packages, ensure_synapse  # noqa: E402 (found only now)


def main(arguments: list[str]) -> int:
    """Installs what is needed, then runs tests/differential and tests/interop, which `make test` does not."""
    python = ensure_synapse()
    ensure_nio()
    lacking = ensure_node_packages()
    chosen = [argument for argument in arguments if not argument.startswith("-")]
    options = [
        "-o",
        "python_files=differ_*.py scenario_*.py",
        "-vv",
        "-s",
        "--tb=short",
        "--durations=10",
        "--timeout=300",
    ]
    if lacking:
        options += [f"--ignore={HERE / name}" for name in NEED_NODE]
    where = arguments if chosen else ["tests/differential", "tests/interop", *arguments]
    environment = {**os.environ, "SYNAPSE_VENV": str(python.parents[1])}
    command = [sys.executable, "-m", "pytest", *options, *where]
    status = subprocess.run(command, cwd=REPOSITORY, env=environment).returncode
    if lacking:
        print(f"NOT RUN: {', '.join(NEED_NODE)}. {lacking}.", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
