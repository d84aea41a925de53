"""Complete servers for tests: no files, no threads, no sockets, and time that follows trio's clock."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import trio
from trio.abc import Instrument
from trio.testing import MockClock

from homeserver.config import (
    BlobsSection,
    Config,
    DatabaseSection,
    Passwords,
    Public,
    RateLimitsSection,
    Registration,
)
from homeserver.federation.signing import SigningKey, format_signing_key
from homeserver.server import Homeserver
from homeserver.testing.network import FakeNetwork

T = TypeVar("T")

START_MS = 1_700_000_000_000
"""The time of day at which the virtual clock starts, in milliseconds since 1970."""


def now_ms() -> int:
    """Returns the time of day for servers in tests: `START_MS` plus the time of trio's clock, virtual or real."""
    return START_MS + round(trio.current_time() * 1000)


def config_for_tests(server_name: str, folder: str | PathLike[str], **sections: Any) -> Config:
    """Returns a configuration with open registration, no rate limits and very cheap passwords.

    Database and files are in memory; only the signing key and the master key are written to `folder`. `sections`
    replace its sections.
    """
    chosen: dict[str, Any] = {
        "database": DatabaseSection(url="sqlite::memory:"),
        "blobs": BlobsSection(url="memory:"),
        "registration": Registration(enabled=True),
        "passwords": Passwords(hash_cost="minimal"),
        "rate_limits": RateLimitsSection(enabled=False),
        "public": Public(base_url=f"https://{server_name}"),
    }
    return Config(server_name=server_name, data_dir=str(Path(folder) / server_name), **{**chosen, **sections})


@asynccontextmanager
async def one_server(
    server_name: str = "test.example",
    *,
    network: FakeNetwork | None = None,
    folder: str | PathLike[str] | None = None,
    **sections: Any,
) -> AsyncIterator[Homeserver]:
    """A homeserver, reached by the others of `network` as long as the context lasts.

    Everything is in memory, and gone afterwards. With a `folder` it is kept there, so that a test can open the server
    again. `sections` are sections of the configuration that replace those of `config_for_tests`.
    """
    network = network or FakeNetwork()
    with tempfile.TemporaryDirectory() as temporary:
        if folder is not None:
            sections = {"database": DatabaseSection(), "blobs": BlobsSection(), **sections}
        config = config_for_tests(server_name, temporary if folder is None else folder, **sections)
        _write_key(config)
        wire = network.wire_for(server_name)
        async with Homeserver(config, wire=wire, now_ms=now_ms, inline_database=True) as hs:
            network.join(server_name, hs.app)
            try:
                yield hs
            finally:
                network.leave(server_name)


def _write_key(config: Config) -> None:
    """A signing key that depends on the server's name only: a test that is repeated signs the same."""
    path = config.data_path(config.federation.signing_key_file)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        key = SigningKey("test", sha256(config.server_name.encode()).digest())
        path.write_text(format_signing_key(key) + "\n", "ascii")


@asynccontextmanager
async def two_servers(
    first: str = "a.example", second: str = "b.example", *, network: FakeNetwork | None = None, **sections: Any
) -> AsyncIterator[tuple[Homeserver, Homeserver]]:
    """Two homeservers that reach each other over `network`: `async with two_servers() as (a, b)`."""
    network = network or FakeNetwork()
    async with (
        one_server(first, network=network, **sections) as a,
        one_server(second, network=network, **sections) as b,
    ):
        yield a, b


def run(test: Callable[[], Awaitable[T]], *, instruments: Sequence[Instrument] = ()) -> T:
    """Does the same as `trio.run`, under a clock that jumps to the next deadline whenever nothing is left to do.

    `await trio.sleep(3600)` takes no time. The servers' time of day follows.
    """
    return trio.run(test, clock=MockClock(autojump_threshold=0), instruments=instruments)
