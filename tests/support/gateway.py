"""A push gateway on a fake network. It holds every request to the specification.

gateway = Gateway.on(federation.network)
await alice.ok("POST", "pushers/set", json=gateway.pusher("phone"))
await until(gateway.has("phone", 1))
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Self

from homeserver.testing import FakeNetwork
from tests.support.contract import list_gateway_faults
from tests.support.people import Json

PATH = "/_matrix/push/v1/notify"


@dataclass(slots=True)
class Gateway:
    """What devices were told, in order. status: of the next answers. rejected: the keys that it does not know."""

    name: str
    told: list[Json] = field(default_factory=list)
    attempts: int = 0
    status: int = 200
    rejected: list[str] = field(default_factory=list)

    @classmethod
    def on(cls, network: FakeNetwork, name: str = "push.example") -> Self:
        """A gateway that others reach under this name."""
        gateway = cls(name)
        network.join(name, gateway.app)
        return gateway

    def pusher(self, pushkey: str, *, append: bool = False, **data: Any) -> Json:
        """The body that sets a pusher on this gateway."""
        return {
            "kind": "http",
            "app_id": "org.example.app",
            "pushkey": pushkey,
            "app_display_name": "App",
            "device_display_name": "Phone",
            "lang": "en",
            "data": {"url": f"https://{self.name}{PATH}", **data},
            "append": append,
        }

    async def app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        assert (scope["method"], scope["path"]) == ("POST", PATH)
        assert not (faults := list_gateway_faults(PATH, body)), faults
        self.attempts += 1
        if self.status == 200:
            self.told.append(json.loads(body)["notification"])
        answer = json.dumps({"rejected": self.rejected}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def of(self, pushkey: str) -> list[Json]:
        """Returns all notifications of a device."""
        return [told for told in self.told if told["devices"][0]["pushkey"] == pushkey]

    def events(self, pushkey: str) -> list[str]:
        """Returns the events among them."""
        return [told["event_id"] for told in self.of(pushkey) if "event_id" in told]

    def has(self, pushkey: str, count: int) -> Callable[[], Awaitable[bool]]:
        """Returns a condition for `until`: a device has got so many events."""

        async def has_come() -> bool:
            return len(self.events(pushkey)) >= count

        return has_come
