"""The specification's own schemas, where the shared folder lies beside the checkout or MATRIX_CONTRACT names it."""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any


@cache
def contract_check() -> ModuleType | None:
    """The module `contract_check`, None where it is not at hand. MATRIX_CONTRACT is its file or folder."""
    given = os.environ.get("MATRIX_CONTRACT")
    place = Path(given) if given else Path(__file__).resolve().parents[2].parent / "shared" / "spec"
    file = place / "contract_check.py" if place.is_dir() else place
    if not file.is_file():
        return None
    spec = importlib.util.spec_from_file_location("contract_check", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["contract_check"] = module
    spec.loader.exec_module(module)
    return module


def check_response(method: str, path: str, status: int, body: bytes, headers: Any) -> None:
    """AssertionError where an answer does not fit the schema that the specification has for it."""
    module = contract_check()
    if module is None:
        return
    recorder = module.Recorder(api="client-server", strict=True, ignore=_of_authentication)
    recorder.record(method, path, status, body, headers)
    recorder.check()


def check_federation_response(method: str, path: str, status: int, body: bytes) -> None:
    """As `check_response`, of an answer to another server."""
    module = contract_check()
    if module is None:
        return
    recorder = module.Recorder(api="server-server", strict=True, ignore=_of_an_event)
    recorder.record(method, path, status, body)
    recorder.check()


def _of_authentication(operation: Any, status: int, error: str) -> bool:
    """The spec's data forgets that this operation uses user-interactive authentication, whose 401 has no errcode."""
    return operation["operationId"] == "uploadCrossSigningKeys" and status == 401 and "missing or not a string" in error


def _of_an_event(operation: Any, status: int, error: str) -> bool:
    """PDUs have had no `origin` since room version 1; and "all other fields of the events should remain untouched"."""
    return operation["operationId"].startswith("sendInvite") and "'origin' is a required property" in error
