"""Bytecode of what tests import. Without it each of the hundreds of processes that they start compiles every module.

PYTHONDONTWRITEBYTECODE usually means that no `__pycache__` may appear beside the sources. That is respected: with it,
the bytecode goes into a folder that pytest has anyway.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def keep_bytecode(folder: Path) -> None:
    """Stores the bytecode of this process, and of all that it starts; in `folder` if not beside the sources."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(folder)
        sys.dont_write_bytecode = False
