"""A small application on real sockets, for the tests of what lies below it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import trio

from homeserver.api.routes import Request, Response, Routes
from homeserver.config import Config, Listener
from homeserver.config.application_services import RegisteredServices
from homeserver.features import health
from homeserver.http.asgi import App
from homeserver.http.dispatch import Dispatch
from homeserver.http.listener import Bound, serve
from homeserver.process.budgets import Budgets
from homeserver.process.metrics import Metrics
from homeserver.process.rate_limits import RateLimits
from homeserver.process.token_cache import TokenCache
from homeserver.resources import Resources

routes = Routes()


@routes.get("/_matrix/client/versions")
async def versions(hs: Resources, request: Request) -> dict[str, Any]:
    return {"ip": request.client_ip}


@routes.get("/_matrix/client/v3/slow")
async def slow(hs: Resources) -> dict[str, Any]:
    await hs.may_end.wait()  # type: ignore[attr-defined]
    return {"waited": True}


@routes.get("/_matrix/client/v3/sync", waits=True)
async def sync(hs: Resources, request: Request) -> dict[str, Any]:
    try:
        with trio.move_on_after(60):
            await request.wait_ended()
    finally:
        hs.ended.set()  # type: ignore[attr-defined]
    return {}


@routes.post("/_matrix/media/v3/upload")
async def upload(hs: Resources, request: Request) -> dict[str, Any]:
    return {"length": sum([len(chunk) async for chunk in request.stream(1 << 20)])}


@routes.get("/_matrix/media/v3/download/{size}")
async def download(hs: Resources, size: int) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(size):
            yield b"x" * 65_536

    return Response(headers={"content-type": "application/octet-stream"}, stream=chunks())


@routes.get("/_matrix/media/v3/broken")
async def broken(hs: Resources) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"some"
        raise RuntimeError("the disk failed")

    return Response(headers={"content-type": "application/octet-stream"}, stream=chunks())


class Running:
    """A server on the listeners of the test; `stop` ends it as SIGTERM would."""

    def __init__(self, app: App, bound: list[Bound], stop: trio.Event, hs: Any, ended: trio.Event) -> None:
        self.app, self.bound, self.stop, self.hs, self.ended = app, bound, stop, hs, ended

    @property
    def url(self) -> str:
        return self.bound[0].url

    @property
    def port(self) -> int:
        return int(self.bound[0].address.rpartition(":")[2])

    async def until_active(self, count: int) -> None:
        """Waits until this many requests wait for their answers."""
        while self.app.dispatch.active < count:  # noqa: ASYNC110
            await trio.sleep(0.005)


def make_app() -> tuple[App, Any]:
    hs = SimpleNamespace(
        config=Config(server_name="a.example"), rate_limits=RateLimits(), token_cache=TokenCache(), metrics=Metrics(),
        budgets=Budgets(), is_ready=True, stopping=trio.Event(), now_ms=lambda: 0, ended=trio.Event(),
        may_end=trio.Event(), application_services=RegisteredServices(),
    )  # fmt: skip
    return App(Dispatch(hs, [*routes, *health.routes])), hs


@asynccontextmanager
async def serving(*listeners: Listener) -> AsyncIterator[Running]:
    app, hs = make_app()
    stop = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(task_status: Any) -> None:
            await serve(app, listeners or (Listener(bind="127.0.0.1:0"),), stop=stop, task_status=task_status)
            ended.set()

        ended = trio.Event()
        bound = await nursery.start(run)
        with trio.fail_after(120):
            yield Running(app, bound, stop, hs, ended)
            stop.set()


async def talk(port: int, data: bytes) -> bytes:
    """Sends raw bytes and returns everything received until the server closes the connection."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(data)
        answer = b""
        async for chunk in stream:
            answer += chunk
        return answer
