"""Fixtures of the tests of HTTP: a server with operations that the test writes itself, and no feature."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trustme

from homeserver.api.routes import Routes
from homeserver.authenticate import SCHEMA
from homeserver.blobs import Blobs
from homeserver.config import Config, RateLimitsSection
from homeserver.database import open_database
from homeserver.database.server_identity import ServerIdentity
from homeserver.federation.identifiers import ServerName
from homeserver.federation.signing import SigningKey
from homeserver.http.asgi import App
from homeserver.http.dispatch import Dispatch
from homeserver.process.workers import Workers
from homeserver.resources import Resources
from homeserver.testing import now_ms
from tests.support.sealing import MASTER_KEYS


@dataclass(slots=True)
class Server:
    """A running server: what its handlers get, its application, and a client on that."""

    hs: Resources
    app: App
    http: httpx.AsyncClient

    async def write(self, fn: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """fn(tx, …) in a write of the server's database."""
        return await self.hs.database.write(partial(_call, fn, options), *args)

    async def read(self, fn: Callable[..., Any], *args: Any) -> Any:
        """fn(tx, …) on the server's database."""
        return await self.hs.database.read(fn, *args)


StartServer = Callable[..., AbstractAsyncContextManager[Server]]


def _call(fn: Callable[..., Any], options: dict[str, Any], tx: Any, *args: Any) -> Any:
    return fn(tx, *args, **options)


@pytest.fixture
def start_server(tmp_path: Path, virtual_clock: None) -> StartServer:
    """`async with start_server(routes, rate_limits=…) as server`: answers these routes and nothing else."""

    @asynccontextmanager
    async def start(routes: Routes, **sections: Any) -> AsyncIterator[Server]:
        sections = {"rate_limits": RateLimitsSection(enabled=False), **sections}
        config = Config(server_name="test.example", data_dir=str(tmp_path), **sections)
        database = await open_database("sqlite::memory:", [SCHEMA], inline=True, now_ms=now_ms)
        identity = ServerIdentity(ServerName("test.example"), SigningKey("test", bytes(32)), config, MASTER_KEYS)
        database.serve_as(identity)
        async with trio.open_nursery() as nursery:
            hs = Resources(
                config=config,
                server_name=identity.name,
                signing_key=identity.signing_key,
                database=database,
                stream=database.stream,
                blobs=Blobs("memory:", inline=True),
                workers=Workers(inline=True),
                wire=None,  # type: ignore[arg-type]
                now_ms=now_ms,
                nursery=nursery,
                heartbeats=identity.heartbeats,
            )
            app = App(Dispatch(hs, routes))
            transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
            async with httpx.AsyncClient(transport=transport, base_url="https://test.example") as http:
                yield Server(hs, app, http)
            nursery.cancel_scope.cancel()
        await database.aclose()

    return start


@pytest.fixture
def tls_files(tmp_path: Path) -> tuple[str, str, ssl.SSLContext]:
    """A certificate, its key, and a context of a client that trusts it."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return str(cert), str(key), context
