"""The JSON messages of WebSocket clients, and how answers are written. The protocol is in docs/websocket.md."""

from __future__ import annotations

import enum
from typing import Any
from urllib.parse import quote, urlencode

import msgspec

from homeserver.encoding import to_json
from homeserver.errors import MatrixError, bad_json, invalid_param
from homeserver.feature import PresenceState

_ID_CHARACTERS_MAX = 255


class Close(enum.IntEnum):
    """Why a connection is closed. Those from 4000 on are our own."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    NOT_AN_OBJECT = 1007
    TOO_LARGE = 1009
    RESTART = 1012
    UNAUTHENTICATED = 4001
    NOT_READING = 4008
    TOO_MANY = 4029


class Closing(Exception):
    """The connection must be closed. reason: one sentence for the client's author."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Message(msgspec.Struct, frozen=True):
    """What a client says: `op` and what belongs to it, or `ack`. body and filter are kept as they came."""

    op: str = ""
    id: int | str | None = None
    ack: str | None = None
    token: str = ""
    path: list[str | int] = []
    query: dict[str, Any] = {}
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    since: str | None = None
    filter: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    set_presence: PresenceState = "online"
    full_state: bool = False
    use_state_after: bool = False


class _Identified(msgspec.Struct, frozen=True):
    id: Any = None


_MESSAGE = msgspec.json.Decoder(Message)
_IDENTIFIED = msgspec.json.Decoder(_Identified)


class Malformed(Exception):
    """The message is a JSON object, but not one of the protocol. `id` is that of the message, if it has one."""

    def __init__(self, id_: int | str | None, error: MatrixError) -> None:
        super().__init__(error)
        self.id = id_
        self.error = error


def parse(data: bytes) -> Message:
    """Returns the message. Raises Closing if it is not a JSON object, Malformed if its fields are wrong."""
    try:
        message = _MESSAGE.decode(data)
    except msgspec.ValidationError as error:
        if not data.lstrip().startswith(b"{"):
            raise _not_an_object() from None
        raise Malformed(_find_id(data), bad_json(f"{error}.")) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise _not_an_object() from None
    if isinstance(message.id, str) and len(message.id) > _ID_CHARACTERS_MAX:
        raise Malformed(None, invalid_param(f"An id may have at most {_ID_CHARACTERS_MAX} characters."))
    return message


def _find_id(data: bytes) -> int | str | None:
    """Returns the ID of an object that is not a message; None if it has none, or one that cannot be an ID."""
    try:
        found = _IDENTIFIED.decode(data).id
    except (msgspec.DecodeError, RecursionError):  # msgspec refuses numbers that are too long only when it reads them
        return None
    return found if isinstance(found, int | str) and not isinstance(found, bool) else None


def _not_an_object() -> Closing:
    return Closing(Close.NOT_AN_OBJECT, "A message must be a JSON object.")


def answer(id_: int | str | None, status: int, body: bytes) -> bytes:
    """Returns the answer to a request. body: JSON."""
    return b'{"id":%b,"status":%d,"body":%b}' % (to_json(id_), status, body)


def refusal(id_: int | str | None, error: MatrixError) -> bytes:
    """Returns the answer for an error."""
    return answer(id_, error.status, to_json(error.body()))


def path_segments(path: list[str | int]) -> list[str]:
    """Returns path parameters as they would be in a URL. Raises M_INVALID_PARAM for text that cannot be sent."""
    try:
        return [quote(str(each), safe="") for each in path]
    except UnicodeEncodeError:
        raise invalid_param("A path parameter is not valid UTF-8.") from None


def query_string(query: dict[str, Any]) -> str:
    """Returns the query as it would be in a URL: lists repeat, objects become JSON."""
    pairs = []
    for name, value in query.items():
        for each in value if isinstance(value, list) else (value,):
            if isinstance(each, bool):
                pairs.append((name, "true" if each else "false"))
            elif isinstance(each, dict):
                pairs.append((name, to_json(each).decode()))
            elif each is not None:
                pairs.append((name, str(each)))
    try:
        return urlencode(pairs)
    except UnicodeEncodeError:
        raise invalid_param("The query is not valid UTF-8.") from None


def filter_text(message: Message) -> str:
    """Returns the filter of a `sync` message, as the query parameter of /sync: JSON, or the ID of a stored one.

    Raises M_BAD_JSON if it is neither.
    """
    if isinstance(message.filter, msgspec.UnsetType):
        return ""
    text = bytes(message.filter).decode()
    if text.startswith("{"):
        return text
    value = msgspec.json.decode(text)
    if isinstance(value, str) and not value.startswith("{"):
        return value
    if value is None:
        return ""
    raise bad_json("filter must be an object, or the ID of a filter.")
