"""A web of pages, and a server that makes previews of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from homeserver.config import BlobsSection, UrlPreviews
from homeserver.federation.wire.internet import InternetWire, OutboundRules
from tests.federation.wire_server import Received, Reply, Site, World
from tests.media import images
from tests.media.servers import MEDIA_FEATURES, V1
from tests.support.homeservers import Client, Server, config_for_tests, running

WEB_IP = "9.9.9.1"
PICTURE = images.encoded(images.gradient(120, 60), "PNG")


@dataclass
class Web:
    """A web of pages, by host and path, and a server with a user who wants previews of them."""

    world: World
    server: Server
    alice: Client
    pages: dict[str, Reply] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    async def answer(self, request: Received) -> Reply:
        url = f"http://{request.headers['host']}{request.target}"
        self.requests.append(url)
        return self.pages.get(url, Reply(404))

    def page(self, url: str, html: str | bytes, content_type: str = "text/html; charset=utf-8", **reply: Any) -> None:
        body = html.encode() if isinstance(html, str) else html
        self.pages[url] = Reply(200, [("Content-Type", content_type)], body, **reply)

    async def preview(self, url: str, *, of: Client | None = None) -> dict[str, Any]:
        return await (of or self.alice).ok("GET", f"{V1}/preview_url", params={"url": url})

    async def refusal(self, url: str) -> tuple[int, str]:
        return await self.alice.refused("GET", f"{V1}/preview_url", params={"url": url})


@asynccontextmanager
async def a_web(folder: Path, **sections: Any) -> AsyncIterator[Web]:
    """A web behind one address, with the hosts a.example and b.example, and a server that makes previews."""
    sections = {"url_previews": UrlPreviews(enabled=True), "blobs": BlobsSection(url="memory:"), **sections}
    async with trio.open_nursery() as nursery:
        world = World(nursery)
        config = config_for_tests("test.example", folder, **sections)
        rules = OutboundRules(allow_private_addresses=config.outbound_http.allow_private_addresses)
        wire = InternetWire(resolver=world, connect_tcp=world.connect_tcp, outbound=rules)
        async with running(config, wire=wire, features=MEDIA_FEATURES) as server:
            web = Web(world, server, await server.register("alice"))
            world.add(WEB_IP, 80, Site(web.answer), "a.example", "b.example", "rebinding.example")
            yield web
        await wire.aclose()
        nursery.cancel_scope.cancel()
