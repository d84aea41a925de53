"""A client that logs in by the OAuth 2.0 API, and the person who lets it in, without any page.

app = await register_app(server)
session = await app.log_in("@alice:test.example")
await session.client.ok("GET", "account/whoami")
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

from homeserver.federation.identifiers import UserID
from homeserver.users.oauth.requests import AuthorizationRequest, read_request, store_code
from tests.support.homeservers import Client, Server

REGISTER = "/_homeserver/oauth/register"
TOKEN = "/_homeserver/oauth/token"
REVOKE = "/_homeserver/oauth/revoke"
DEVICE = "/_homeserver/oauth/device"
DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"

CALLBACK = "https://app.example.com/callback"
VERIFIER = "a-verifier-of-43-characters-or-more-is-needed"
METADATA: Mapping[str, Any] = {
    "client_name": "An App",
    "client_uri": "https://example.com/",
    "redirect_uris": [CALLBACK],
    "token_endpoint_auth_method": "none",
    "response_types": ["code"],
    "grant_types": ["authorization_code", "refresh_token", DEVICE_CODE],
    "application_type": "web",
}


def challenge_of(verifier: str) -> str:
    """The S256 challenge of a PKCE verifier."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def scope_of(device_id: str) -> str:
    """The scope of a log-in on that device."""
    return f"urn:matrix:client:api:* urn:matrix:client:device:{device_id}"


async def post_form(server: Server, path: str, **fields: str) -> httpx.Response:
    """The answer to a form."""
    return await server.anonymous.post(path, content=urlencode(fields).encode())


async def refused(server: Server, path: str, **fields: str) -> tuple[int, str]:
    """Status and OAuth error of an answer that must not be 2xx."""
    answer = await post_form(server, path, **fields)
    assert answer.status_code >= 400, answer.text
    return answer.status_code, answer.json()["error"]


@dataclass(frozen=True)
class Session:
    """Tokens as a client got them."""

    server: Server
    client_id: str
    body: Mapping[str, Any]

    @property
    def client(self) -> Client:
        return self.server.with_token(self.body["access_token"])

    @property
    def refresh_token(self) -> str:
        token: str = self.body["refresh_token"]
        return token

    async def refresh(self) -> Session:
        """The session with its next tokens."""
        answer = await self.send_refresh()
        assert answer.status_code == 200, answer.text
        return Session(self.server, self.client_id, answer.json())

    async def send_refresh(self) -> httpx.Response:
        """The answer to the exchange of the refresh token."""
        fields = {"grant_type": "refresh_token", "refresh_token": self.refresh_token, "client_id": self.client_id}
        return await post_form(self.server, TOKEN, **fields)

    async def send_revocation(self, kind: str = "access_token") -> httpx.Response:
        """The answer to the revocation of one of the tokens."""
        fields = {"token": self.body[kind], "token_type_hint": kind, "client_id": self.client_id}
        return await post_form(self.server, REVOKE, **fields)


@dataclass(frozen=True)
class App:
    """A registered client."""

    server: Server
    client_id: str
    redirect_uri: str = CALLBACK

    def request(self, device_id: str = "APPDEVICE1", **changes: str | None) -> dict[str, list[str]]:
        """The parameters of an authorization request; None leaves one out."""
        fields: dict[str, str | None] = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": scope_of(device_id),
            "state": "a state",
            "response_mode": "query",
            "code_challenge": challenge_of(VERIFIER),
            "code_challenge_method": "S256",
            **changes,
        }
        return {name: [value] for name, value in fields.items() if value is not None}

    async def read(self, device_id: str = "APPDEVICE1", **changes: str | None) -> AuthorizationRequest:
        """The request as the account page reads it."""
        request: AuthorizationRequest = await self.server.read(read_request, self.request(device_id, **changes))
        return request

    async def get_code(self, user_id: UserID, device_id: str = "APPDEVICE1", **changes: str | None) -> str:
        """The code that the client gets if that user lets it in."""
        request = await self.read(device_id, **changes)
        return parse_qs(urlsplit(await self.server.write(store_code, request, user_id)).query)["code"][0]

    def exchange_fields(self, code: str, **changes: str) -> dict[str, str]:
        """The form of the exchange of a code."""
        return {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "client_id": self.client_id,
            "code_verifier": VERIFIER,
            **changes,
        }

    async def log_in(self, user_id: UserID, device_id: str = "APPDEVICE1") -> Session:
        """A session of that user."""
        code = await self.get_code(user_id, device_id)
        answer = await post_form(self.server, TOKEN, **self.exchange_fields(code))
        assert answer.status_code == 200, answer.text
        return Session(self.server, self.client_id, answer.json())


async def register_app(server: Server, **metadata: Any) -> App:
    """Registers a client: that of METADATA, with these changes."""
    answer = await server.anonymous.post(REGISTER, json={**METADATA, **metadata})
    assert answer.status_code == 201, answer.text
    return App(server, answer.json()["client_id"], (*answer.json()["redirect_uris"], "")[0])
