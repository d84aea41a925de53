"""A provider of OpenID Connect on a fake network, and a browser. The provider refuses what the spec does not allow.

provider = OpenIDProvider.on(federation.network)
server = await federation.start("a.example", sso=[provider.settings()])
browser = Browser(server, provider)
arrived = await browser.log_in("https://client.example/")

Spec: OpenID Connect Core 1.0, Discovery 1.0; RFC 7636
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from html import unescape
from typing import Any, Self
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
from joserfc import jwk, jwt

from homeserver.testing import FakeNetwork, now_ms
from tests.support.homeservers import Server
from tests.support.people import Json

CLIENT_ID = "homeserver"
CLIENT_SECRET = "a secret: with %"
CLIENT = "https://client.example/"
CALLBACK = "/_homeserver/sso/callback"
CONTINUE = "/_homeserver/sso/continue"


@cache
def make_key(kid: str = "first") -> jwk.RSAKey:
    """A key for signatures. It takes a while to find one, so all tests share them."""
    return jwk.RSAKey.generate_key(2048, {"kid": kid, "use": "sig", "alg": "RS256"})


@dataclass(slots=True)
class OpenIDProvider:
    """claims: of the person who logs in. token: overrides claims of the ID token. answers: by path, instead of its own.

    `wait`: runs before each answer. forgets_pkce: like providers that do not know it. sign: makes an ID token.
    """

    name: str
    claims: Json = field(default_factory=lambda: {"sub": "248289761001", "preferred_username": "alice"})
    userinfo: Json = field(default_factory=dict)
    token: Json = field(default_factory=dict)
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    wait: Callable[[], Awaitable[None]] | None = None
    key: jwk.RSAKey = field(default_factory=make_key)
    sign: Callable[[Json], str] | None = None
    forgets_pkce: bool = False
    _codes: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def on(cls, network: FakeNetwork, name: str = "id.example") -> Self:
        """A provider that others reach under this name."""
        provider = cls(name)
        network.join(name, provider.app)
        return provider

    @property
    def issuer(self) -> str:
        return f"https://{self.name}"

    def settings(self, **other: Any) -> Json:
        """The section of the configuration for this provider."""
        return {
            "id": "example", "name": "Example ID", "issuer": self.issuer, "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET, "ask_for_name": False, "trusted_client_urls": [CLIENT], **other,
        }  # fmt: skip

    def let_in(self, location: str) -> str:
        """The person logs in. Returns the URL that their browser is sent back to."""
        query = dict(parse_qsl(urlsplit(location).query, strict_parsing=True))
        assert location.startswith(f"{self.issuer}/authorize?"), location
        assert query["response_type"] == "code" and "openid" in query["scope"].split()
        assert (query["client_id"], query["code_challenge_method"]) == (CLIENT_ID, "S256")
        assert len(query["state"]) >= 43 and len(query["nonce"]) >= 43
        code = f"code{len(self._codes)}"
        self._codes[code] = query
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state'], 'iss': self.issuer})}"

    async def app(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        self.asked.append(scope["path"])
        if self.wait is not None:
            await self.wait()
        status, answer = self.answers.get(scope["path"]) or self._answer(scope["path"], headers, body)
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        sent = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": sent})
        await send({"type": "http.response.body", "body": data})

    def metadata(self) -> Json:
        """Returns what it publishes about itself."""
        return {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/keys",
            "response_types_supported": ["code"],
        }

    def _answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path == "/.well-known/openid-configuration":
            return 200, self.metadata()
        if path == "/keys":
            encryption = {"kty": "RSA", "use": "enc", "kid": "first", "n": "AQAB", "e": "AQAB"}
            return 200, {"keys": [encryption, {"kty": "odd"}, self.key.as_dict(private=False)]}
        if path == "/token":
            return self._give_tokens(headers, dict(parse_qsl(body.decode(), strict_parsing=True)))
        if path == "/userinfo" and headers.get("authorization") == "Bearer access":
            return 200, {"sub": self.claims["sub"], **self.userinfo}
        return 404, {"error": "not_found"}

    def _give_tokens(self, headers: dict[str, str], form: dict[str, str]) -> tuple[int, Any]:
        secret = urlencode({CLIENT_ID: CLIENT_SECRET}).replace("=", ":", 1)
        assert headers["authorization"] == f"Basic {base64.b64encode(secret.encode()).decode()}"
        assert headers["content-type"] == "application/x-www-form-urlencoded"
        asked = self._codes.pop(form["code"], None)
        if asked is None:
            return 400, {"error": "invalid_grant"}
        assert (form["grant_type"], form["redirect_uri"]) == ("authorization_code", asked["redirect_uri"])
        digest = base64.urlsafe_b64encode(sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        if digest != asked["code_challenge"] and not self.forgets_pkce:
            return 400, {"error": "invalid_grant"}
        now = now_ms() // 1000
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "exp": now + 300, "iat": now, "nonce": asked["nonce"]}
        claims = {**claims, **self.claims, **self.token}
        claims = {name: value for name, value in claims.items() if value is not None}
        id_token = (
            self.sign(claims) if self.sign else jwt.encode({"alg": "RS256", "kid": self.key.kid}, claims, self.key)
        )
        return 200, {"access_token": "access", "token_type": "Bearer", "id_token": id_token}


@dataclass(slots=True)
class Browser:
    """A browser of a person who can log in at the provider. It keeps the cookies of the homeserver."""

    server: Server
    provider: OpenIDProvider
    cookies: dict[str, str] = field(default_factory=dict)

    async def get(self, url: str) -> httpx.Response:
        return await self._request("GET", url)

    async def post(self, url: str, **form: str) -> httpx.Response:
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return await self._request("POST", url, headers=headers, content=urlencode(form).encode())

    async def _request(self, method: str, url: str, headers: Any = None, **options: Any) -> httpx.Response:
        path = url.removeprefix(f"https://{self.server.name}")
        assert path.startswith("/"), f"{url} is not on {self.server.name}"
        sent = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = {**(headers or {}), **({"cookie": sent} if sent else {})}
        answer = await self.server.anonymous.request(method, path, headers=headers, **options)
        for cookie in answer.headers.get_list("set-cookie"):
            name, _, rest = cookie.partition("=")
            assert "; Path=/; " in rest and rest.endswith("; HttpOnly; SameSite=Lax; Secure"), cookie
            if "; Max-Age=0;" in rest:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = rest.partition(";")[0]
        return answer

    async def begin(self, client: str = CLIENT, provider: str = "example") -> str:
        """Follows a client's link. Returns the URL at the provider that the browser is sent to."""
        query = urlencode({"redirectUrl": client})
        answer = await self.get(f"/_matrix/client/v3/login/sso/redirect/{provider}?{query}")
        assert answer.status_code == 302, answer.text
        return str(answer.headers["location"])

    async def return_to(self, url: str) -> httpx.Response:
        """Goes where the provider sends the browser, and on to a page of the homeserver if that follows."""
        answer = await self.get(url)
        while answer.status_code == 302 and answer.headers["location"].startswith("/"):
            self.at = answer.headers["location"]
            answer = await self.get(self.at)
        return answer

    async def log_in(self, client: str = CLIENT) -> httpx.Response:
        """The whole way, up to a page with a question or the client."""
        return await self.return_to(self.provider.let_in(await self.begin(client)))

    at: str = ""


def login_token_of(answer: httpx.Response) -> str:
    """Returns the login token that an answer sends to a client."""
    assert answer.status_code == 302, answer.text
    (token,) = parse_qs(urlsplit(answer.headers["location"]).query)["loginToken"]
    return token


def text_of(answer: httpx.Response) -> str:
    """Returns what a page shows."""
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    body = answer.text.partition("<body>")[2]
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))).strip()
