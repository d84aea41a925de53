"""`make interop`: a real Synapse as the other organisation and as the judge of ours, and clients that people use.

Arguments go to pytest.

SYNAPSE_VENV names an environment to use instead of our own; INTEROP_BOTH=synapse lets Synapse play both parts, which
tells mistakes of the scenarios from ours; INTEROP_LOG_LEVEL and INTEROP_SYNAPSE_LOG_LEVEL set how much the servers say;
INTEROP_SCREENSHOTS names a folder for pictures of what Element, the chat page and the account pages show;
DIFFERENTIAL_SEED and DIFFERENTIAL_COUNT (percent) say which and how many comparisons are made.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
NEED_NODE = (
    "scenario_js_sdk.py",
    "scenario_oauth.py",
    "scenario_bot_sdk.py",
    "scenario_appservice_bridge.py",
    "scenario_single_sign_on.py",
)
NEED_AXE = ("scenario_account_pages.py", "scenario_chat_page.py")
sys.path.insert(0, str(REPOSITORY))

from tests.interop.setup import (  # noqa: E402 (found only now)
    ensure_chat_page,
    ensure_element,
    ensure_mautrix,
    ensure_nio,
    ensure_node_packages,
    ensure_synadm,
    ensure_synapse,
)


def main(arguments: list[str]) -> int:
    """Installs what is needed, then runs tests/differential and tests/interop, which `make test` does not."""
    python = ensure_synapse()
    ensure_nio()
    ensure_mautrix()
    ensure_synadm()
    lacking = {
        **dict.fromkeys(NEED_NODE, ensure_node_packages()),
        "scenario_element.py": ensure_element(),
        **dict.fromkeys(NEED_AXE, ensure_chat_page()),
    }
    left_out = {name: why for name, why in lacking.items() if why}
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
    options += [f"--ignore={HERE / name}" for name in left_out]
    where = arguments if chosen else ["tests/differential", "tests/interop", *arguments]
    environment = {**os.environ, "SYNAPSE_VENV": str(python.parents[1])}
    command = [sys.executable, "-m", "pytest", *options, *where]
    status = subprocess.run(command, cwd=REPOSITORY, env=environment).returncode
    for name, why in left_out.items():
        print(f"NOT RUN: {name}. {why}.", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
