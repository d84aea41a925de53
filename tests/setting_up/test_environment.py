"""Setting up a checkout: no step is repeated, and every failure ends with a command to run."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from environment import Environment
from install_errors import SetupError, explain


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path, "make demo", uv=False)


def test_a_successful_step_is_not_repeated(environment: Environment) -> None:
    done: list[str] = []
    for fingerprint in ("1", "1", "2"):
        environment.step("run", fingerprint, lambda fingerprint=fingerprint: done.append(fingerprint))
    assert done == ["1", "2"]


def test_a_failed_step_is_repeated_without_those_before_it(environment: Environment) -> None:
    def fail() -> None:
        raise SetupError("The disk is full.", "make demo")

    environment.step("run", "1", lambda: None)
    with pytest.raises(SetupError):
        environment.step("test", "1", fail)
    assert environment.recorded() == {"run": "1"}


@pytest.mark.parametrize("damaged", ["", "{", "[1]", '"run"'])
def test_a_damaged_record_counts_as_missing(environment: Environment, damaged: str) -> None:
    (environment.folder / "made-from").write_text(damaged)
    assert environment.recorded() == {}


def test_if_the_venv_module_is_missing_its_package_is_named(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a bare Debian: everything is there but ensurepip."""
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(SetupError) as failure:
        environment.make()
    assert "cannot create virtual environments" in str(failure.value)
    assert re.search(r"apt-get install -y python3[.\d]*-venv && make demo$", failure.value.command)


CAUSES = {
    "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device": "disk is full",
    "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.": "does not match the hash",
    "NewConnectionError: [Errno -3] Temporary failure in name resolution": "network",
    "error: Failed to fetch: `trio-0.35.0-py3-none-any.whl`\n  Caused by: dns error": "network",
    "ERROR: No matching distribution found for obstore==0.12.1": "compiler",
    "error: command 'gcc' failed\nERROR: Failed building wheel for zstandard": "compiler",
}


@pytest.mark.parametrize("output", CAUSES)
@pytest.mark.parametrize("uv", [False, True])
def test_a_failure_is_explained_with_what_to_run(output: str, uv: bool) -> None:
    error = explain(output, ".venv/install.log", "make demo", Path(".venv/bin/python"), uv=uv)
    sentence = str(error).splitlines()[-1]
    assert CAUSES[output] in sentence
    assert output.splitlines()[-1] in str(error)
    assert ".venv/install.log" in str(error)
    assert "\n" not in error.command and error.command.endswith("make demo")


def test_an_unknown_failure_of_uv_suggests_pip() -> None:
    error = explain("error: unexpected argument '--no-progress'", "log", "make test", Path("python"), uv=True)
    assert error.command == "make test INSTALLER=pip"
