"""What the tidy tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.tidy.source import FOLDERS, python_files


@pytest.fixture(scope="package", autouse=True)
def parsed_files() -> Iterator[None]:
    """Keeps the tests of this folder together, which parse every file once, and frees what was parsed after them."""
    yield
    for source in python_files(*FOLDERS):
        source.forget()


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """Parsed files are a million objects that stay. To search them for garbage takes twice as long as to parse them."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
