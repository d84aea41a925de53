"""`make check-lock`: installs tests/requirements.lock with the oldest and the newest pip in temporary folders.

The oldest is that of Debian 12. It does not run on Python 3.12 and newer; there, the pip bundled with Python counts as
the oldest. It downloads everything, and both install from these downloads.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from environment import LOCK_OPTIONS, TEST_LOCK

PIP_OLDEST = Path(__file__).with_name("pip-oldest.lock")


def main() -> int:
    """The program: exits 0 if both versions of pip install the lock file and find it complete."""
    oldest = ["--require-hashes", "-r", str(PIP_OLDEST)] if sys.version_info < (3, 12) else ["pip"]
    with tempfile.TemporaryDirectory(prefix="homeserver-lock-") as folder:
        downloads = Path(folder) / "downloads"
        for name, arguments in (("oldest", oldest), ("newest", ["--upgrade", "pip"])):
            venv.create(Path(folder) / name, with_pip=True, symlinks=True)
            pip = [Path(folder) / name / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
            _run(*pip, "install", "--quiet", *arguments)
            _run(*pip, "--version")
            if not downloads.exists():
                _run(*pip, "download", "--quiet", "--dest", downloads, *LOCK_OPTIONS, "-r", TEST_LOCK)
            _run(
                *pip, "install", "--quiet", "--no-index", "--find-links", downloads, "--no-compile",
                *LOCK_OPTIONS, "-r", TEST_LOCK,
            )  # fmt: skip
            _run(*pip, "check")
    return 0


def _run(*command: str | Path) -> None:
    """Runs a command. Ends the program if the command fails."""
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"This command failed: {' '.join(map(str, command))}")


if __name__ == "__main__":
    sys.exit(main())
