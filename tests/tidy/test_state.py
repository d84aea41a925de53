"""No globals: what changes has a lifetime, and two homeservers in one process share nothing."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.tidy.source import PACKAGES, python_files, walk

MUTATORS = frozenset(
    {"append", "add", "update", "pop", "popitem", "clear", "extend", "insert", "remove", "discard", "setdefault",
     "sort", "appendleft", "popleft", "set"}
)  # fmt: skip
# Objects of these kinds are made to change.
STATEFUL = frozenset(
    {"Event", "Lock", "Condition", "Semaphore", "CapacityLimiter", "deque", "defaultdict", "Counter", "OrderedDict",
     "WeakKeyDictionary", "WeakValueDictionary", "ContextVar", "count"}
)  # fmt: skip


def names_of_module(tree: ast.Module) -> set[str]:
    found = set()
    for node in tree.body:
        if isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def changes(function: ast.AST, names: set[str]) -> Iterator[tuple[int, str]]:
    """Yields the places where a function changes one of the module's names."""
    nodes = walk(function)
    local = {target.id for target in nodes if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)} | {
        arg.arg for node in nodes if isinstance(node, ast.arguments) for arg in all_arguments(node)
    }
    for node in nodes:
        if isinstance(node, ast.Global):
            yield node.lineno, f"global {', '.join(node.names)}"
        holder: ast.expr | None = None
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            holder = node.value
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            holder = node.func.value
        if isinstance(holder, ast.Name) and holder.id in names - local:
            yield node.lineno, ast.unparse(node)[:80]


def all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    more = [each for each in (arguments.vararg, arguments.kwarg) if each is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *more]


def test_no_function_changes_its_module() -> None:
    found = [
        f"{source.name}:{line}: {what}"
        for source in python_files(*PACKAGES)
        for names in [names_of_module(source.tree)]
        for node in source.functions
        for line, what in changes(node, names)
    ]
    assert not found, "\n".join(found)


def test_no_module_holds_mutable_state() -> None:
    found = [
        f"{source.name}:{node.lineno}: {ast.unparse(node)[:80]}"
        for source in python_files(*PACKAGES)
        for node in source.tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).rpartition(".")[2] in STATEFUL
    ]
    assert not found, "\n".join(found)
