"""Every function that docs/flow.md names exists where it says."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`((?:homeserver|federation|search)/[\w/]+\.py)::([\w.]+)`")


def test_every_function_of_the_flow_page_exists() -> None:
    named = NAMED.findall((ROOT / "docs" / "flow.md").read_text())
    assert len(named) > 20
    missing = [f"{path}::{name}" for path, name in named if name not in _names(ROOT / path)]
    assert missing == []


def _names(path: Path) -> set[str]:
    """Functions and classes of a file, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return found
