"""A stranger: another server that is nothing but a key and what a test has it answer. It can lie in every way there is.

mallory = Stranger(federation.network, "mallory.example")
mallory.answers["GET", "/_matrix/federation/v1/event/$x"] = {"pdus": []}
await mallory.put(a.name, "/_matrix/federation/v1/send/1", {...})
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from inspect import isawaitable
from typing import Any
from urllib.parse import quote

from homeserver.federation.build import Draft, Reference, build_event, reference_to, sign_event
from homeserver.federation.event import Event, parse_event
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID
from homeserver.federation.request_auth import authorize_body
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.server_keys import build_key_response
from homeserver.federation.signing import SigningKey
from homeserver.federation.wire import WireRequest
from homeserver.testing import FakeNetwork
from tests.support.exchange import exchange
from tests.support.federation import checked
from tests.support.homeservers import Server, now_ms
from tests.support.wires import send

Answer = Any | Callable[[str, Any], Any]
"""JSON to answer with 200, a (status, JSON) pair, or a function of the request's URI and content that gives either."""


@dataclass(slots=True)
class Stranger:
    """Joins the network at once. `answers` by method and path, without the query. `asked`: what others asked of it.

    take, take_join, take_invite: are given what others send of that, and may answer (status, JSON), also after a while.
    """

    network: FakeNetwork
    name: ServerName
    key: SigningKey = field(init=False)
    answers: dict[tuple[str, str], Answer] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    take: Callable[[Any], Any] | None = None
    take_join: Callable[[str, Any], Any] | None = None
    take_invite: Callable[[str, Any], Any] | None = None

    def __post_init__(self) -> None:
        self.key = SigningKey("stranger", self.name.encode().ljust(32, b"\1")[:32])
        self.answers["GET", "/_matrix/key/v2/server"] = self.key_response
        self.network.join(self.name, self._serve)

    def key_response(self, uri: str, content: Any) -> Any:
        return build_key_response(self.name, self.key, {}, now_ms() + 3_600_000)

    def user(self, localpart: str) -> UserID:
        return UserID(f"@{localpart}:{self.name}")

    async def _serve(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message["body"]
            if not message["more_body"]:
                break
        path = scope["raw_path"].decode()
        query = scope["query_string"].decode()
        self.asked.append((scope["method"], path))
        answer: Answer = self.answers.get((scope["method"], path))
        if answer is None and path.startswith("/_matrix/federation/v1/send/"):
            answer = (self.take(json.loads(body)) if self.take is not None else None) or {"pdus": {}}
        if answer is None and "/send_join/" in path:
            answer = self.take_join
        if answer is None and "/v2/invite/" in path:
            answer = self.take_invite
        if callable(answer):
            answer = answer(f"{path}?{query}" if query else path, json.loads(body) if body else None)
        if isawaitable(answer):
            answer = await answer
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        if answer is None:
            status, content = 404, {"errcode": "M_UNRECOGNIZED", "error": "A stranger does not know that."}
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})

    # Requests

    async def request(
        self,
        destination: str,
        method: str,
        uri: str,
        content: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Status and JSON of the answer to a request, signed unless `headers` are given."""
        body = _encode(content)
        if headers is None:
            headers = {"authorization": self._sign(method, uri, destination, body)}
        request = WireRequest(method, uri, headers, body)
        response = await send(self.network.wire_for(self.name), destination, request, timeout_s=60, max_bytes=1 << 28)
        return response.status, json.loads(response.body)

    async def put_past_the_network(self, server: Server, uri: str, content: Any) -> tuple[int, Any]:
        """Does the same as `put`, in half the time: for tests that make thousands of requests."""
        body = _encode(content) or b""
        signed = self._sign("PUT", uri, server.name, body)
        status, _, answer = await exchange(
            checked(server.app), "PUT", uri.encode(), headers=[(b"authorization", signed.encode())], body=body
        )
        return status, json.loads(answer)

    def _sign(self, method: str, uri: str, destination: str, body: bytes | None) -> str:
        return authorize_body(method, uri, self.name, ServerName(destination), self.key, body)

    async def get(self, destination: str, uri: str) -> tuple[int, Any]:
        return await self.request(destination, "GET", uri)

    async def put(self, destination: str, uri: str, content: Any) -> tuple[int, Any]:
        return await self.request(destination, "PUT", uri, content)

    async def send(
        self, destination: str, txn_id: str, pdus: Sequence[Any] = (), edus: Sequence[Any] = ()
    ) -> dict[str, Any]:
        """Sends a transaction and returns the destination's result for each PDU."""
        body = {"origin": self.name, "origin_server_ts": now_ms(), "pdus": list(pdus), "edus": list(edus)}
        status, answer = await self.put(destination, f"/_matrix/federation/v1/send/{txn_id}", body)
        assert status == 200, answer
        results: dict[str, Any] = answer["pdus"]
        return results

    # Rooms

    async def join(self, destination: str, room_id: str, localpart: str) -> Joined:
        """Enters a room as an honest server would."""
        user_id = self.user(localpart)
        versions = "&".join(f"ver={version}" for version in ROOM_VERSIONS)
        place = f"{quote(room_id, safe='')}/{quote(user_id, safe='')}"
        status, template = await self.get(destination, f"/_matrix/federation/v1/make_join/{place}?{versions}")
        assert status == 200, template
        version = ROOM_VERSIONS[template["room_version"]]
        pdu = {key: value for key, value in template["event"].items() if key != "origin"}
        if not version.event_id_is_reference_hash:
            pdu["event_id"] = f"$join{now_ms()}:{self.name}"
        event = self.sign(pdu, version)
        status, answer = await self.send_join(destination, event)
        assert status == 200, answer
        state = [parse_event(pdu, version) for pdu in answer["state"]]
        by_key = {each.key: each for each in state}
        by_key[event.key] = event
        return Joined(self, RoomID(room_id), version, user_id, event, by_key)

    async def send_join(self, destination: str, event: Event) -> tuple[int, Any]:
        place = f"{quote(event.room_id, safe='')}/{quote(event.event_id, safe='')}"
        return await self.put(destination, f"/_matrix/federation/v2/send_join/{place}", event.pdu)

    def sign(self, pdu: Mapping[str, Any], version: RoomVersion) -> Event:
        """The event of a PDU, hashed and signed."""
        return parse_event(sign_event(dict(pdu), version, self.name, self.key), version)


@dataclass(slots=True)
class Joined:
    """A room as a stranger sees it. `state` is what it knew when it joined."""

    server: Stranger
    room_id: RoomID
    version: RoomVersion
    user_id: UserID
    last: Event
    state: dict[tuple[str, str], Event]

    def event(
        self,
        event_type: str,
        content: dict[str, Any],
        *,
        state_key: str | None = None,
        sender: str | None = None,
        after: Sequence[Event | EventID] | None = None,
        auth: Sequence[tuple[str, str]] | None = None,
        depth: int | None = None,
        redacts: EventID | None = None,
    ) -> Event:
        """An event of the stranger's user after those given, by default after the last one made; not sent yet."""
        draft = Draft(
            self.room_id,
            UserID(sender or self.user_id),
            event_type,
            content,
            state_key,
            redacts=redacts,
            origin_server_ts=now_ms(),
        )
        follows = [self.last] if after is None else after
        prev_events: list[Reference] = [
            reference_to(each) if isinstance(each, Event) else (each, None) for each in follows
        ]
        keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", draft.sender)]
        if self.version.create_event_in_auth_events == "forbidden":
            keys = keys[1:]
        auth_events = [self.state[key] for key in (keys if auth is None else auth) if key in self.state]
        event = build_event(
            draft,
            self.version,
            prev_events=prev_events,
            auth_events=auth_events,
            depth=self.last.depth + 1 if depth is None else depth,
            server_name=self.server.name,
            key=self.server.key,
            event_id_opaque=f"e{now_ms()}",
        )
        self.last = event
        return event

    def text(self, text: str, **options: Any) -> Event:
        return self.event("m.room.message", {"msgtype": "m.text", "body": text}, **options)


Change = Callable[[Any], Any]


class FakeRoom:
    """A room that exists in a stranger's mind only, and that others may join by way of it."""

    def __init__(self, mallory: Stranger, version: str = "12") -> None:
        self.server = mallory
        self.version = ROOM_VERSIONS[version]
        self.creator = mallory.user("mallory")
        self.events: list[Event] = []
        self.room_id: RoomID | None = None if version == "12" else RoomID(f"!fake:{mallory.name}")
        content: dict[str, Any] = {"room_version": version}
        if self.version.create_content_has_creator:
            content["creator"] = self.creator
        create = self.say("m.room.create", content, auth=[])
        self.room_id = create.room_id
        member = self.say("m.room.member", {"membership": "join"}, state_key=self.creator, auth=[create])
        users = {} if version == "12" else {self.creator: 100}
        levels = self.say("m.room.power_levels", {"users": users}, auth=[create, member])
        self.say("m.room.join_rules", {"join_rule": "public"}, auth=[create, member, levels])

    def say(
        self, event_type: str, content: dict[str, Any], *, auth: list[Event], state_key: str = "", sender: str = ""
    ) -> Event:
        if self.version.create_event_in_auth_events == "forbidden":
            auth = [event for event in auth if event.type != "m.room.create"]
        event = build_event(
            Draft(
                self.room_id, UserID(sender or self.creator), event_type, content, state_key, origin_server_ts=now_ms()
            ),
            self.version,
            prev_events=[reference_to(event) for event in self.events[-1:]],
            auth_events=auth,
            depth=len(self.events) + 1,
            server_name=self.server.name,
            key=self.server.key,
        )
        self.events.append(event)
        return event

    def template(self, user_id: str, **changes: Any) -> dict[str, Any]:
        """An answer to make_join."""
        auth = self.events[2:4] if self.version.id == "12" else [self.events[0], *self.events[2:4]]
        event = {
            "type": "m.room.member",
            "room_id": self.room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": {"membership": "join"},
            "depth": 5,
            "prev_events": [self.events[-1].event_id],
            "auth_events": [each.event_id for each in auth],
            "origin": self.server.name,
            "origin_server_ts": 0,
            **changes,
        }
        return {"room_version": self.version.id, "event": event}

    def serve(
        self, user_id: str, *, template: Change = lambda answer: answer, answer: Change = lambda answer: answer
    ) -> list[Any]:
        """Answers the handshake of one user; what was sent to us is in the list."""
        room, user = quote(str(self.room_id), safe=""), quote(user_id, safe="")
        prefix = "/_matrix/federation"
        self.server.answers["GET", f"{prefix}/v1/make_join/{room}/{user}"] = template(self.template(user_id))
        sent: list[Any] = []

        def take(uri: str, content: Any) -> Any:
            sent.append(content)
            pdus = [event.pdu for event in self.events]
            return answer({"origin": self.server.name, "event": content, "state": pdus, "auth_chain": pdus})

        self.server.take_join = take
        return sent


def _encode(content: Any) -> bytes | None:
    """Returns a body as other servers send it: canonical, also if we would call it anything but that."""
    if content is None:
        return None
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
