"""What `pip install` brings: one package, `homeserver`, whole, that leaves other people's packages alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("homeserver", "federation", "search")

# Run by the Python of the environment that the wheel is installed in.
USE = """
import sys, trio, search, federation, homeserver.search, homeserver.federation
from homeserver import Config, Homeserver
assert search.THEIRS and federation.THEIRS
for package in (homeserver, homeserver.federation, homeserver.search):
    assert package.__file__.startswith(sys.prefix), package.__file__

async def main():
    async with Homeserver(Config(server_name="example.org", data_dir=sys.argv[1])) as hs:
        alice = await hs.register("alice", "a good password")
        room = await alice.create_room(name="Kitchen")
        print(await alice.send(room, "The kettle is on."))

trio.run(main)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, since building leaves files behind. Symbolic links stay what they are."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def source_archive(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder], cwd=checkout, check=True, capture_output=True)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def wheel(source_archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist, offline."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, source_archive], check=True)
    (wheel,) = folder.iterdir()
    return wheel


def shipped(checkout: Path) -> set[str]:
    """Every file of the three folders, as the package's path for it."""
    found = set()
    for name in SOURCES:
        for path in (checkout / name).rglob("*"):
            if path.is_file() and not path.is_symlink():
                inside = path.relative_to(checkout).as_posix()
                found.add(inside if name == "homeserver" else f"homeserver/{inside}")
    return found


def test_the_sdist_contains_every_file_once_and_no_links(checkout: Path, source_archive: Path) -> None:
    with tarfile.open(source_archive) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    inside = {member.name.partition("/")[2] for member in members if member.isfile()}
    assert {name for name in inside if name.startswith("homeserver/")} == shipped(checkout)
    assert {name.partition("/")[0] for name in inside} & {"federation", "search", "tests", ".ci"} == set()
    assert "LICENSE" in inside


def test_the_wheel_contains_every_file_in_one_package(checkout: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if name.partition("/")[0].endswith(".dist-info")}
    assert names - information == shipped(checkout)
    assert any(name.endswith("/licenses/LICENSE") for name in information)


def test_the_wheel_works_outside_the_checkout_beside_other_packages(wheel: Path, tmp_path: Path) -> None:
    """In an environment that has packages named `search` and `federation` already."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (packages,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    # The dependencies are those of this environment. Below a path that is added so, `.pth` files, by which the checkout
    # itself is found, have no effect.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    theirs = {packages / name / "__init__.py": f"THEIRS = {name!r}\n" for name in ("search", "federation")}
    for file, text in theirs.items():
        file.parent.mkdir()
        file.write_text(text)
    pip = [sys.executable, "-m", "pip", "--python", python]
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile", "--disable-pip-version-check")
    subprocess.run([*pip, "install", *options, wheel], check=True)
    done = subprocess.run(
        [python, "-c", USE, tmp_path / "data"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("$")
    command = [python.with_name("homeserver"), "--help"]
    assert "config" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", "homeserver"], check=True)
    assert {file: file.read_text() for file in theirs} == theirs
    assert not (packages / "homeserver").exists()
