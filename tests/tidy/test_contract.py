"""Words and doors of the specification: error codes, and who may come through which operation.

tests/data/errcodes.json and security.json are read from the contract of spec v1.19.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from homeserver.api.routes import Operation
from homeserver.features import FEATURES
from tests.tidy.source import PACKAGES, python_files

DATA = Path(__file__).parents[1] / "data"
ERRCODES = frozenset(json.loads((DATA / "errcodes.json").read_text()))
SECURITY: dict[str, str] = json.loads((DATA / "security.json").read_text())

# Error codes that the spec's prose knows but its contract data does not, or that only tools of other servers use.
OTHER_ERRCODES: frozenset[str] = frozenset()

# Public doors that the spec does not have: they answer anyone, so each stands here with its reason.
OTHER_PUBLIC = {
    "GET /_homeserver/health/ready": "asked by whoever starts the server",
    "GET /_homeserver/health/live": "asked by whoever starts the server",
    "GET /_homeserver/metrics": "a listener of its own decides who reaches it",
    "GET /_synapse/admin/v1/register": "gives out the nonce that the shared secret signs",
    "POST /_synapse/admin/v1/register": "is signed with the shared secret",
}


def normal(method: str, path: str) -> str:
    """Method and path with nameless parameters and the newest version of the endpoint."""
    path = re.sub(r"\{[^}]*\}", "{}", path)
    return f"{method} {re.sub(r'^/_matrix/client/(?:r0|v3)/', '/_matrix/client/v3/', path)}"


BY_PATH = {normal(*key.split(" ", 1)): kind for key, kind in SECURITY.items()}


def kind_of(operation: Operation) -> str:
    plan = operation.plan
    if plan.origin:
        return "signed"
    if plan.requester:
        return "optional" if plan.requester_optional else "token"
    return "public"


OPERATIONS = [operation for feature in FEATURES for operation in feature.routes]


def fits(operation: Operation) -> bool:
    """Whether it asks for a token, a signature, or nothing, as the spec does. Asking for more opens no door."""
    kind = kind_of(operation)
    wanted = BY_PATH.get(normal(operation.method, operation.path))
    if wanted is None:
        return kind != "public" or f"{operation.method} {operation.path}" in OTHER_PUBLIC
    return kind == wanted or (wanted in ("public", "optional") and kind != "signed")


def test_operations_ask_for_what_the_spec_asks_for() -> None:
    assert [f"{each.method} {each.path}: {kind_of(each)}" for each in OPERATIONS if not fits(each)] == []


def test_error_codes_are_those_of_the_spec() -> None:
    unknown = {
        (source.name, code)
        for source in python_files(*PACKAGES)
        for _, text in source.strings
        for code in re.findall(r"^M_[A-Z_]+$", text)
        if code not in ERRCODES | OTHER_ERRCODES
    }
    assert not unknown, unknown
