"""An app that logs in by the OAuth 2.0 API, as Element X does: discovery, registration, PKCE, the device grant."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import Request, urlopen

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
TIMEOUT_S = 20


def ask(url: str, fields: dict[str, str] | None = None, body: Any = None, token: str = "") -> dict[str, Any]:
    """Returns the JSON of an answer, also of a refusal. fields: sent as a form; body: sent as JSON."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    data = None
    if fields is not None:
        data = urlencode(fields).encode()
    elif body is not None:
        data, headers["content-type"] = json.dumps(body).encode(), "application/json"
    try:
        with urlopen(Request(url, data, headers), timeout=TIMEOUT_S) as answer:
            return dict(json.loads(answer.read()))
    except HTTPError as error:
        return dict(json.loads(error.read()))


class App:
    """A registered client with a page on this machine, to which browsers return."""

    def __init__(self, base_url: str, name: str) -> None:
        self.metadata = ask(f"{base_url}/_matrix/client/v1/auth_metadata")
        self.base_url = base_url
        self.name = name
        self.returned: list[dict[str, list[str]]] = []
        self._verifier = secrets.token_urlsafe(48)
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        self.callback = f"http://127.0.0.1:{self._server.server_port}/callback"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        description = {
            "client_name": name,
            "client_uri": "https://app.example.com/",
            "policy_uri": "https://app.example.com/privacy",
            "application_type": "native",
            "redirect_uris": ["http://127.0.0.1/callback"],
            "response_types": ["code"],
            "grant_types": ["authorization_code", "refresh_token", DEVICE_CODE],
            "token_endpoint_auth_method": "none",
        }
        self.client_id = ask(self.metadata["registration_endpoint"], body=description)["client_id"]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        returned = self.returned

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name that http.server calls
                if self.path.startswith("/callback"):
                    returned.append(parse_qs(urlsplit(self.path).query))
                self.send_response(200)
                self.send_header("content-type", "text/html")
                self.end_headers()
                self.wfile.write(b"<!doctype html><html lang=en><title>App</title><h1>Back in the app</h1>")

            def log_message(self, *args: object) -> None:
                """Says nothing: what counts is in `returned`."""

        return Handler

    def close(self) -> None:
        """Ends the app's page."""
        self._server.shutdown()

    def scope(self, device_id: str) -> str:
        return f"urn:matrix:client:api:* urn:matrix:client:device:{device_id}"

    def address(self, device_id: str, **more: str) -> str:
        """The address that the app opens in a browser."""
        digest = hashlib.sha256(self._verifier.encode()).digest()
        fields = {
            "response_type": "code",
            "response_mode": "query",
            "client_id": self.client_id,
            "redirect_uri": self.callback,
            "scope": self.scope(device_id),
            "state": "the state of the app",
            "code_challenge": base64.urlsafe_b64encode(digest).decode().rstrip("="),
            "code_challenge_method": "S256",
            **more,
        }
        return f"{self.metadata['authorization_endpoint']}?{urlencode(fields)}"

    def finish(self) -> str:
        """Exchanges the code that the browser has brought. Returns who is logged in."""
        fields = {
            "grant_type": "authorization_code",
            "code": self.returned[-1]["code"][0],
            "redirect_uri": self.callback,
            "client_id": self.client_id,
            "code_verifier": self._verifier,
        }
        return self._whoami(ask(self.metadata["token_endpoint"], fields))

    def begin_device(self, device_id: str) -> dict[str, Any]:
        """Starts a device grant. Returns its codes."""
        fields = {"client_id": self.client_id, "scope": self.scope(device_id)}
        return ask(self.metadata["device_authorization_endpoint"], fields)

    def poll_device(self, codes: dict[str, Any]) -> str:
        """Asks once for the tokens of a device grant. Returns who is logged in, or the error."""
        fields = {"grant_type": DEVICE_CODE, "device_code": codes["device_code"], "client_id": self.client_id}
        return self._whoami(ask(self.metadata["token_endpoint"], fields))

    def _whoami(self, tokens: dict[str, Any]) -> str:
        if "access_token" not in tokens:
            return str(tokens["error"])
        return str(ask(f"{self.base_url}/_matrix/client/v3/account/whoami", token=tokens["access_token"])["user_id"])
