"""The specification's own schemas, from the shared folder beside the checkout or from MATRIX_CONTRACT."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any


@cache
def contract_check() -> ModuleType | None:
    """Returns the module `contract_check`, None if it is not installed. MATRIX_CONTRACT is its file or folder."""
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


def check_response(method: str, path: str, status: int, body: bytes, headers: Iterable[str]) -> None:
    """Raises AssertionError if an answer does not fit the schema in the specification."""
    _check("client-server", method, path, status, body, frozenset(headers))


def check_federation_response(method: str, path: str, status: int, body: bytes) -> None:
    """Like `check_response`, for an answer to another server."""
    _check("server-server", method, path, status, body, None)


def list_faults_of_request(method: str, path: str, body: Any) -> list[str]:
    """Returns how a request to an application service does not fit the schema in the specification."""
    module = contract_check()
    if module is None or not path.startswith("/_matrix/app/v1/"):
        return []
    faults = module.contract().validate_request(method, path, body, api="application-service", unknown_ok=False)
    for event in (body or {}).get("events", ()):
        faults += module.contract().validate_event(event)
    return [f"{method} {path} breaks the specification: {fault}" for fault in faults]


def _check(api: str, method: str, path: str, status: int, body: bytes, headers: frozenset[str] | None) -> None:
    if "org.matrix.msc4140.delay=" in path and body.startswith(b'{"delay_id":'):
        return  # the specification does not know delayed events yet
    template = _template_of(api, method, path)
    if template is not None:
        _check_once(api, method, template, status, body, headers)


@lru_cache(maxsize=1024)
def _template_of(api: str, method: str, path: str) -> str | None:
    """Returns the operation's path in the specification, None if it has none."""
    module = contract_check()
    operation = None if module is None else module.match(method, path, api=api)
    return None if operation is None else operation["path"]


@cache
def _operations_of(api: str, method: str, template: str) -> list[Any]:
    """Returns the operations that share a path: some differ only in their query."""
    module = contract_check()
    assert module is not None
    return [operation for operation, _ in module.contract().match_all(method, template, api)]


@lru_cache(maxsize=64)
def _check_once(api: str, method: str, template: str, status: int, body: bytes, headers: frozenset[str] | None) -> None:
    """Checks an answer, unless it is a recent good one: tests that wait repeat the same request.

    It depends on no value in the path, so the template stands for it.
    """
    if method in ("HEAD", "OPTIONS"):
        return
    module = contract_check()
    assert module is not None
    operations = _operations_of(api, method, template)
    check = module.contract().validate_response_for
    errors = min((check(each, status, body, headers, strict=True) for each in operations), key=len)
    ignore = _of_an_event if api == "server-server" else _of_authentication
    faults = [error for error in errors if not ignore(operations[0], status, error)]
    assert not faults, f"{method} {template} → {status} breaks the specification: {'; '.join(faults)}"


def _of_authentication(operation: Any, status: int, error: str) -> bool:
    """The spec's data forgets that this operation uses user-interactive authentication, whose 401 has no errcode."""
    return operation["operationId"] == "uploadCrossSigningKeys" and status == 401 and "missing or not a string" in error


def _of_an_event(operation: Any, status: int, error: str) -> bool:
    """PDUs have had no `origin` since room version 1; and "all other fields of the events should remain untouched"."""
    return operation["operationId"].startswith("sendInvite") and "'origin' is a required property" in error


def list_gateway_faults(path: str, body: bytes) -> list[str]:
    """Returns what is wrong with a request to a push gateway."""
    module = contract_check()
    return [] if module is None else module.validate_request("POST", path, body, api="push-gateway")
