"""Errors are caught by their type. Where any error is caught, a comment says why."""

from __future__ import annotations

import ast

from tests.tidy.source import PACKAGES, python_files

BROAD = frozenset({"Exception", "BaseException"})


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(each is None or (isinstance(each, ast.Name) and each.id in BROAD) for each in caught)


def test_catching_every_exception_is_justified_in_a_comment() -> None:
    found = []
    for source in python_files(*PACKAGES):
        lines = source.text.splitlines()
        for node in source.nodes:
            if isinstance(node, ast.ExceptHandler) and is_broad(node):
                head, first = lines[node.lineno - 1], lines[node.lineno]
                if "#" not in head and not first.lstrip().startswith("#"):
                    found.append(f"{source.name}:{node.lineno}: {head.strip()}")
    assert not found, "Catch a narrower type, or say in a comment why any error is caught: " + "\n".join(found)
