"""Rendezvous: a place where two devices meet, of which one logs the other in by a QR code. Spec: MSC4108, MSC4388

One device puts a short text there and shows the address as a QR code; the other one reads it and replaces it by its
answer, and so on. The server understands nothing of it: the devices agree on a key. Whoever has the address may
read and write, so it is a secret, and it ends after minutes.

Clients that are in use speak the form of 2024 (MSC4108), plain text with ETags; its successor (MSC4388) has JSON. In
both, a text is only replaced by a device that has seen it. The exchange ends in the device grant of OAuth.
"""

from __future__ import annotations

import secrets
from email.utils import formatdate
from enum import IntEnum
from typing import NamedTuple

import msgspec

from homeserver.api.routes import Empty, Request, Response, Routes
from homeserver.authenticate import Requester
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, missing_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.limits import Bucket
from homeserver.moments import is_ahead
from homeserver.resources import Resources

# Spec: MSC4388, "the server MUST enforce a maximum payload size of 4KB"
TEXT_BYTES_MAX = 4 * 1024
# JSON may write each byte as six.
BODY_BYTES_MAX = 32 * 1024
# The longest time that both proposals allow: people read a code, log in, and confirm.
LIFETIME_MS = 5 * 60 * 1000
# At 4 KiB each. Anyone may begin one, so the oldest end when there are more.
SESSIONS_MAX = 1_000

PATH = "/_matrix/client/unstable/org.matrix.msc4108/rendezvous"
NEW_PATH = "/_matrix/client/unstable/io.element.msc4388/rendezvous"
_HEADERS = {
    "access-control-allow-headers": "X-Requested-With, Content-Type, Authorization, Date, If-Match, If-None-Match",
    "access-control-expose-headers": "ETag, Expires, Last-Modified",
    "cache-control": "no-store",
    "pragma": "no-cache",
    # It is text of strangers: no browser may take it for a page.
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'",
}

# form: 1 for MSC4108, 2 for MSC4388. sequence: changes with each write.
SCHEMA = Schema(
    "rendezvous",
    (
        Step(
            "001_create",
            """
            CREATE TABLE rendezvous_sessions (
                id TEXT PRIMARY KEY,
                form INTEGER NOT NULL,
                content BLOB NOT NULL,
                sequence TEXT NOT NULL,
                changed_ms INTEGER NOT NULL,
                expires_ms INTEGER NOT NULL
            );
            CREATE INDEX rendezvous_expiry ON rendezvous_sessions (expires_ms);
            """,
        ),
    ),
)


class Form(IntEnum):
    """The form of a session: that of its requests."""

    TEXT = 1
    JSON = 2


class Session(NamedTuple):
    """A text that is waiting for the other device. Times in milliseconds since 1970."""

    id: str
    content: bytes
    sequence: str
    changed_ms: int
    expires_ms: int


routes = Routes()


# The form of 2024


@routes.options(PATH, rate_limit="", headers=_HEADERS)
async def describe_rendezvous(hs: Resources) -> Response:
    """Tells browsers what they may send."""
    return Response(204, b"")


@routes.options(PATH + "/{rendezvous_id}", rate_limit="", headers=_HEADERS)
async def describe_rendezvous_session(hs: Resources, rendezvous_id: str) -> Response:
    """Does the same at the URL of a session."""
    return Response(204, b"")


@routes.post(PATH, rate_limit="rendezvous_begin", headers=_HEADERS)
async def create_rendezvous(hs: Resources, request: Request) -> Response:
    session = await hs.database.write(_create_session, Form.TEXT, await _read_text(request))
    return Response(201, {"url": f"{hs.config.base_url}{PATH}/{session.id}"}, _describe(session))


@routes.get(PATH + "/{rendezvous_id}", rate_limit="rendezvous", headers=_HEADERS)
async def get_rendezvous(hs: Resources, rendezvous_id: str, request: Request) -> Response:
    session = await hs.database.read(_get_session, Form.TEXT, rendezvous_id)
    if _has_tag(request.headers.get("if-none-match", ""), session):
        return Response(304, b"", _describe(session))
    return Response(200, session.content, {**_describe(session), "content-type": "text/plain"})


@routes.put(PATH + "/{rendezvous_id}", rate_limit="rendezvous", headers=_HEADERS)
async def put_rendezvous(hs: Resources, rendezvous_id: str, request: Request) -> Response:
    if "if-match" not in request.headers:
        raise missing_param("The header If-Match must have the ETag of the text that is replaced.")
    content, tags = await _read_text(request), request.headers["if-match"]
    session, is_replaced = await hs.database.write(_replace_text, rendezvous_id, tags, content)
    if not is_replaced:
        body = MatrixError(
            412, "M_UNKNOWN", "The other device has replaced the text.",
            **{"org.matrix.msc4108.errcode": "M_CONCURRENT_WRITE"},
        ).body()  # fmt: skip
        return Response(412, body, _describe(session))
    return Response(202, b"", {**_describe(session), "content-type": "text/plain"})


@routes.delete(PATH + "/{rendezvous_id}", rate_limit="rendezvous", headers=_HEADERS)
async def delete_rendezvous(hs: Resources, rendezvous_id: str) -> Response:
    await hs.database.write(_delete_session, Form.TEXT, rendezvous_id)
    return Response(204, b"")


async def _read_text(request: Request) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "text/plain":
        raise invalid_param("The Content-Type must be text/plain.")
    return await request.body(TEXT_BYTES_MAX)


def _describe(session: Session) -> dict[str, str]:
    return {
        "etag": f'"{session.sequence}"',
        "expires": formatdate(session.expires_ms / 1000, usegmt=True),
        "last-modified": formatdate(session.changed_ms / 1000, usegmt=True),
    }


def _has_tag(header: str, session: Session) -> bool:
    """Returns whether a header If-Match or If-None-Match has the ETag of the session's text."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or f'"{session.sequence}"' in tags


def _replace_text(tx: Transaction, rendezvous_id: str, tags: str, content: bytes) -> tuple[Session, bool]:
    session = _get_session(tx, Form.TEXT, rendezvous_id)
    return (_replace_content(tx, session, content), True) if _has_tag(tags, session) else (session, False)


# The successor


class NewBody(msgspec.Struct, frozen=True):
    data: str


class ChangeBody(msgspec.Struct, frozen=True):
    sequence_token: str
    data: str


@routes.get(NEW_PATH, rate_limit="rendezvous", headers=_HEADERS, allow_guest=True)
async def discover_rendezvous(hs: Resources, requester: Requester | None) -> JsonObject:
    """Tells whether the requester may begin a session: only a device that is logged in may."""
    return {"create_available": _may_begin(requester)}


@routes.post(NEW_PATH, rate_limit="rendezvous_begin", headers=_HEADERS, max_body_bytes=BODY_BYTES_MAX)
async def create_rendezvous_with_token(hs: Resources, requester: Requester | None, body: NewBody) -> JsonObject:
    if not _may_begin(requester):
        raise forbidden("Only a device that is logged in may begin a rendezvous.")
    session = await hs.database.write(_create_session, Form.JSON, _encode(body.data))
    return {"id": session.id, "sequence_token": session.sequence, "expires_in_ms": LIFETIME_MS}


@routes.get(NEW_PATH + "/{rendezvous_id}", rate_limit="rendezvous", headers=_HEADERS)
async def get_rendezvous_by_token(hs: Resources, rendezvous_id: str, request: Request) -> JsonObject:
    _check_not_shown(request)
    session = await hs.database.read(_get_session, Form.JSON, rendezvous_id)
    return {
        "data": session.content.decode(),
        "sequence_token": session.sequence,
        "expires_in_ms": max(0, session.expires_ms - hs.now_ms()),
    }


@routes.put(NEW_PATH + "/{rendezvous_id}", rate_limit="rendezvous", headers=_HEADERS, max_body_bytes=BODY_BYTES_MAX)
async def put_rendezvous_by_token(hs: Resources, rendezvous_id: str, body: ChangeBody) -> JsonObject:
    content = _encode(body.data)
    return {"sequence_token": await hs.database.write(_replace_data, rendezvous_id, body.sequence_token, content)}


@routes.delete(NEW_PATH + "/{rendezvous_id}", rate_limit="rendezvous", headers=_HEADERS)
async def delete_rendezvous_by_token(hs: Resources, rendezvous_id: str) -> Empty:
    await hs.database.write(_delete_session, Form.JSON, rendezvous_id)
    return Empty()


def _may_begin(requester: Requester | None) -> bool:
    return requester is not None and not requester.is_guest and not requester.is_suspended


def _encode(data: str) -> bytes:
    content = data.encode()
    if len(content) > TEXT_BYTES_MAX:
        raise MatrixError(413, "M_TOO_LARGE", f"The data may have at most {TEXT_BYTES_MAX} bytes.")
    return content


def _check_not_shown(request: Request) -> None:
    """Raises M_FORBIDDEN if a browser would show the answer to a person. Spec: MSC4388, "Unsafe content"."""
    headers = request.headers
    if (
        headers.get("sec-fetch-dest", "empty") != "empty"
        or headers.get("sec-fetch-mode") == "navigate"
        or headers.get("sec-fetch-user") == "?1"
        or headers.get("sec-fetch-site") == "none"
    ):
        raise forbidden("A rendezvous is read by programs only.")


def _replace_data(tx: Transaction, rendezvous_id: str, sequence: str, content: bytes) -> str:
    """Returns the new token; the present one if the device repeats a request."""
    session = _get_session(tx, Form.JSON, rendezvous_id)
    if sequence == session.sequence:
        return _replace_content(tx, session, content).sequence
    if content == session.content:
        return session.sequence
    raise MatrixError(409, "IO_ELEMENT_MSC4388_CONCURRENT_WRITE", "The other device has replaced the data.")


# Storage


def _create_session(tx: Transaction, form: Form, content: bytes) -> Session:
    tx.run("DELETE FROM rendezvous_sessions WHERE expires_ms <= ?", tx.now_ms)
    tx.run(
        "DELETE FROM rendezvous_sessions WHERE id IN (SELECT id FROM rendezvous_sessions ORDER BY expires_ms DESC"
        " LIMIT ? OFFSET ?)",
        SESSIONS_MAX, SESSIONS_MAX - 1,
    )  # fmt: skip
    session = Session(secrets.token_urlsafe(24), content, _new_sequence(), tx.now_ms, tx.now_ms + LIFETIME_MS)
    tx.run(
        "INSERT INTO rendezvous_sessions (id, form, content, sequence, changed_ms, expires_ms)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        session.id, int(form), content, session.sequence, session.changed_ms, session.expires_ms,
    )  # fmt: skip
    return session


def _get_session(tx: Transaction, form: Form, rendezvous_id: str) -> Session:
    """Returns a session. Raises M_NOT_FOUND if there is none, or it has ended."""
    row = tx.one(
        "SELECT id, content, sequence, changed_ms, expires_ms FROM rendezvous_sessions WHERE id = ? AND form = ?",
        rendezvous_id, int(form),
    )  # fmt: skip
    if row is None or not is_ahead(row[4], tx.now_ms, LIFETIME_MS):
        raise not_found("There is no such rendezvous, or it has ended.")
    return Session(row[0], bytes(row[1]), row[2], row[3], row[4])


def _replace_content(tx: Transaction, session: Session, content: bytes) -> Session:
    changed = session._replace(content=content, sequence=_new_sequence(), changed_ms=tx.now_ms)
    tx.run(
        "UPDATE rendezvous_sessions SET content = ?, sequence = ?, changed_ms = ? WHERE id = ?",
        content, changed.sequence, changed.changed_ms, session.id,
    )  # fmt: skip
    return changed


def _delete_session(tx: Transaction, form: Form, rendezvous_id: str) -> None:
    _get_session(tx, form, rendezvous_id)
    tx.run("DELETE FROM rendezvous_sessions WHERE id = ?", rendezvous_id)


def _new_sequence() -> str:
    return secrets.token_urlsafe(12)


FEATURE = Feature(
    name="rendezvous",
    spec="MSC4108, MSC4388",
    schema=SCHEMA,
    routes=routes,
    limits={
        "rendezvous": Bucket(100, 10),  # for each address; both devices ask once a second, often from one network
        "rendezvous_begin": Bucket(20, 0.1),  # each is a row of 4 KiB that anyone may make
    },
    unstable_features={"org.matrix.msc4108": True, "io.element.msc4388": True},
)
