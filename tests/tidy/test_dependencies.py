"""The packages import only what installing them provides."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions

from tests.tidy.source import PACKAGES, ROOT, Source, python_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def imported_modules(source: Source) -> set[str]:
    """The modules that a file imports, at its top or inside functions."""
    modules: set[str] = set()
    for node in source.nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module)
    return modules


def imported(source: Source) -> set[str]:
    """The top-level names of the modules that a file imports."""
    return {module.partition(".")[0] for module in imported_modules(source)}


def test_every_imported_package_is_required() -> None:
    found = set().union(*(imported(source) for source in python_files(*PACKAGES)))
    distributions = packages_distributions()
    foreign = found - sys.stdlib_module_names - set(PACKAGES)
    required = names([*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["parquet"]])
    found_in = {name: {normal(each) for each in distributions.get(name, [name])} for name in foreign}
    assert [name for name in sorted(foreign) if not required & found_in[name]] == []


def test_the_protocol_and_search_import_no_other_packages() -> None:
    """import-linter checks this for the modules its contract lists; this checks it for every module there will be."""
    found = [
        f"{source.name}: {module}"
        for package in ("federation", "search")
        for source in python_files(package)
        for module in imported_modules(source)
        if module.partition(".")[0] == "homeserver" and not f"{module}.".startswith(f"homeserver.{package}.")
    ]
    assert found == []
