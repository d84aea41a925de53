"""Requests to an ASGI application byte by byte, as no client library sends them, and what every answer has to be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from homeserver.api.routes import Operation
from tests.support.contract import check_response
from tests.support.exchange import exchange

ERRCODE = re.compile(r"M_[A-Z_]+")
CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "GET, HEAD, POST, PUT, DELETE, OPTIONS",
    "access-control-allow-headers": "X-Requested-With, Content-Type, Authorization, Date",
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    asked: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def errcode(self) -> str:
        """The error code; "" if the answer is not an error."""
        if self.status < 400 or self.is_page:
            return ""
        return self.json.get("errcode", "")  # none where authentication begins

    @property
    def is_page(self) -> bool:
        """Whether it is a page for a person in a browser."""
        return self.headers.get("content-type", "").startswith("text/html")

    @property
    def verdict(self) -> tuple[int, str]:
        return self.status, self.errcode

    def __str__(self) -> str:
        return f"{self.asked} → {self.status} {self.body[:200]!r}"


async def ask(
    app: Any,
    method: str,
    path: str,
    *,
    query: str = "",
    body: bytes = b"",
    headers: Iterable[tuple[str, str]] = (),
    length: str | None = None,
) -> Answer:
    """Sends one request. `path` and `query` go out as they are, latin-1; `length` replaces the true Content-Length."""
    sent = [(b"host", b"test.example"), (b"content-type", b"application/json")]
    sent += [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    if body or length is not None:
        sent.append((b"content-length", (str(len(body)) if length is None else length).encode("latin-1")))
    shown = f"{method} {path}{'?' + query if query else ''} {body[:120]!r}{'…' if len(body) > 120 else ''}"
    status, told, data = await exchange(app, method, path.encode("latin-1"), query.encode("latin-1"), sent, body)
    answered = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in told}
    return Answer(shown, status, answered, data)


def check_client_answer(method: str, path: str, answer: Answer) -> None:
    """An answer of the client-server API: below 500, errors as the spec writes them, with CORS, fit for its schema."""
    assert answer.status < 500, str(answer)
    for name, value in CORS.items():
        given = answer.headers.get(name, "")
        assert set(value.split(", ")) <= set(given.split(", ")), f"{name}: {answer}"
    if answer.is_page:
        assert path.startswith(("/_homeserver/", "/_matrix/client/v3/auth/", "/_matrix/static/")), str(answer)
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], str(answer)
    elif answer.status >= 400:
        check_error(answer)
    check_response(method, path, answer.status, answer.body, answer.headers)


# Operations that may have to ask another server, which is not there.
ASKING = frozenset(
    {"get_user_profile", "get_profile_field", "get_content", "get_content_override_name", "get_content_thumbnail",
     "get_content_authed", "get_content_override_name_authed", "get_content_thumbnail_authed", "join_room",
     "knock_room", "get_room_id_by_alias", "get_public_rooms", "query_public_rooms"}
)  # fmt: skip


def check_answer_of(operation: Operation, path: str, answer: Answer) -> None:
    """The same as `check_client_answer`, or an error because another server cannot be asked."""
    if answer.status in (502, 504) and operation.name in ASKING:
        check_error(answer)
    else:
        check_client_answer(operation.method, path, answer)


def check_error(answer: Answer) -> None:
    """A standard error response."""
    assert answer.headers["content-type"] == "application/json", str(answer)
    problem = answer.json
    if answer.status == 401 and "errcode" not in problem:  # the start of user-interactive authentication
        assert problem["flows"] and problem["session"], str(answer)
        return
    if "error_description" in problem:  # OAuth's: clients would mistake it if it had an errcode as well
        assert problem.keys() == {"error", "error_description"} and problem["error"].islower(), str(answer)
        return
    assert ERRCODE.fullmatch(problem["errcode"]), str(answer)
    assert isinstance(problem["error"], str) and problem["error"], str(answer)
    for inside in ("Traceback", "homeserver.", "sqlite", "msgspec", "object at 0x"):
        assert inside not in problem["error"], str(answer)
