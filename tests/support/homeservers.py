"""Whole homeservers in the process of the test, without sockets, and clients whose every answer is held to the spec.

    async def test_something(homeserver):
        alice = await homeserver.register("alice")
        answer = await alice.get("account/whoami")
        assert answer.json()["user_id"] == "@alice:test.example"

The time is trio's virtual clock: `trio.sleep(3600)` takes no time, and `now_ms()` follows it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from json import dumps as dump_json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from homeserver import sync, users
from homeserver.authenticate import SCHEMA as AUTHENTICATE
from homeserver.background import start_background
from homeserver.blobs import Blobs
from homeserver.config import BlobsSection, Config, DatabaseSection
from homeserver.database import Transaction, open_database
from homeserver.database.server_identity import ServerIdentity
from homeserver.feature import Feature, rate_limits_of
from homeserver.features import (
    account,
    account_data,
    administration,
    capabilities,
    contact_information,
    devices,
    encryption_keys,
    filters,
    login,
    logout,
    presence,
    profile,
    push_rules,
    refresh,
    registration,
    shared_secret_registration,
    tags,
    third_party_networks,
    versions,
    well_known,
    whoami,
)
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.federation.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS
from homeserver.federation.signing import SigningKey
from homeserver.federation.wire import Wire, WireError, WireRequest
from homeserver.http.asgi import App
from homeserver.http.dispatch import Dispatch
from homeserver.process.rate_limits import RateLimits
from homeserver.process.workers import Workers
from homeserver.resources import Resources
from homeserver.rooms import SCHEMAS as ROOMS
from homeserver.rooms.append import append_create, append_local
from homeserver.server import Homeserver, all_schemas
from homeserver.testing import config_for_tests as in_memory_config
from homeserver.testing import now_ms
from homeserver.users.filters import find_filter
from homeserver.users.profile import get_member_profile
from tests.support.archive import prepare_archive
from tests.support.contract import check_response
from tests.support.engine import DATABASE_FILE, file_url, make_file, memory_url
from tests.support.exchange import exchange
from tests.support.sealing import MASTER_KEYS

CLIENT_API = "/_matrix/client/v3/"

FEATURES = tuple(
    module.FEATURE
    for module in (
        account, account_data, administration, contact_information, devices, encryption_keys, filters,
        login, logout, presence, profile, push_rules, refresh, registration, shared_secret_registration,
        tags, third_party_networks, well_known, whoami,
    )
)  # fmt: skip

NOBODY = UserID("")
PLAIN_TARGET = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/?-]*(?:%[0-9A-F]{2}[A-Za-z0-9._~!$&'()*+,;=:@/?-]*)*")
"""A path and query that httpx sends as they are."""
CLIENT_IP = "192.0.2.7"
PASSWORD = "correct horse battery staple"


def config_for_tests(server_name: str, folder: Path, **sections: Any) -> Config:
    """Like `homeserver.testing.config_for_tests`, on the database that the tests run on, and with files on disk."""
    chosen: dict[str, Any] = {"database": DatabaseSection(url=file_url(folder / server_name)), "blobs": BlobsSection()}
    return in_memory_config(server_name, folder, **{**chosen, **sections})


@dataclass(slots=True)
class Client:
    """Speaks to one homeserver, with an access token or without. Paths are those behind `/_matrix/client/v3/`."""

    server: Server
    token: str | None = None
    user_id: UserID = NOBODY
    device_id: str = ""

    async def request(self, method: str, path: str, *, json: Any = None, **options: Any) -> httpx.Response:
        """The answer, once it has been checked against the spec. `json` None sends no body."""
        if not path.startswith("/"):
            path = CLIENT_API + path
        headers = options.pop("headers", {})
        if self.token is not None:
            headers = {"authorization": f"Bearer {self.token}", **headers}
        content = options.get("content", b"")
        if PLAIN_TARGET.fullmatch(path) and isinstance(content, bytes) and options.keys() <= {"content"}:
            if json is not None:
                content = dump_json(json, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
                headers = {"content-type": "application/json", **headers}
            return await self._exchange(method, path, headers, content)
        if json is not None:
            options["json"] = json
        response = await self.server.http.request(method, path, headers=headers, **options)
        sent_path = response.request.url.raw_path.decode("ascii")
        check_response(method, sent_path, response.status_code, response.content, response.headers)
        return response

    async def _exchange(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> httpx.Response:
        """Sends the request as httpx would. What that does around it takes longer than many an answer."""
        path, _, query = target.encode().partition(b"?")
        sent = {"host": self.server.name, **headers}
        if body or method in ("POST", "PUT", "PATCH"):
            sent.setdefault("content-length", str(len(body)))
        raw = [(name.lower().encode(), value.encode()) for name, value in sent.items()]
        status, told, data = await exchange(
            self.server.app, method, path, query, raw, body, server=self.server.name, client=(CLIENT_IP, 4711)
        )
        response = httpx.Response(status, headers=told, content=b"" if method == "HEAD" else data)
        check_response(method, target, status, response.content, response.headers)
        return response

    async def get(self, path: str, **options: Any) -> httpx.Response:
        return await self.request("GET", path, **options)

    async def put(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.request("PUT", path, json=json, **options)

    async def post(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.request("POST", path, json=json, **options)

    async def delete(self, path: str, json: Any = None, **options: Any) -> httpx.Response:
        return await self.request("DELETE", path, json=json, **options)

    async def ok(self, method: str, path: str, *, json: Any = None, **options: Any) -> Any:
        """The JSON of an answer that must be 200."""
        response = await self.request(method, path, json=json, **options)
        assert response.status_code == 200, f"{method} {path}: {response.status_code} {response.text}"
        return response.json()

    async def refused(self, method: str, path: str, *, json: Any = None, **options: Any) -> tuple[int, str]:
        """Status and errcode of an answer that must not be 2xx."""
        response = await self.request(method, path, json=json, **options)
        assert response.status_code >= 400, f"{method} {path}: {response.status_code} {response.text}"
        return response.status_code, response.json().get("errcode", "")

    def password_auth(self, session: str | None = None, password: str = PASSWORD) -> dict[str, Any]:
        """An `auth` object of the stage m.login.password."""
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.user_id},
            "password": password,
        }
        return auth if session is None else {**auth, "session": session}


@dataclass(slots=True)
class Server:
    """A running homeserver and how to speak to it. `hs` is what its handlers get."""

    hs: Resources
    app: App
    http: httpx.AsyncClient
    anonymous: Client = field(init=False)

    def __post_init__(self) -> None:
        self.anonymous = Client(self)

    @property
    def name(self) -> ServerName:
        return self.hs.server_name

    async def register(self, localpart: str, password: str = PASSWORD, **fields: Any) -> Client:
        """A new user, logged in."""
        body = {"username": localpart, "password": password, "auth": {"type": "m.login.dummy"}, **fields}
        return self._logged_in(await self.anonymous.ok("POST", "register", json=body))

    async def log_in(self, user: str, password: str = PASSWORD, **fields: Any) -> Client:
        """A further device of a user."""
        identifier = {"type": "m.id.user", "user": user}
        body = {"type": "m.login.password", "identifier": identifier, "password": password, **fields}
        return self._logged_in(await self.anonymous.ok("POST", "login", json=body))

    def with_token(self, token: str | None) -> Client:
        """A client with that access token."""
        return Client(self, token)

    async def make_room(self, creator: Client, *members: Client) -> RoomID:
        """A public room with these members, made without the API."""
        room_id: RoomID = await self.write(_make_room, creator.user_id, [each.user_id for each in members])
        return room_id

    async def join(self, client: Client, room_id: RoomID) -> None:
        """Takes a user into a public room, without the API."""
        await self.write(_join, client.user_id, room_id)

    def _logged_in(self, answer: dict[str, Any]) -> Client:
        return Client(self, answer["access_token"], UserID(answer["user_id"]), answer["device_id"])

    async def read(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """fn(tx, …) on the server's database."""
        return await self.hs.database.read(partial(_call, fn, kwargs), *args)

    async def write(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """fn(tx, …) in a write of the server's database."""
        return await self.hs.database.write(partial(_call, fn, kwargs), *args)


def _call(fn: Callable[..., Any], kwargs: dict[str, Any], tx: Transaction, *args: Any) -> Any:
    return fn(tx, *args, **kwargs)


def _make_room(tx: Transaction, creator: UserID, members: Sequence[UserID]) -> RoomID:
    version = ROOM_VERSIONS[DEFAULT_ROOM_VERSION]
    # The position makes the content, and so the room id, unlike that of another room of the same millisecond.
    content = {"room_version": version.id, "org.example.position": tx.position}
    create = Draft(None, creator, "m.room.create", content, state_key="")
    room_id = append_create(tx, create, version).room_id

    def say(sender: UserID, event_type: str, state_key: str, **content: Any) -> None:
        append_local(tx, Draft(room_id, sender, event_type, content, state_key=state_key))

    _join(tx, creator, room_id)
    say(creator, "m.room.power_levels", "", users={})
    say(creator, "m.room.join_rules", "", join_rule="public")
    for member in members:
        _join(tx, member, room_id)
    return room_id


def _join(tx: Transaction, user_id: UserID, room_id: RoomID) -> None:
    content = {"membership": "join", **get_member_profile(tx, user_id)}
    append_local(tx, Draft(room_id, user_id, "m.room.member", content, state_key=user_id))


@asynccontextmanager
async def running(config: Config, *, wire: Wire, features: Sequence[Feature] | None = None) -> AsyncIterator[Server]:
    """A homeserver as long as the context lasts; with `features` one that has these alone, and everything in memory."""
    if features is None:
        if config.database.url == DATABASE_FILE:
            make_file(config.data_path(DATABASE_FILE.removeprefix("sqlite:")), all_schemas())
        async with Homeserver(config, wire=wire, now_ms=now_ms, inline_database=True) as homeserver:
            prepare_archive(homeserver.resources)
            async with _http_to(homeserver.app, config) as http:
                yield Server(homeserver.resources, homeserver.app, http)
        return
    async with _few_features(config, wire, features) as (hs, app), _http_to(app, config) as http:
        yield Server(hs, app, http)


@asynccontextmanager
async def _few_features(
    config: Config, wire: Wire, features: Sequence[Feature]
) -> AsyncIterator[tuple[Resources, App]]:
    of_features = [feature.schema for feature in features if feature.schema is not None]
    schemas = [AUTHENTICATE, *ROOMS, *users.SCHEMAS, *of_features]
    database = await open_database(memory_url(), schemas, inline=True, now_ms=now_ms)
    key = SigningKey("test", config.server_name.encode().ljust(32, b"\0")[:32])
    identity = ServerIdentity(ServerName(config.server_name), key, config, MASTER_KEYS)
    database.serve_as(identity)
    served = [*features, sync.feature_of(sync.Syncs(features, find_filter))]
    served += [versions.feature_of(served), capabilities.feature_of(served)]
    async with trio.open_nursery() as nursery:
        hs = Resources(
            config=config,
            server_name=identity.name,
            signing_key=identity.signing_key,
            database=database,
            stream=database.stream,
            blobs=Blobs("memory:", inline=True),
            workers=Workers(inline=True),
            wire=wire,
            now_ms=now_ms,
            nursery=nursery,
            heartbeats=identity.heartbeats,
            rate_limits=RateLimits(rate_limits_of(served)),
            forgetters=tuple(feature.forget_user for feature in features if feature.forget_user is not None),
        )
        app = App(Dispatch(hs, [operation for feature in served for operation in feature.routes]))
        start_background(hs, features)
        yield hs, app
        nursery.cancel_scope.cancel()
    await database.aclose()


def _http_to(app: App, config: Config) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(CLIENT_IP, 4711))
    return httpx.AsyncClient(transport=transport, base_url=f"https://{config.server_name}")


@dataclass(slots=True)
class Homeservers:
    """Starts homeservers that end with the test, each on its own: `tests.support.federation` joins several."""

    nursery: trio.Nursery
    folder: Path
    wire: Wire

    async def start(self, server_name: str = "test.example", **sections: Any) -> Server:
        """A new homeserver with everything in memory; `sections` are sections of its configuration."""
        in_memory = {"database": DatabaseSection(url=memory_url()), "blobs": BlobsSection(url="memory:")}
        config = config_for_tests(server_name, self.folder, **{**in_memory, **sections})
        server: Server = await self.nursery.start(self._run, config)
        return server

    async def _run(self, config: Config, *, task_status: trio.TaskStatus[Server]) -> None:
        async with running(config, wire=self.wire) as server:
            task_status.started(server)
            await trio.sleep_forever()


class NoWire:
    """A network on which no other server can be reached."""

    def stream(self, destination: ServerName, request: WireRequest, **_: Any) -> Any:
        raise WireError(f"{destination} cannot be reached.")

    def stream_url(self, url: str, **_: Any) -> Any:
        raise WireError(f"{url} cannot be reached.")

    def stream_page(self, url: str, **_: Any) -> Any:
        raise WireError(f"{url} cannot be reached.")

    async def request_service(self, method: str, url: str, **_: Any) -> Any:
        raise WireError(f"{url} cannot be reached.")

    async def request_url(self, method: str, url: str, **_: Any) -> Any:
        raise WireError(f"{url} cannot be reached.")


@pytest.fixture
async def homeservers(tmp_path: Path, virtual_clock: None) -> AsyncIterator[Homeservers]:
    """`await homeservers.start("a.example", registration=Registration(guests=True))`"""
    async with trio.open_nursery() as nursery:
        yield Homeservers(nursery, tmp_path, NoWire())
        nursery.cancel_scope.cancel()


@pytest.fixture
async def homeserver(homeservers: Homeservers) -> Server:
    """One homeserver, test.example."""
    return await homeservers.start()
