"""Installs what the scenarios run besides our server, unless it is installed: Synapse, and the libraries of clients.

Synapse never shares an environment with us: it is another program, under another licence, with its own dependencies.
matrix-nio has an environment of its own here because its cryptography (vodozemac) is compiled for some platforms only.
matrix-js-sdk, on which Element is built, and matrix-bot-sdk need Node; without Node, their scenarios are left out and
the run says so.

To move to another Synapse or matrix-nio, change its requirements-….in and run in this folder, for example:

    uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate
    requirements-synapse.in -o requirements-synapse.lock

To move to another matrix-js-sdk or matrix-bot-sdk, change package.json in js_sdk/ or bot_sdk/ and run there:

    npm install --package-lock-only --omit-lockfile-registry-resolved

Then remove the "funding" entries, which contain addresses.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(REPOSITORY / ".ci"))

from environment import ensure_environment  # noqa: E402 (found only now)

JS_SDK = HERE / "js_sdk"
BOT_SDK = HERE / "bot_sdk"
MATRIX_NIO = HERE / "matrix_nio"
NODE_MAJOR_MIN = 20


def synapse_venv() -> Path:
    """Returns the environment's folder: SYNAPSE_VENV, or `.venv-synapse` in the repository."""
    return Path(os.environ.get("SYNAPSE_VENV", REPOSITORY / ".venv-synapse")).absolute()


def ensure_synapse() -> Path:
    """The environment's Python. An environment that SYNAPSE_VENV names is taken as it is, if it is there."""
    folder = synapse_venv()
    python = folder / "bin" / "python"
    if "SYNAPSE_VENV" in os.environ and python.exists():
        print(f"Synapse: using {folder}")
        return python
    return ensure_environment("Synapse", folder, HERE / "requirements-synapse.lock", "make interop")


def nio_venv() -> Path:
    """Returns the folder of matrix-nio's environment: `.venv-nio` in the repository."""
    return REPOSITORY / ".venv-nio"


def ensure_nio() -> Path:
    """Returns the Python that has matrix-nio with its cryptography, and makes its environment if necessary."""
    return ensure_environment("matrix-nio", nio_venv(), HERE / "requirements-nio.lock", "make interop")


def js_sdk_folder() -> Path:
    """Returns the folder of matrix-js-sdk: `.node-js-sdk` in the repository."""
    return REPOSITORY / ".node-js-sdk"


def bot_sdk_folder() -> Path:
    """Returns the folder of matrix-bot-sdk: `.node-bot-sdk` in the repository."""
    return REPOSITORY / ".node-bot-sdk"


def ensure_node_packages() -> str:
    """Puts matrix-js-sdk and matrix-bot-sdk into their folders. Returns why that is not possible, "" if it is done."""
    lacking = _lacking_for_node()
    if not lacking:
        _ensure_node_folder("matrix-js-sdk", JS_SDK, js_sdk_folder())
        _ensure_node_folder("matrix-bot-sdk", BOT_SDK, bot_sdk_folder())
    return lacking


def _ensure_node_folder(name: str, source: Path, folder: Path) -> None:
    """Installs what the package-lock.json in `source` lists, unless it is installed. No scripts of packages run."""
    stamp = folder / "made-from"
    fingerprint = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == fingerprint:
        print(f"{name}: {folder} is up to date")
        return
    print(f"{name}: making {folder} (once)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in ("package.json", "package-lock.json"):
        shutil.copy(source / file, folder)
    install = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"]
    subprocess.run(install, cwd=folder, check=True)
    stamp.write_text(fingerprint)


def _lacking_for_node() -> str:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return f"Node.js {NODE_MAJOR_MIN} or newer with npm is not on this machine (Debian: apt-get install nodejs npm)"
    version = subprocess.run(["node", "--version"], check=True, capture_output=True, text=True).stdout.strip()
    if int(version.removeprefix("v").partition(".")[0]) < NODE_MAJOR_MIN:
        return f"Node.js {NODE_MAJOR_MIN} or newer is needed, and there is {version}"
    return ""
