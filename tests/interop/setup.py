"""Makes the virtual environment that holds Synapse, as `requirements-synapse.lock` says, if it is not there already.

Synapse never shares an environment with us: it is another program, under another licence, with its own dependencies.
To move to another Synapse, change requirements-synapse.in and run in this folder: uv pip compile --universal
--python-version 3.11 --generate-hashes --no-header --no-annotate requirements-synapse.in -o requirements-synapse.lock
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements-synapse.lock"
REPOSITORY = HERE.parents[1]


def synapse_venv() -> Path:
    """Where it is: SYNAPSE_VENV, else `.venv-synapse` in the repository."""
    return Path(os.environ.get("SYNAPSE_VENV", REPOSITORY / ".venv-synapse")).absolute()


def fingerprint() -> str:
    """Changes whenever the environment has to be made anew."""
    return hashlib.sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()


def ensure_synapse() -> Path:
    """The environment's Python. An environment that SYNAPSE_VENV names is taken as it is, if it is there."""
    folder = synapse_venv()
    python = folder / "bin" / "python"
    stamp = folder / "made-from"
    if "SYNAPSE_VENV" in os.environ and python.exists():
        print(f"Synapse: using {folder}")
        return python
    if stamp.exists() and stamp.read_text() == fingerprint():
        print(f"Synapse: {folder} is up to date")
        return python
    print(f"Synapse: making {folder} (once; a minute or two)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--require-hashes",
        "-r",
        str(LOCK),
    ]
    subprocess.run(install, check=True, env={**os.environ, "PYTHONPATH": ""})
    stamp.write_text(fingerprint())
    return python


if __name__ == "__main__":
    ensure_synapse()
