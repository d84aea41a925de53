"""Makes the virtual environment that holds Synapse, as `requirements-synapse.lock` says, if it is not there already.

Synapse never shares an environment with us: it is another program, under another licence, with its own dependencies.
To move to another Synapse, change requirements-synapse.in and run in this folder: uv pip compile --universal
--python-version 3.11 --generate-hashes --no-header --no-annotate requirements-synapse.in -o requirements-synapse.lock
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.support.environments import ensure_environment

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]


def synapse_venv() -> Path:
    """Where it is: SYNAPSE_VENV, else `.venv-synapse` in the repository."""
    return Path(os.environ.get("SYNAPSE_VENV", REPOSITORY / ".venv-synapse")).absolute()


def ensure_synapse() -> Path:
    """The environment's Python. An environment that SYNAPSE_VENV names is taken as it is, if it is there."""
    folder = synapse_venv()
    python = folder / "bin" / "python"
    if "SYNAPSE_VENV" in os.environ and python.exists():
        print(f"Synapse: using {folder}")
        return python
    return ensure_environment("Synapse", folder, HERE / "requirements-synapse.lock")
