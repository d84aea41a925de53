"""`--workers` of the suite: every test runs once, in one of several processes, and what it has to say is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = """
from tests.support.workers import Workers
def pytest_configure(config): config.pluginmanager.register(Workers(2))
"""
TESTS = """
import os, pathlib, time, warnings, pytest
HERE = pathlib.Path(__file__).parent
marks = pytest.mark

def others_work():
    return any(int(line.split()[1]) != os.getpid() for line in (HERE / "passed").read_text().splitlines())

@pytest.fixture(scope="session")
def shared():
    (HERE / f"shared-{os.getpid()}").touch()
    yield
    (HERE / f"shared-{os.getpid()}").unlink()

@pytest.mark.parametrize("number", range(70))
def test_passes(number, shared, tmp_path, capfd):
    print("hello")
    assert capfd.readouterr().out == "hello\\n"
    with (HERE / "passed").open("a") as file:
        file.write(f"{number} {os.getpid()}\\n")
    while number == 0 and not others_work():
        time.sleep(0.01)

def test_fails():
    print("its last words")
    assert 1 == 2

def test_dies():
    os.kill(os.getpid(), 9)

@marks.skip(reason="not today")
def test_is_skipped(): ...

@marks.xfail
def test_is_expected_to_fail():
    assert False

def test_warns():
    warnings.warn("mind the gap")

@pytest.fixture
def broken():
    yield
    raise ValueError("it does not end")

def test_does_not_end(broken): ...
"""


def test_several_workers_report_what_one_would(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(PLUGIN)
    (tmp_path / "test_all.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "-p", "no:cacheprovider", "--rootdir", tmp_path]
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT)
    said = done.stdout
    assert done.returncode == 1, said + done.stderr
    assert re.search(r"2 failed, 72 passed, 1 skipped, 1 xfailed, 1 warning, 1 error in", said), said
    for words in ("its last words", "ended with -9", "assert 1 == 2", "mind the gap", "ValueError: it does not end"):
        assert words in said
    passed = [line.split() for line in (tmp_path / "passed").read_text().splitlines()]
    assert sorted(int(number) for number, _ in passed) == list(range(70))
    assert len(list(tmp_path.glob("shared-*"))) <= 1, "only the worker that was killed leaves anything"
