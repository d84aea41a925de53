"""What `import homeserver` gives: the public names with their types, at no cost to the command line."""

from __future__ import annotations

import ast
import pydoc
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import homeserver

ROOT = Path(__file__).parents[2]


def test_every_public_name_exists() -> None:
    assert set(homeserver.__all__) <= set(dir(homeserver))
    for name in homeserver.__all__:
        assert getattr(homeserver, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Teapot'"):
        _ = homeserver.Teapot  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((ROOT / "homeserver" / "__init__.pyi").read_text())
    told = {
        alias.asname: getattr(__import__(node.module, fromlist=[alias.name]), alias.name)
        for node in stub.body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    assert told == {name: getattr(homeserver, name) for name in homeserver.__all__}
    assert (ROOT / "homeserver" / "py.typed").exists()


def test_help_shows_the_public_names() -> None:
    # Python 3.13 breaks long signatures into lines.
    text = pydoc.render_doc(homeserver, renderer=pydoc.plaintext)
    text = re.sub(r"\s*\n[ |]*", " ", text).replace("( ", "(")
    for line in ("class Homeserver", "class Client", "register(self, localpart", "upload(self, data", "VERSION"):
        assert line in text


def test_there_is_one_version() -> None:
    assert version("homeserver") == homeserver.__version__


def test_the_command_line_parser_does_not_import_the_server() -> None:
    code = "import sys, homeserver.cli as cli; cli.make_parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert {"trio", "msgspec", "homeserver.server", "homeserver.config"} & set(done.stdout.split()) == set()
