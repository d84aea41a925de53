"""What `make` does, as far as that can be seen without doing it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What the make that runs the tests passes on is not meant for the ones that are run here.
VARIABLES = {
    name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS")
}


def make(*arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**VARIABLES, **variables}
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=check)


def test_make_without_a_goal_shows_help() -> None:
    assert make().stdout == make("help").stdout


def test_help_lists_every_goal() -> None:
    text = (ROOT / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)", text, re.MULTILINE)
    internal = {"help", "venv-test"}
    assert set(re.findall(r"^make ([\w-]+)", make("help").stdout, re.MULTILINE)) == set(phony.split()) - internal


def test_a_full_run_enforces_the_coverage_of_the_protocol() -> None:
    planned = make("--dry-run", "test").stdout
    assert "--cov-fail-under" in planned
    assert "mypy" in planned


def test_a_partial_run_does_not_enforce_coverage() -> None:
    planned = make("--dry-run", "test", "ARGS=tests/tidy/test_lock.py").stdout
    assert "pytest tests/tidy/test_lock.py" in planned
    assert "--cov" not in planned


@pytest.mark.parametrize(("lint", "tests"), [(0, 0), (0, 2), (1, 0), (1, 2)])
def test_a_full_run_fails_if_lint_or_the_tests_fail(tmp_path: Path, lint: int, tests: int) -> None:
    for program, code in (("ruff", 0), ("mypy", lint), ("lint-imports", 0), ("python", tests)):
        (tmp_path / program).write_text(f"#!/bin/sh\necho {program} ran\nexit {code}\n")
        (tmp_path / program).chmod(0o755)
    result = make("test", f"BIN={tmp_path}", "PYTHON=/bin/true", check=False)
    assert (result.returncode == 0) == (lint == tests == 0)
    assert "mypy ran" in result.stdout and "python ran" in result.stdout
    assert ("make lint failed, see above." in result.stdout) == (lint != 0)


@pytest.mark.parametrize(("goal", "level"), [("demo", "run"), ("serve", "run"), ("test", "test"), ("lint", "test")])
def test_only_the_requirements_of_the_goal_are_installed(goal: str, level: str) -> None:
    assert f"environment.py {level} " in make("--dry-run", goal).stdout


@pytest.mark.parametrize("goal", ["demo", "test"])
def test_without_python_the_last_line_says_what_to_run(goal: str, tmp_path: Path) -> None:
    for program in ("bash", "id", "apt-get"):
        (tmp_path / program).symlink_to(f"/bin/{program}" if program != "apt-get" else "/bin/true")
    (tmp_path / "make").symlink_to("/usr/bin/make")
    result = make(goal, check=False, PATH=str(tmp_path))
    assert result.returncode != 0
    needed, command = [line for line in result.stderr.splitlines() if not line.startswith("make:")]
    assert needed == "Python 3.11 or newer with its venv module is needed."
    assert re.fullmatch(
        rf"Run: (sudo )?apt-get update && (sudo )?apt-get install -y python3 python3-venv && make {goal}", command
    )
