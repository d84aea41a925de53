"""The examples of docs/embedding.md are run as they stand, and print what the page says."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import textwrap
from pathlib import Path

import pytest
import trio

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"
BLOCK = re.compile(r"```python( asyncio)?\n(.*?)```(?:\n\nThis prints:\n\n```text\n(.*?)```)?", re.DOTALL)


@pytest.mark.sockets
def test_examples_of_the_embedding_page_print_what_it_says(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) == 4
    names: dict[str, object] = {"folder": str(tmp_path)}
    for in_asyncio, code, expected in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if in_asyncio:
                exec(code, names)
                asyncio.run(names["main"]())  # type: ignore[operator]
            else:
                _run_in_trio(code, names)
        assert printed.getvalue() == expected


def _run_in_trio(code: str, names: dict[str, object]) -> None:
    """Runs statements that may await, as if they stood in one module."""
    body = textwrap.indent(code, "    ")
    assigned = sorted(set(re.findall(r"^(?:async def )?(\w+)(?: =|\()", code, re.MULTILINE)))
    kept = "\n".join(f"    names['{name}'] = {name}" for name in assigned)
    imported = re.findall(r"^(?:from \S+ )?import (.+)$", code, re.MULTILINE)
    kept += "".join(f"\n    names['{name.strip()}'] = {name.strip()}" for line in imported for name in line.split(","))
    exec(f"async def example(names):\n{body}\n{kept}\n", names)
    trio.run(names["example"], names)  # type: ignore[arg-type]
