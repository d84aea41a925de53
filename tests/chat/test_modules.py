"""The modules of the chat page that know neither network nor page, run by Node: `*.test.js` beside this file."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from homeserver.pages import chat

HERE = Path(__file__).parent
TIMEOUT_S = 120


def find_node() -> str:
    """Returns Node's program. Without it the test is left out, except in CI, where it must be installed."""
    node = shutil.which("node")
    if node is None:
        assert not os.environ.get("CI"), "Node.js is not installed (Debian: apt-get install nodejs)"
        pytest.skip("Node.js is not installed")
    return node


def test_modules_of_the_chat_page_do_what_their_tests_say(tmp_path: Path) -> None:
    node = find_node()
    for path in [*Path(chat.__file__).parent.glob("*.js"), *HERE.glob("*.js")]:
        shutil.copy(path, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    ran = subprocess.run(
        [node, "--test"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "TZ": "UTC", "LANG": "en_GB.UTF-8"},
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "# fail 0" in ran.stdout
    assert "# tests 0" not in ran.stdout
