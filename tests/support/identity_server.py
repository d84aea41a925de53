"""An identity server on a fake network, as far as homeservers use it. It refuses what the spec does not allow.

identity = IdentityServer.on(federation.network)
await alice.ok("POST", f"rooms/{room_id}/invite", json=identity.invite("bob@mail.example"))
status, answer = await identity.bind("bob@mail.example", bob.user_id)

Spec: identity-service-api
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Self
from urllib.parse import parse_qs

from homeserver.federation.identifiers import ServerName, server_name_of
from homeserver.federation.request_auth import parse_authorization, verify
from homeserver.federation.signing import SigningKey, encode_base64, sign_json
from homeserver.federation.wire import WireRequest
from homeserver.testing import FakeNetwork
from tests.support.people import Json
from tests.support.wires import send

V2 = "/_matrix/identity/v2/"
TOKEN = "identity_token"
REQUIRED = {"medium": str, "address": str, "room_id": str, "sender": str}
OPTIONAL = (
    "room_alias", "room_avatar_url", "room_join_rules", "room_name", "sender_display_name", "sender_avatar_url",
    "room_type",
)  # fmt: skip


@dataclass(slots=True)
class IdentityServer:
    """`stored`: the bodies of /store-invite. `revoked`: public keys that are not valid any more.

    validated: the address of each complete validation, by its ID and client secret. homeservers: those it knows.

    answers: what to answer instead, by the last part of the path, as (status, JSON) or (status, bytes).
    """

    network: FakeNetwork
    name: str
    owners: dict[tuple[str, str], str] = field(default_factory=dict)
    stored: list[Json] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    algorithms: list[str] = field(default_factory=lambda: ["none", "sha256"])
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    revoked: set[str] = field(default_factory=set)
    validated: dict[tuple[str, str], str] = field(default_factory=dict)
    homeservers: dict[ServerName, SigningKey] = field(default_factory=dict)
    pepper: str = "matrixrocks"
    _tokens: dict[str, Json] = field(default_factory=dict)
    _ephemeral: dict[str, SigningKey] = field(default_factory=dict)

    @classmethod
    def on(cls, network: FakeNetwork, name: str = "identity.example") -> Self:
        """An identity server that others reach under this name."""
        server = cls(network, name)
        network.join(name, server.app)
        return server

    @property
    def key(self) -> SigningKey:
        """The long-term key."""
        return SigningKey("0", self.name.encode().ljust(32, b"\2")[:32])

    def invite(self, address: str, **other: Any) -> Json:
        """The body of a request to invite somebody by email address."""
        return {
            "id_server": self.name, "id_access_token": TOKEN, "medium": "email", "address": address, **other,
        }  # fmt: skip

    # What homeservers ask

    async def app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        path = scope["path"].removeprefix(V2)
        self.asked.append(path)
        query = parse_qs(scope["query_string"].decode())
        content = json.loads(body) if body else None
        status, answer = self.answers.get(path) or self._answer(scope["method"], path, query, headers, content)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        sent = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": data})

    def _answer(
        self, method: str, path: str, query: dict[str, list[str]], headers: dict[str, str], content: Any
    ) -> tuple[int, Json]:
        if method == "GET" and path == "pubkey/isvalid":
            return 200, {"valid": query["public_key"] == [self.key.verify_key_base64] and not self._is_revoked(query)}
        if method == "GET" and path == "pubkey/ephemeral/isvalid":
            return 200, {"valid": query["public_key"][0] in self._ephemeral and not self._is_revoked(query)}
        if method == "POST" and path == "3pid/unbind":
            return self._unbind(headers["authorization"], content)
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return 401, {"errcode": "M_UNAUTHORIZED", "error": "Unrecognised access token."}
        if method == "GET" and path == "hash_details":
            return 200, {"lookup_pepper": self.pepper, "algorithms": self.algorithms}
        if method == "POST" and path == "3pid/bind":
            return self._bind(content)
        if method == "POST" and path == "lookup":
            return self._look_up(content)
        if method == "POST" and path == "store-invite":
            return self._store(content)
        return 404, {"errcode": "M_UNRECOGNIZED", "error": "No such request."}

    def _bind(self, content: Any) -> tuple[int, Json]:
        address = self.validated.get((content["sid"], content["client_secret"]))
        if address is None:
            return 404, {"errcode": "M_NO_VALID_SESSION", "error": "No such validation."}
        self.owners["email", address] = content["mxid"]
        return 200, {"medium": "email", "address": address, "mxid": content["mxid"]}

    def _unbind(self, authorization: str, content: Any) -> tuple[int, Json]:
        credentials = parse_authorization(authorization)
        assert credentials.origin == server_name_of(content["mxid"])
        key = self.homeservers[credentials.origin].verify_key_base64
        if not verify(credentials, "POST", f"{V2}3pid/unbind", ServerName(self.name), content, key):
            return 403, {"errcode": "M_FORBIDDEN", "error": "Wrong signature."}
        threepid = content["threepid"]
        self.owners.pop((threepid["medium"], threepid["address"]), None)
        return 200, {}

    def _is_revoked(self, query: dict[str, list[str]]) -> bool:
        return query["public_key"][0] in self.revoked

    def _look_up(self, content: Any) -> tuple[int, Json]:
        assert content.keys() == {"algorithm", "pepper", "addresses"}, content
        if content["pepper"] != self.pepper:
            return 400, {"errcode": "M_INVALID_PEPPER", "error": "Unknown or invalid pepper."}
        if content["algorithm"] not in self.algorithms:
            return 400, {"errcode": "M_INVALID_PARAM", "error": "Unknown algorithm."}
        known = {self._hash(content["algorithm"], *each): owner for each, owner in self.owners.items()}
        return 200, {"mappings": {each: known[each] for each in content["addresses"] if each in known}}

    def _hash(self, algorithm: str, medium: str, address: str) -> str:
        if algorithm == "none":
            return f"{address} {medium}"
        digest = sha256(f"{address} {medium} {self.pepper}".encode()).digest()
        return encode_base64(digest).replace("+", "-").replace("/", "_")

    def _store(self, content: Any) -> tuple[int, Json]:
        assert all(isinstance(content[name], kind) for name, kind in REQUIRED.items()), content
        assert all(isinstance(content.get(name, ""), str) for name in OPTIONAL), content
        assert content.keys() <= {*REQUIRED, *OPTIONAL}, content
        if content["medium"] != "email":
            return 400, {"errcode": "M_UNRECOGNIZED", "error": "Only email addresses."}
        owner = self.owners.get((content["medium"], content["address"]))
        if owner is not None:
            return 400, {"errcode": "M_THREEPID_IN_USE", "error": "Binding already known", "mxid": owner}
        token = f"token{len(self.stored)}"
        self.stored.append(content)
        self._tokens[token] = content
        ephemeral = SigningKey("e", token.encode().ljust(32, b"\3")[:32])
        self._ephemeral[ephemeral.verify_key_base64] = ephemeral
        base = f"https://{self.name}{V2}pubkey"
        keys = [
            {"public_key": self.key.verify_key_base64, "key_validity_url": f"{base}/isvalid"},
            {"public_key": ephemeral.verify_key_base64, "key_validity_url": f"{base}/ephemeral/isvalid"},
        ]
        return 200, {"token": token, "public_keys": keys, "display_name": content["address"][0] + "..."}

    # What it tells homeservers

    def sign(self, token: str, user_id: str, **other: Any) -> Json:
        """The proof that the user is the one whom the invite is for."""
        return sign_json({"mxid": user_id, "token": token, **other}, self.name, self.key)

    def binding(self, address: str, user_id: str, invites: list[Json] | None = None) -> Json:
        """The notification that the address belongs to the user, with its pending invites or those given."""
        pending = [
            {**{name: stored[name] for name in REQUIRED}, "mxid": user_id, "signed": self.sign(token, user_id)}
            for token, stored in self._tokens.items()
            if stored["address"] == address
        ]
        invites = pending if invites is None else invites
        return {"medium": "email", "address": address, "mxid": user_id, "invites": invites}

    async def bind(self, address: str, user_id: str) -> tuple[int, Any]:
        """Gives the address to the user and notifies the user's homeserver. Returns status and JSON of its answer."""
        self.owners["email", address] = user_id
        return await self.notify(server_name_of(user_id), self.binding(address, user_id))

    async def notify(self, destination: str, content: Any) -> tuple[int, Any]:
        """Sends a notification, also one that is not right."""
        headers = {"content-type": "application/json"}
        request = WireRequest("PUT", "/_matrix/federation/v1/3pid/onbind", headers, json.dumps(content).encode())
        wire = self.network.wire_for(self.name)
        response = await send(wire, ServerName(destination), request, timeout_s=120, max_bytes=1 << 20)
        return response.status, json.loads(response.body)
