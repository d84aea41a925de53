"""What the tidy tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """Parsed files are a million objects that stay. To search them for garbage takes twice as long as to parse them."""
    gc.disable()
    yield
    gc.freeze()
    gc.enable()
