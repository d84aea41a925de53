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


def ensure_synapse() -> Path:
    """The environment's Python. An environment that SYNAPSE_VENV names is taken as it is, if it is there."""
    named = os.environ.get("SYNAPSE_VENV")
    if named is not None and (python := Path(named).absolute() / "bin" / "python").exists():
        print(f"Synapse: using {named}")
        return python
    return ensure_environment("Synapse", REPOSITORY / ".venv-synapse", HERE / "requirements-synapse.lock")
