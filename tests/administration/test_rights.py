"""The admin API is for administrators: whatever is asked for, and whether or not it exists."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

from homeserver.api.routes import Operation
from homeserver.config import Registration
from homeserver.federation.identifiers import EventID, RoomAlias, RoomID, ServerName, UserID
from homeserver.server import all_features
from tests.hostile.values import sample
from tests.support.homeservers import Client, Homeservers

OPERATIONS = [
    operation
    for feature in all_features()
    for operation in feature.routes
    if operation.group == "admin" and operation.plan.requester
]
VALUES = {
    "user_id": "@alice:test.example",
    "room_id": "!room:test.example",
    "room_id_or_alias": "!room:test.example",
    "event_id": "$event",
    "server_name": "test.example",
    "destination": "test.example",
    "report_id": "1",
}
KNOWN: dict[Any, Any] = {
    UserID: "@alice:test.example",
    RoomID: "!room:test.example",
    EventID: "$event",
    RoomAlias: "#alias:test.example",
    ServerName: "test.example",
}
QUERIES = {"from_ts": "1", "before_ts": "1", "username": "x", "from": "0", "ts": "1", "dir": "f"}


def path_of(operation: Operation) -> str:
    path = re.sub(r"\{(\w+)\}", lambda match: quote(VALUES.get(match[1], "x"), safe=""), operation.path)
    return path + "?" + "&".join(f"{name}={value}" for name, value in QUERIES.items())


async def ask(client: Client, operation: Operation) -> tuple[int, str]:
    plan = operation.plan.body
    return await client.refused(
        operation.method, path_of(operation), json=None if plan is None else dict(sample(plan.kind, KNOWN))
    )


async def test_nobody_else_gets_anything_of_the_admin_api(homeservers: Homeservers) -> None:
    server = await homeservers.start(registration=Registration(enabled=True, guests=True))
    alice = await server.register("alice")
    told = await server.anonymous.ok("POST", "register?kind=guest", json={})
    guest = Client(server, told["access_token"], told["user_id"], told["device_id"])
    assert len(OPERATIONS) > 50
    for operation in OPERATIONS:
        name = f"{operation.method} {operation.path}"
        assert await ask(alice, operation) == (403, "M_FORBIDDEN"), name
        assert await ask(guest, operation) == (403, "M_GUEST_ACCESS_FORBIDDEN"), name
        assert await ask(server.anonymous, operation) == (401, "M_MISSING_TOKEN"), name
