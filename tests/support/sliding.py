"""A client of sliding sync: sends requests in the shape that clients ship, and keeps what the answers tell of rooms."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.support.homeservers import Client

PATH = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
MERGED_PATH = "/_matrix/client/v4/sync"

Json = dict[str, Any]

EVERY_EXTENSION = {name: {"enabled": True} for name in ("to_device", "e2ee", "account_data", "receipts", "typing")}


def window(first: int = 0, last: int = 19, *, limit: int = 10, state: Any = (), **options: Any) -> Json:
    """A list with one range. state: pairs of type and state key."""
    return {"ranges": [[first, last]], "timeline_limit": limit, "required_state": list(state), **options}


async def slide(client: Client, pos: str | None = None, *, timeout: int = 0, **body: Any) -> Json:
    """The answer to a request in the shape that clients ship."""
    params: Json = {"timeout": timeout} if pos is None else {"pos": pos, "timeout": timeout}
    answer: Json = await client.ok("POST", PATH, json=body, params=params)
    return answer


async def slide_merged(client: Client, pos: str | None = None, **body: Any) -> Json:
    """The answer to a request in the shape of the merged proposal."""
    answer: Json = await client.ok("POST", MERGED_PATH, json=body if pos is None else {"pos": pos, **body})
    return answer


def told_texts(answer: Json, room_id: str) -> list[str]:
    """The messages in the timeline of a room."""
    events = answer["rooms"].get(room_id, {}).get("timeline", [])
    return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]


def told_state(answer: Json, room_id: str) -> set[tuple[str, str]]:
    """The keys of the required state of a room."""
    events = answer["rooms"].get(room_id, {}).get("required_state", [])
    return {(event["type"], event["state_key"]) for event in events}


@dataclass
class Connection:
    """One connection: repeats its request with each `pos`."""

    client: Client
    body: Json = field(default_factory=lambda: {"lists": {"all": window()}})
    pos: str | None = None

    async def ask(self, *, timeout: int = 0) -> Json:
        """The next answer. The client has received it."""
        answer = await slide(self.client, self.pos, timeout=timeout, **self.body)
        self.pos = answer["pos"]
        return answer
