"""Lock files pin everything, with hashes, and name no place to download from."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.tidy.source import ROOT

LOCK_NAMES = (
    "requirements.lock",
    "tests/requirements.lock",
    "tests/interop/requirements-nio.lock",
    "tests/interop/requirements-playwright.lock",
    "tests/interop/requirements-synapse.lock",
)
LOCKS = {name: (ROOT / name).read_text() for name in LOCK_NAMES}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HASH = r"    --hash=sha256:[0-9a-f]{64}(?: \\)?\n"
# Name, version and hashes; there may be an extra after the name, and a marker after the version.
PINNED = re.compile(rf"^([a-z0-9-]+)(?:\[[a-z,]+\])?==([^\s;]+)(?: ; [^\\]+)? \\\n((?:{HASH})+)", re.MULTILINE)


def pins(lock: str) -> set[tuple[str, str, str]]:
    """Name, version and hashes of every package in a lock file."""
    return set(PINNED.findall(LOCKS[lock]))


def names(lock: str) -> set[str]:
    return {name for name, _, _ in pins(lock)}


def required(*extras: str) -> set[str]:
    """The names of what pyproject.toml requires, with these extras."""
    wanted = [*PROJECT["dependencies"], *(each for extra in extras for each in PROJECT["optional-dependencies"][extra])]
    return {re.split(r"[\[<>=;~! ]", each)[0].lower() for each in wanted}


def test_requirements_for_running_and_building_are_pinned() -> None:
    assert required("build") <= names("requirements.lock")


def test_requirements_for_testing_are_pinned() -> None:
    assert required("build", "test") <= names("tests/requirements.lock")


def test_test_tools_are_not_installed_for_running() -> None:
    assert (required("test") - required()) & names("requirements.lock") == set()


def test_tests_use_the_same_versions_as_production() -> None:
    assert pins("requirements.lock") <= pins("tests/requirements.lock")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_has_hashes(lock: str) -> None:
    assert len(PINNED.findall(LOCKS[lock])) == len(re.findall("^[a-z0-9]", LOCKS[lock], re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS)
def test_the_lock_names_no_index(lock: str) -> None:
    assert "://" not in LOCKS[lock]
    assert "\n-" not in LOCKS[lock]


@pytest.mark.parametrize("folder", ["element", "js_sdk", "js_sdk_oauth"])
def test_the_node_lock_pins_by_hash_and_names_no_index(folder: str) -> None:
    text = (ROOT / "tests/interop" / folder / "package-lock.json").read_text()
    assert "://" not in text
    lock = json.loads(text)
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages)
