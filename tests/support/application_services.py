"""Registrations of application services for tests."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import trio
import yaml

from homeserver.config import ApplicationServices
from tests.support.contract import list_faults_of_request

AS_TOKEN, HS_TOKEN = "the-token-of-the-bridge", "the-token-of-the-homeserver"
URL = "http://bridge.example"


def registration(**fields: Any) -> dict[str, Any]:
    """A bridge to IRC, whose users are @irc_…, and whose aliases are #irc_…"""
    return {
        "id": "irc",
        "url": URL,
        "as_token": AS_TOKEN,
        "hs_token": HS_TOKEN,
        "sender_localpart": "ircbot",
        "rate_limited": False,
        "namespaces": {
            "users": [{"regex": "@irc_.*", "exclusive": True}],
            "aliases": [{"regex": "#irc_.*", "exclusive": True}],
            "rooms": [],
        },
        **fields,
    }


def register(folder: Path, *registrations: dict[str, Any]) -> ApplicationServices:
    """The section of the configuration, with a file for each registration."""
    paths = []
    for number, each in enumerate(registrations):
        path = folder / f"registration-{number}.yaml"
        path.write_text(yaml.safe_dump(each))
        paths.append(str(path))
    return ApplicationServices(files=tuple(paths))


class Bridge:
    """The application service itself: an ASGI application that keeps what it is sent.

    statuses: of the answers to the next requests; 200 once they have been used up.
    has: what it answers queries with, by path and query; it knows nothing else.
    provide: called with the path and query of each such query before it is answered.
    refuses: it answers 400 to transactions that have this text. pause_s: how long it thinks about each transaction.
    answer: the body of its answers to transactions, if it is not the usual one.
    faults: how what it was sent breaks the specification.
    """

    def __init__(self) -> None:
        self.transactions: list[tuple[str, dict[str, Any]]] = []
        self.requests: list[tuple[str, str]] = []
        self.statuses: list[int] = []
        self.has: dict[str, Any] = {}
        self.provide: Callable[[str], Awaitable[None]] = _provide_nothing
        self.refuses: str | None = None
        self.pause_s = 0.0
        self.answer: bytes | None = None
        self.faults: list[str] = []

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of all transactions that were taken, each transaction once."""
        return [event for _, body in dict(self.transactions).items() for event in body["events"]]

    @property
    def said(self) -> list[str]:
        """The texts of the messages among these events."""
        return [event["content"]["body"] for event in self.events if event["type"] == "m.room.message"]

    @property
    def ephemeral(self) -> list[dict[str, Any]]:
        """The ephemeral data of all transactions that were taken."""
        return [each for _, body in self.transactions for each in body.get("ephemeral", [])]

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        path, body, more = scope["path"], b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.requests.append((scope["method"], path))
        target = f"{scope['raw_path'].decode()}?{scope['query_string'].decode()}"
        self.faults += list_faults_of_request(scope["method"], target, json.loads(body) if body else None)
        status = 403
        if headers.get("authorization") == f"Bearer {HS_TOKEN}":
            status = self.statuses.pop(0) if self.statuses else 200
        if "/transactions/" in path:
            await trio.sleep(self.pause_s)
            if self.refuses is not None and self.refuses.encode() in body:
                status = 400
            if status == 200:
                self.transactions.append((path.rpartition("/")[2], json.loads(body)))
            if self.answer is not None:
                await _send_bytes(send, status, self.answer)
                return
        if scope["method"] == "GET" and status == 200:
            asked = path + (f"?{scope['query_string'].decode()}" if scope["query_string"] else "")
            await self.provide(asked)
            status = 200 if asked in self.has else 404
            known = self.has.get(asked, {"errcode": "M_NOT_FOUND"})
            await _send(send, status, known)
            return
        answer = {} if status == 200 else {"errcode": "M_UNKNOWN" if status != 404 else "M_UNRECOGNIZED"}
        await _send(send, status, answer)


async def _provide_nothing(path: str) -> None:
    pass


async def _send(send: Any, status: int, answer: Any) -> None:
    await _send_bytes(send, status, json.dumps(answer).encode())


async def _send_bytes(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
