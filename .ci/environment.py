"""Makes the virtual environments of the checkout: `.venv` for us, others for programs that tests and benchmarks run.

`make` runs this file with any Python ≥ 3.11 and nothing installed, so it uses the standard library only.

Theory of operation. A lock file is complete: it lists every package, with hashes. It is installed without resolving
(`--no-deps`), because old versions of pip resolve extras again and then miss hashes; `pip check` afterwards verifies
that nothing is missing. uv installs if the machine has it (INSTALLER=pip prevents that), otherwise pip does.

`.venv` has two levels: "run" is requirements.lock, "test" is tests/requirements.lock, a superset. The file `made-from`
in an environment records a fingerprint for each step that has succeeded, so no step is repeated. If the fingerprint of
the first step is missing or differs, the environment is made from scratch: otherwise packages of an old lock would
stay. After a failure in a later step, the next run resumes there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from install_errors import SetupError, explain, sudo

ROOT = Path(__file__).resolve().parents[1]
RUN_LOCK = ROOT / "requirements.lock"
TEST_LOCK = ROOT / "tests" / "requirements.lock"
LOCK_OPTIONS = ("--no-deps", "--require-hashes")
PIN = re.compile(r"^([\w.-]+)(?:\[[^]]*\])?==", re.MULTILINE)
# Lines of pip and uv that announce another package.
FETCHED = re.compile(r"^(?:Collecting|Downloading) ([\w.-]+)")


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment to be made or completed. `again` is the command to repeat after an error."""

    folder: Path
    again: str
    uv: bool

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def step(self, name: str, fingerprint: str, run: Callable[[], None]) -> None:
        """Runs a step and records it, unless it is recorded already."""
        if self.recorded().get(name) != fingerprint:
            run()
            self._record_file.write_text(json.dumps({**self.recorded(), name: fingerprint}))

    def recorded(self) -> dict[str, str]:
        """The fingerprints of the steps that have succeeded, by name."""
        try:
            record = json.loads(self._record_file.read_text())
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def make(self) -> None:
        """Makes an empty environment, replacing any existing one. Raises SetupError if Python cannot."""
        version = ".".join(map(str, sys.version_info[:3]))
        print(f"Making {_short(self.folder)} with Python {version} …", flush=True)
        if not self.uv and importlib.util.find_spec("ensurepip") is None:
            raise SetupError(
                f"{sys.executable} cannot create virtual environments. On Debian and Ubuntu, install another package.",
                f"{sudo()}apt-get update && {sudo()}apt-get install -y {_venv_package()} && {self.again}",
            )
        shutil.rmtree(self.folder, ignore_errors=True)
        if not self.uv:
            venv.create(self.folder, with_pip=True, symlinks=True)
            return
        command = ["uv", "venv", "--quiet", "--no-project", "--python", sys.executable, str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sentence = f"{done.stderr}uv cannot make {self.folder}. Use pip instead."
            raise SetupError(sentence, f"{self.again} INSTALLER=pip")

    def install_lock(self, lock: Path, *, present: Path | None = None) -> None:
        """Installs what a lock file lists, and verifies that nothing is missing. `present` is installed already."""
        total = len(_names(lock) - (_names(present) if present else set()))
        more = "more " if present else ""
        print(f"Installing {total} {more}packages of {_short(lock)} with {'uv' if self.uv else 'pip'} …", flush=True)
        self._install(*LOCK_OPTIONS, "-r", str(lock), total=total)
        check = ["uv", "pip", "check", "--python", self.python] if self.uv else [self.python, "-m", "pip", "check"]
        done = subprocess.run(check, capture_output=True, text=True, check=False, env=_variables())
        if done.returncode:
            said = f"{done.stdout}{done.stderr}"
            raise SetupError(f"{said}{_short(lock)} is inconsistent and must be generated again.", "make lock")

    def install_checkout(self) -> None:
        """Installs the checkout itself, so that every edit takes effect at once."""
        print(f"Installing {_short(self.folder / 'bin' / 'homeserver')} …", flush=True)
        self._install("--no-deps", "--no-build-isolation", "--editable", str(ROOT), total=1)

    @property
    def _record_file(self) -> Path:
        return self.folder / "made-from"

    def _install(self, *arguments: str, total: int) -> None:
        """Runs the installer and shows its progress. Its output goes to a log in the environment."""
        if self.uv:
            options = ("--no-progress", "--compile-bytecode")  # pip compiles by default
            command = ["uv", "pip", "install", "--python", str(self.python), *options, *arguments]
        else:
            options = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")
            command = [str(self.python), "-m", "pip", "install", *options, *arguments]
        log = self.folder / "install.log"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        with subprocess.Popen(command, **pipes, env=_variables(), cwd=ROOT) as process, log.open("w") as file:
            assert process.stdout is not None
            progress = Progress(total)
            for line in process.stdout:
                file.write(line)
                progress.hear(line)
            progress.end()
        if process.returncode:
            raise explain(log.read_text(), _short(log), self.again, self.python, uv=self.uv)


class Progress:
    """Shows an installer's progress: one changing line on a terminal, otherwise a line for every tenth package."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._fetched = 0
        self._moving = sys.stdout.isatty()

    def hear(self, line: str) -> None:
        """Takes a line of the installer's output."""
        if match := FETCHED.match(line):
            self._fetched += 1
            self._tell(f"{min(self._fetched, self._total)} of {self._total}: {match[1]}", self._fetched % 10 == 0)
        elif line.startswith("Installing collected packages"):
            self._tell(f"unpacking {self._fetched} packages", True)
        elif "Retrying (" in line:
            self._tell("the package index does not answer; trying again", True)
        elif line.startswith(("Prepared ", "Installed ")):  # uv
            self._tell(line.strip().lower(), True)

    def end(self) -> None:
        """Clears the line of progress at the end."""
        if self._moving:
            print(end="\r\033[K", flush=True)

    def _tell(self, text: str, important: bool) -> None:
        if self._total == 1:
            return
        if self._moving:
            print(f"\r  {text}\033[K", end="", flush=True)
        elif important:
            print(f"  {text}", flush=True)


def ensure_checkout(level: str, again: str) -> None:
    """Brings `.venv` to a level, "run" or "test". Raises SetupError."""
    environment = Environment(ROOT / ".venv", again, _has_uv())
    run = _fingerprint(RUN_LOCK)
    if environment.recorded().get("run") != run or not environment.python.exists():
        environment.make()
        environment.step("run", run, lambda: environment.install_lock(RUN_LOCK))
    if level == "test":
        test = _fingerprint(TEST_LOCK)
        environment.step("test", test, lambda: environment.install_lock(TEST_LOCK, present=RUN_LOCK))
    environment.step("checkout", _fingerprint(ROOT / "pyproject.toml"), environment.install_checkout)


def ensure_environment(name: str, folder: Path, lock: Path, again: str) -> Path:
    """Returns the Python of the environment in `folder` with the packages of `lock`, and makes it if necessary.

    `name` says what it is for, `again` is the command to repeat after an error. Exits the program on failure.
    """
    environment = Environment(folder, again, _has_uv())
    fingerprint = _fingerprint(lock)
    if environment.recorded().get("lock") == fingerprint and environment.python.exists():
        print(f"{name}: {_short(folder)} is up to date")
        return environment.python
    print(f"{name}:", flush=True)
    try:
        environment.make()
        environment.step("lock", fingerprint, lambda: environment.install_lock(lock))
    except SetupError as error:
        sys.exit(f"\n{error}\nRun: {error.command}")
    return environment.python


def _names(lock: Path) -> set[str]:
    """Returns the packages of a lock file. A few of them may be for other systems only."""
    return set(PIN.findall(lock.read_text()))


def _fingerprint(file: Path) -> str:
    """Returns a hash that changes with the file and with the Python of the environment."""
    return hashlib.sha256(file.read_bytes() + sys.version.encode() + sys.base_prefix.encode()).hexdigest()


def _has_uv() -> bool:
    if os.environ.get("INSTALLER") == "pip" or shutil.which("uv") is None:
        return False
    # The name may be a shim of a version manager without an installed uv.
    return subprocess.run(["uv", "--version"], capture_output=True, check=False).returncode == 0


def _variables() -> dict[str, str]:
    """Returns our environment variables, without those that mislead installers, and with warnings off."""
    misleading = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if name not in misleading}
    return {**kept, "PIP_USER": "0", "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}


def _venv_package() -> str:
    """Returns Debian's package with the venv module of this Python."""
    default = Path("/usr/bin/python3").resolve() == Path(sys.executable).resolve()
    return "python3-venv" if default else f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"


def _short(path: Path) -> str:
    return os.path.relpath(path, ROOT) if path.is_relative_to(ROOT) else str(path)


def main() -> int:
    """Brings `.venv` to a level. The last line of an error is a command to run."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("level", choices=("run", "test"))
    parser.add_argument("--again", default="make demo", metavar="COMMAND", help="the command to repeat after an error")
    arguments = parser.parse_args()
    try:
        ensure_checkout(arguments.level, arguments.again)
    except SetupError as error:
        print(f"\n{error}\nRun: {error.command}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
