"""The examples of docs/embedding.md are run as they stand, and print what the page says."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"
BLOCK = re.compile(r"```python ?(\w*)\n(.*?)```(?:\n\nThis prints:\n\n```text\n(.*?)```)?", re.DOTALL)

Names = dict[str, Any]


@pytest.mark.sockets
def test_examples_of_the_embedding_page_print_the_stated_output(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert {kind for kind, _, _ in blocks} == set(RUNNERS)
    names: Names = {"folder": str(tmp_path)}
    for kind, code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            RUNNERS[kind](code, names)
        assert printed.getvalue() == expected


def _run_in_trio(code: str, names: Names) -> None:
    """Runs statements that may await, as if they stood in one module."""
    body = textwrap.indent(code, "    ")
    assigned = sorted(set(re.findall(r"^(?:async def )?(\w+)(?: =|\()", code, re.MULTILINE)))
    kept = "\n".join(f"    names['{name}'] = {name}" for name in assigned)
    imported = re.findall(r"^(?:from \S+ )?import (.+)$", code, re.MULTILINE)
    kept += "".join(f"\n    names['{name.strip()}'] = {name.strip()}" for line in imported for name in line.split(","))
    exec(f"async def example(names):\n{body}\n{kept}\n", names)
    trio.run(names["example"], names)


def _run_in_asyncio(code: str, names: Names) -> None:
    """Runs the function `main` of a module."""
    exec(code, names)
    asyncio.run(names["main"]())


def _run_tests(code: str, names: Names) -> None:
    """Runs the test functions of a module, as a test runner does."""
    module = {**names}
    exec(code, module)
    tests = [value for name, value in module.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def _run_application(code: str, names: Names) -> None:
    """Starts the application of a module, and asks both halves of it."""
    module = {**names}
    exec(code, module)

    async def main() -> None:
        app = module["app"]
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="https://example.org") as http:
                for number in (1, 2):
                    answer = await http.post(f"/orders/{number}/shipped")
                    assert answer.json()["room"].startswith("!")
                assert "versions" in (await http.get("/_matrix/client/versions")).json()

    asyncio.run(main())


RUNNERS: dict[str, Callable[[str, Names], None]] = {
    "": _run_in_trio,
    "asyncio": _run_in_asyncio,
    "fastapi": _run_application,
    "pytest": _run_tests,
}
