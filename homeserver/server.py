"""Homeserver: opens, wires up, serves and closes a server. The only place that wires.

async with Homeserver(Config(server_name="a.example", data_dir="data")) as hs:
    alice = await hs.register("alice", "a password")
    await hs.serve()
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import trio

from homeserver import authenticate, remote, sync, users
from homeserver.background import single_error, start_background
from homeserver.blobs import BlobError, Blobs
from homeserver.calls import Calls
from homeserver.client import Client
from homeserver.config import Config, ConfigError, check_files, load_application_services, server_name_of
from homeserver.database import Database, Needed, Schema, open_database
from homeserver.database.server_identity import ServerIdentity
from homeserver.errors import ClosedError
from homeserver.feature import Feature, rate_limits_of
from homeserver.features import FEATURES, account, application_services, capabilities, media, versions
from homeserver.features.search.sealing import get_index_key
from homeserver.federation.wire import Wire
from homeserver.federation.wire.internet import InternetWire, OutboundRules
from homeserver.http.asgi import App
from homeserver.http.dispatch import Dispatch
from homeserver.http.listener import Bound, serve
from homeserver.http.measuring import measure_loop_lag, register_metrics
from homeserver.limits.search import INDEX_MEMORY_BYTES_MAX
from homeserver.pages import make_pages
from homeserver.pages.files import Files
from homeserver.portability.schema import SCHEMA as PORTABILITY_SCHEMA
from homeserver.process.outages import Outages
from homeserver.process.rate_limits import RateLimits
from homeserver.process.token_cache import TokenCache
from homeserver.process.workers import Service, Workers
from homeserver.remote.schema import SCHEMA as REMOTE_SCHEMA
from homeserver.resources import Resources
from homeserver.rooms import SCHEMAS as ROOM_SCHEMAS
from homeserver.rooms.archive.blocks import BlocksNeeded
from homeserver.rooms.archive.fetching import fetch_blocks
from homeserver.rooms.keys import list_needed_masters
from homeserver.rooms.master_keys import check_keys, claim, open_master_keys
from homeserver.rooms.policy import PolicySignatureNeeded
from homeserver.sync import Syncs
from homeserver.users.accounts import create_account, find_local
from homeserver.users.administration import set_password
from homeserver.users.application_services import find_asserted
from homeserver.users.filters import find_filter
from homeserver.websocket import Sockets

T = TypeVar("T")

_log = logging.getLogger(__name__)


def wall_clock_ms() -> int:
    """Returns milliseconds since 1970 by the machine's clock."""
    return time.time_ns() // 1_000_000


class Homeserver:
    """One homeserver, from `async with` to its end. Any number of them can live in one process.

    wire, now_ms, inline_database: the three sources of nondeterminism (other servers, the time of day and threads).
    They are real unless replaced.
    features: the parts of the specification to serve; all of them by default.
    beside: for administrative connections while a server may be running on the same database. No background work runs.
    """

    def __init__(
        self,
        config: Config,
        *,
        wire: Wire | None = None,
        now_ms: Callable[[], int] = wall_clock_ms,
        inline_database: bool = False,
        features: Sequence[Feature] = FEATURES,
        beside: bool = False,
    ) -> None:
        self.config = config
        self._wire = wire
        self._now_ms = now_ms
        self._inline = inline_database
        self._features = features
        self._beside = beside
        self._stack = AsyncExitStack()
        self._stop = trio.Event()
        self._renewal = trio.lowlevel.ParkingLot()
        self._resources: Resources | None = None
        self._app: App | None = None
        self._calls: Calls | None = None
        self._was_opened = False
        self._has_served = False

    async def __aenter__(self) -> Self:
        """Opens what the server needs. Raises ConfigError or DatabaseError with a sentence about what is wrong."""
        if self._was_opened:
            raise RuntimeError("A homeserver is opened once. Make a new Homeserver to open it again.")
        self._was_opened = True
        try:
            await self._open()
        except BaseException:  # cancelled as well: what is open already has to be closed
            await self._stack.aclose()  # no cancel scope around it: the stack may hold a nursery, which must end first
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._calls is not None:
            self._calls.close()
        try:
            # The body's own exception propagates unwrapped: it is not an error of the server's nursery.
            await self._stack.__aexit__(None, None, None)
        except BaseExceptionGroup as group:  # how the nursery wraps a failure in the background
            raise single_error(group) from None
        finally:
            self._resources = self._app = self._calls = None

    @property
    def app(self) -> App:
        """The server as an ASGI application, to be mounted wherever ASGI is served on trio."""
        return self._opened(self._app)

    @property
    def resources(self) -> Resources:
        """The `hs` that handlers receive, for programs that extend the server."""
        return self._opened(self._resources)

    @property
    def server_name(self) -> str:
        """The domain of the server's users and signatures."""
        return self.config.server_name

    async def serve(
        self, *, share_ports: bool = False, task_status: trio.TaskStatus[list[Bound]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves the configured listeners until `stop` is called. Raises ConfigError if one cannot listen.

        `bound = await nursery.start(hs.serve)` returns the addresses that it listens on. A server can serve only once.
        share_ports: several processes that are nodes of one server may listen on the same ports.
        """
        app = self.app
        if self._has_served:
            raise RuntimeError("This homeserver is already serving or has been stopped. Open a new one to serve again.")
        self._has_served = True
        try:
            await serve(
                app, self.config.listeners, stop=self._stop, share_ports=share_ports, renewal=self._renewal,
                task_status=task_status,
            )  # fmt: skip
        except BaseExceptionGroup as group:
            raise single_error(group) from None

    def retire(self) -> None:
        """Makes the health check say that the server is about to stop. It goes on serving until `stop`."""
        self.resources.is_ready = False

    def stop(self) -> None:
        """Ends `serve`: pending requests are answered, new ones are not accepted."""
        self._stop.set()

    def renew_certificates(self) -> None:
        """Reloads the listeners' certificates now, if their files have changed."""
        self._renewal.unpark_all()

    async def register(
        self, localpart: str, password: str | None = None, *, admin: bool = False, exist_ok: bool = False
    ) -> Client:
        """Creates an account and logs it in. An account without a password can be used in this process only.

        Raises MatrixError if the name is taken. With `exist_ok` it logs in the existing account instead, without
        changing its password or its rights.
        """
        hs = self.resources
        _check_text(localpart=localpart, password="" if password is None else password)
        user_id = await create_account(hs, localpart, password, admin=admin, exist_ok=exist_ok)
        return await self.log_in(user_id)

    async def log_in(self, user: str, device_id: str = "EMBEDDED") -> Client:
        """Returns a client for an account of this server, in this process. `user` is "alice" or "@alice:example.org".

        Raises MatrixError if there is no such account, or if it is deactivated.
        """
        hs = self.resources
        _check_text(user=user, device_id=device_id)
        return await Client.open(hs, self._opened(self._calls), find_local(hs, user), device_id)

    async def set_password(self, user: str, password: str | None, *, logout_devices: bool = True) -> None:
        """Replaces a password and, by default, logs the user out everywhere. None disables login by password."""
        hs = self.resources
        _check_text(user=user, password="" if password is None else password)
        await set_password(hs, find_local(hs, user), password, logout_devices=logout_devices)

    async def deactivate(self, user: str, *, erase: bool = False) -> None:
        """Deactivates an account for good: it leaves its rooms, can no longer log in, and its name stays taken.

        erase: also redact the user's messages for people who join their rooms later, see docs/erasure.md.
        """
        hs = self.resources
        _check_text(user=user)
        await account.deactivate(hs, find_local(hs, user), erase=erase)

    def _opened(self, part: T | None) -> T:
        """Returns a part of the server. Raises RuntimeError if the server is not open yet, ClosedError afterwards."""
        if part is not None:
            return part
        if self._was_opened:
            raise ClosedError
        raise RuntimeError("The homeserver is not open. Use it inside `async with Homeserver(config) as hs:`.")

    async def _open(self) -> None:
        config = self.config
        for said in check_files(config):
            raise ConfigError(said)
        sockets = Sockets(Syncs(self._features, find_filter))
        features = all_features(self._features, sockets)
        database = await open_data(
            config, inline=self._inline, exclusive=not self._beside, now_ms=self._now_ms, features=self._features
        )
        self._stack.push_async_callback(database.aclose)
        identity = await _open_identity(config, database)
        workers = Workers(inline=self._inline)
        self._stack.push_async_callback(workers.aclose)
        search = await self._open_search(database)
        if search is not None:
            self._stack.push_async_callback(search.aclose)
        wire = self._wire
        if wire is None:
            wire = internet = _open_internet(config)
            self._stack.push_async_callback(internet.aclose)
        nursery = await self._stack.enter_async_context(trio.open_nursery())
        self._stack.callback(nursery.cancel_scope.cancel)
        self._resources = Resources(
            config=config,
            server_name=identity.name,
            signing_key=identity.signing_key,
            database=database,
            stream=database.stream,
            blobs=await _open_blobs(config, database.outages, inline=self._inline, beside=self._beside),
            workers=workers,
            wire=wire,
            now_ms=self._now_ms,
            nursery=nursery,
            heartbeats=identity.heartbeats,
            application_services=identity.application_services,
            outages=database.outages,
            token_cache=TokenCache(),
            rate_limits=RateLimits(rate_limits_of(features)),
            search=search,
            forgetters=_all_of(feature.forget_user for feature in features),
            room_forgetters=_all_of(feature.forget_room for feature in features),
            file_forgetters=_all_of(feature.forget_files for feature in features),
        )
        database.get_needed_by(partial(_give_needed, self._resources))
        nursery.start_soon(database.outages.watch)
        register_metrics(self._resources)
        resources = self._resources
        self._app = App(
            Dispatch(
                resources,
                [operation for feature in features for operation in feature.routes],
                identify_origin=remote.identify_origin if config.federation.enabled else authenticate.refuse_origin,
                find_appservice=find_asserted,
            ),
            websocket=sockets.serve_asgi,
            upgrade=sockets.take_over,
            pages=lambda: make_pages(resources, Files(media.upload, media.download)),
        )
        sockets.open(self._app.dispatch)
        self._calls = Calls(self._app.dispatch)
        if not self._beside:
            nursery.start_soon(measure_loop_lag, self._app.dispatch)
            start_background(self._resources, features)

    async def _open_search(self, database: Database) -> Service | None:
        """Returns the index; its process starts with the first call."""
        if not self.config.search.enabled:
            return None
        folder = str(self.config.data_path("search"))
        return Service(
            "homeserver.search.service:Service",
            folder,
            self.config.search.engine,
            memory_bytes=INDEX_MEMORY_BYTES_MAX,
            inline=self._inline,
            first_call=("unlock", await get_index_key(database, self.config)),
        )


async def _open_identity(config: Config, database: Database) -> ServerIdentity:
    """Returns what reads and writes know about this server, once it is sure that the database is this server's."""
    signing_key = await remote.open_identity(config, database)
    master_keys = await open_master_keys(config, database)
    services = load_application_services(server_name_of(config), config.application_services.files)
    identity = ServerIdentity(server_name_of(config), signing_key, config, master_keys, services)
    database.serve_as(identity)
    if not await database.read(list_needed_masters):
        await database.note(claim)
        check_keys(await database.read(list_needed_masters), master_keys)  # another node may have been faster
    return identity


async def _give_needed(hs: Resources, needed: Needed) -> Mapping[Hashable, object]:
    """Returns what a read or write of the database needs from elsewhere."""
    if isinstance(needed, BlocksNeeded):
        return await fetch_blocks(hs.blobs, hs.workers, needed.wanted)
    assert isinstance(needed, PolicySignatureNeeded), needed
    return {needed.key: await remote.give_signature(hs, needed)}


async def open_data(
    config: Config,
    *,
    inline: bool = False,
    exclusive: bool = True,
    now_ms: Callable[[], int] = wall_clock_ms,
    features: Sequence[Feature] = FEATURES,
) -> Database:
    """Opens the server's database with the tables of the features. Creates the data folder if it does not exist.

    exclusive: see `open_database`. Raises ConfigError or DatabaseError.
    """
    _make_data_dir(config.data_path(""))
    return await open_database(
        database_url(config), all_schemas(features), inline=inline, exclusive=exclusive, now_ms=now_ms
    )


def _all_of(hooks: Iterable[T | None]) -> tuple[T, ...]:
    """Returns the hooks of those features that have one."""
    return tuple(hook for hook in hooks if hook is not None)


def _check_text(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, str):
            raise TypeError(f"{name} must be a str, not {type(value).__name__}.")


def all_features(features: Sequence[Feature] = FEATURES, sockets: Sockets | None = None) -> list[Feature]:
    """Returns the features, and the six that are generated from their declarations."""
    sockets = sockets or Sockets(Syncs(features, find_filter))
    served = [
        *features,
        sync.feature_of(sockets.syncs),
        sockets.feature(),
        remote.feature_of(features),
        application_services.feature_of(features),
    ]
    return [*served, versions.feature_of(served), capabilities.feature_of(served)]


def all_schemas(features: Sequence[Feature] = FEATURES) -> list[Schema]:
    """Returns the tables of the core and of all features."""
    schemas = [feature.schema for feature in features if feature.schema is not None]
    schemas.append(application_services.SCHEMA)
    return [authenticate.SCHEMA, *ROOM_SCHEMAS, *users.SCHEMAS, *schemas, REMOTE_SCHEMA, PORTABILITY_SCHEMA]


def database_url(config: Config) -> str:
    """Returns the URL of the database, with an absolute path if it is a file."""
    kind, _, path = config.database.url.partition(":")
    return config.database.url if kind != "sqlite" or path == ":memory:" else f"sqlite:{config.data_path(path)}"


def blobs_url(config: Config) -> str:
    """Returns the URL of the blob storage, with an absolute path if it is a folder."""
    kind, _, path = config.blobs.url.partition(":")
    return config.blobs.url if kind != "file" else f"file:{config.data_path(path)}"


def _make_data_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data_dir: cannot create the folder {path}: {error.strerror}") from error


async def _open_blobs(config: Config, outages: Outages, *, inline: bool, beside: bool) -> Blobs:
    blobs = Blobs(blobs_url(config), inline=inline, outages=outages)
    if not beside:  # a folder created by an administrator's process might not be accessible to the server's user
        try:
            await blobs.prepare()
        except BlobError as error:
            raise ConfigError(f"blobs.url: {error}") from error
    return blobs


def _open_internet(config: Config) -> InternetWire:
    federation, outbound = config.federation, config.outbound_http
    try:
        return InternetWire(
            federation.ca_file,
            federation.verify_tls,
            federation.allow_private_addresses,
            outbound=OutboundRules(outbound.ca_file, outbound.verify_tls, outbound.allow_private_addresses),
        )
    except ssl.SSLError as error:
        raise ConfigError(f"{_ca_files(config)}: there is no PEM certificate in it") from error
    except OSError as error:
        raise ConfigError(f"{_ca_files(config)}: cannot read it: {error.strerror}") from error


def _ca_files(config: Config) -> str:
    named = {"federation": config.federation.ca_file, "outbound_http": config.outbound_http.ca_file}
    return " or ".join(f"{section}.ca_file {path}" for section, path in named.items() if path)
