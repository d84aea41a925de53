"""Lock files pin everything, with hashes, and name no place to download from."""

from __future__ import annotations

import json
import re
import tomllib

from tests.tidy.source import ROOT

LOCK = (ROOT / "requirements.lock").read_text()
PINNED = re.compile(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==[^\s;]+(?: ; [^\\]+)? \\\n    --hash=sha256:", re.MULTILINE)


def test_everything_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [each for extra in project["optional-dependencies"].values() for each in extra]
    names = {re.split(r"[\[<>=;~! ]", each)[0].lower() for each in wanted}
    assert names <= set(PINNED.findall(LOCK))


def test_every_pin_has_hashes() -> None:
    assert len(PINNED.findall(LOCK)) == len(re.findall("^[a-z0-9]", LOCK, re.MULTILINE))


def test_it_names_no_place() -> None:
    assert "://" not in LOCK
    assert "\n-" not in LOCK


def test_that_of_node_pins_by_hash_and_names_no_place() -> None:
    text = (ROOT / "tests/interop/js_sdk/package-lock.json").read_text()
    assert "://" not in text
    lock = json.loads(text)
    packages = [package for name, package in lock["packages"].items() if name]
    assert packages
    assert all(package["integrity"].startswith("sha512-") for package in packages)
