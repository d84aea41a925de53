"""Virtual environments of programs that are not ours: made once, from a lock file, and made anew when it changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path


def ensure_environment(name: str, folder: Path, lock: Path) -> Path:
    """The Python of the environment in `folder`, which holds what `lock` says. `name` is what it is for."""
    python = folder / "bin" / "python"
    stamp = folder / "made-from"
    fingerprint = hashlib.sha256(lock.read_bytes() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == fingerprint:
        print(f"{name}: {folder} is up to date")
        return python
    print(f"{name}: making {folder} (once; a minute or two)", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    venv.create(folder, with_pip=True, symlinks=True)
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(lock)]
    subprocess.run([str(python), *install], check=True, env={**os.environ, "PYTHONPATH": ""})
    stamp.write_text(fingerprint)
    return python
