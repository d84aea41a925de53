"""Compiles a handler's signature once into a plan that reads its arguments from a request.

Spec: client-server-api/#api-standards, #common-error-codes
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Awaitable, Callable, Mapping
from functools import cache, partial
from typing import Annotated, Any, Literal, NewType, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote_to_bytes

import msgspec

from homeserver.errors import MatrixError, bad_json, invalid_param, missing_param
from homeserver.federation import canonical_json
from homeserver.federation.identifiers import (
    EventID,
    RoomAlias,
    RoomID,
    ServerName,
    UserID,
    parse_event_id,
    parse_room_alias,
    parse_room_id,
    parse_server_name,
    parse_user_id,
)
from homeserver.federation.transaction import decode_transaction

Decode = Callable[[str], Any]
Checks = tuple[tuple[str, Callable[[object], Any]], ...]
SPECIAL = frozenset({"requester", "origin", "body", "query", "request"})
PARSERS: Mapping[Any, Callable[[object], Any]] = {
    UserID: parse_user_id,
    RoomID: parse_room_id,
    EventID: parse_event_id,
    RoomAlias: parse_room_alias,
    ServerName: parse_server_name,
}


class BodyPlan(msgspec.Struct, frozen=True):
    """How a request's body becomes the handler's argument. `optional`: an empty body becomes None."""

    kind: Any
    optional: bool
    checks: Checks

    def decode(self, content: Any) -> Any:
        """Returns the argument for decoded JSON. Raises M_BAD_JSON, M_MISSING_PARAM or M_INVALID_PARAM."""
        if content is None and self.optional:
            return None
        if not isinstance(content, dict):
            raise bad_json("The body must be a JSON object.")
        if self.kind is dict:
            return content
        return _convert(content, self.kind, self.checks, bad_json)


class QueryPlan(msgspec.Struct, frozen=True):
    """How the query string becomes the handler's `query` Struct."""

    kind: Any
    lists: frozenset[str]
    checks: Checks

    def decode(self, values: Mapping[str, list[str]]) -> Any:
        """Returns the Struct for the query. Ignores repeated values, except in lists. Raises MatrixError."""
        lists = self.lists
        flat = {name: given if name in lists else given[0] for name, given in values.items()}
        return _convert(flat, self.kind, self.checks, invalid_param, strict=False)


def _convert(
    content: Any, kind: Any, checks: Checks, refuse: Callable[[str], MatrixError], *, strict: bool = True
) -> Any:
    """Returns the Struct for decoded JSON, with its fields checked. `refuse` makes the error for a wrong type."""
    try:
        value = msgspec.convert(content, kind, strict=strict)
    except msgspec.ValidationError as error:
        what = str(error)
        if what.startswith("Object missing required field"):
            raise missing_param(f"{what}.") from error
        raise refuse(f"{what}.") from error
    _check_fields(value, checks)
    return value


class Constant(msgspec.Struct, frozen=True):
    """The default of a path parameter that this path lacks."""

    value: Any


class Plan(msgspec.Struct, frozen=True):
    """The handler's arguments after `hs`, in order: the name of a special one, the number of a path parameter, …"""

    order: tuple[str | int | Constant, ...]
    path: tuple[tuple[str, Decode], ...]
    requester: bool = False
    requester_optional: bool = False
    origin: bool = False
    body: BodyPlan | None = None
    query: QueryPlan | None = None
    request: bool = False

    def path_arguments(self, raw: list[str]) -> list[Any]:
        """Returns the values of the path parameters from their percent-encoded text. Raises M_INVALID_PARAM."""
        arguments = []
        for text, (name, decode) in zip(raw, self.path, strict=True):
            try:
                arguments.append(decode(decode_segment(text) if "%" in text else text))
            except ValueError as error:
                raise invalid_param(f"{name} in the path is invalid: {error}") from error
        return arguments


def decode_segment(text: str) -> str:
    """Returns a path segment without percent-encoding. An encoded slash stays in the segment. Raises ValueError."""
    return unquote_to_bytes(text).decode("utf-8")


def decode_json(data: bytes) -> Any:
    """Returns the JSON of a body. Raises M_NOT_JSON, or M_BAD_JSON for a number that no server can pass on."""
    return _decode(canonical_json.decode, data)


def decode_wrapped(data: bytes) -> Any:
    """Does the same as `decode_json` for a body that contains whole events."""
    return _decode(partial(canonical_json.decode, depth_max=canonical_json.WRAPPED_DEPTH_MAX), data)


def decode_parts(data: bytes) -> Any:
    """Does the same as `decode_json` for a transaction, whose parts are checked singly: see `decode_transaction`."""
    return _decode(decode_transaction, data)


def _decode(decode: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return decode(data)
    except canonical_json.UnfitNumber as error:
        raise bad_json(str(error)) from None
    except canonical_json.NotCanonical as error:
        raise MatrixError(400, "M_NOT_JSON", f"The body cannot be read: {error}") from error


def path_parameters(path: str) -> tuple[str, ...]:
    """Returns the names in braces."""
    return tuple(part[1:-1] for part in path.split("/") if part.startswith("{") and part.endswith("}"))


def compile_plan(handler: Callable[..., Awaitable[Any]], path: str) -> Plan:
    """Compiles the signature of a handler for `path`. Raises TypeError if they do not match."""
    hints = _read_hints(handler.__module__, tuple(handler.__annotations__.items()))
    parameters = inspect.signature(handler).parameters
    names = list(parameters)
    where = f"{handler.__module__}.{handler.__qualname__}"
    if not names or names[0] != "hs":
        raise TypeError(f"{where}: the first parameter must be hs")
    in_path = path_parameters(path)
    order: list[str | int | Constant] = []
    special: dict[str, Any] = {}
    for name in names[1:]:
        if name not in hints:
            raise TypeError(f"{where}: {name} needs an annotation")
        kind = hints[name]
        if name in in_path:
            order.append(in_path.index(name))
            continue
        if name not in SPECIAL and parameters[name].default is not inspect.Parameter.empty:
            order.append(Constant(parameters[name].default))
            continue
        order.append(name)
        optional, inner = _optional(kind)
        if name == "requester":
            special |= {"requester": True, "requester_optional": optional}
        elif name in ("origin", "request"):
            special[name] = True
        elif name == "body":
            special["body"] = _body_plan(inner, optional, where)
        elif name == "query":
            special["query"] = _query_plan(inner, where)
        else:
            raise TypeError(f"{where}: {name} is not in {path}, nor hs, requester, origin, body, query or request")
    missing = [name for name in in_path if name not in names]
    if missing:
        raise TypeError(f"{where}: {path} has {missing}, which the handler does not take")
    return Plan(tuple(order), tuple((name, _segment_decoder(hints[name], where)) for name in in_path), **special)


# Some routes are declared again for each server. Their types stay the same, so what follows from these is kept.


@cache
def _read_hints(module: str, annotations: tuple[tuple[str, Any], ...]) -> Mapping[str, Any]:
    """Returns the types that the annotations of a function of that module name."""
    annotated = types.SimpleNamespace(__annotations__=dict(annotations))
    return get_type_hints(annotated, vars(sys.modules[module]))


def _optional(kind: Any) -> tuple[bool, Any]:
    """Returns whether None or nothing at all is allowed, and the type without these."""
    if get_origin(kind) in (Union, types.UnionType):
        others = [each for each in get_args(kind) if each not in (type(None), msgspec.UnsetType)]
        if len(others) == 1 and len(others) < len(get_args(kind)):
            return True, others[0]
    return False, kind


@cache
def _segment_decoder(kind: Any, where: str) -> Decode:
    if kind in PARSERS:
        return PARSERS[kind]
    if isinstance(kind, NewType):
        return _segment_decoder(kind.__supertype__, where)
    if kind is str:
        return _text
    if kind is int:
        return _integer
    if get_origin(kind) is Literal:
        allowed = frozenset(get_args(kind))

        def choose(text: str) -> str:
            if text not in allowed:
                raise ValueError(f"it must be one of {', '.join(sorted(allowed))}")
            return text

        return choose
    raise TypeError(f"{where}: a path parameter cannot be a {kind}")


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("it contains a NUL")
    return text


def _integer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 16):
        raise ValueError("it is not a number")
    return int(text)


@cache
def _body_plan(kind: Any, optional: bool, where: str) -> BodyPlan:
    if kind is dict or get_origin(kind) is dict:
        return BodyPlan(dict, optional, ())
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return BodyPlan(kind, optional, _fields_to_check(kind))
    raise TypeError(f"{where}: body must be a Struct or a dict, not {kind}")


@cache
def _query_plan(kind: Any, where: str) -> QueryPlan:
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        raise TypeError(f"{where}: query must be a Struct, not {kind}")
    lists = frozenset(
        field.encode_name
        for field in msgspec.structs.fields(kind)
        if get_origin(_optional(field.type)[1]) in (list, tuple, frozenset, set)
    )
    return QueryPlan(kind, lists, _fields_to_check(kind))


@cache
def _fields_to_check(kind: type[msgspec.Struct]) -> Checks:
    """Returns the fields that contain an identifier or a number, and what checks each: msgspec takes any of them."""
    found: list[tuple[str, Callable[[object], Any]]] = []
    for field in msgspec.structs.fields(kind):
        inner = _optional(field.type)[1]
        if get_origin(inner) in (list, tuple):
            inner = get_args(inner)[0]
        if isinstance(inner, NewType) and inner in PARSERS:
            found.append((field.name, PARSERS[inner]))
        elif inner is int or (get_origin(inner) is Annotated and get_args(inner)[0] is int):
            found.append((field.name, _check_number))
    return tuple(found)


def _check_number(value: object) -> None:
    """Raises ValueError for a number that is too large to be stored. JSON allows any."""
    if isinstance(value, int) and abs(value) > canonical_json.INT_MAX:
        raise ValueError(f"it must lie within ±{canonical_json.INT_MAX}")


def _check_fields(value: Any, checks: Checks) -> None:
    for name, check in checks:
        given = getattr(value, name)
        try:
            if isinstance(given, (str, int)):
                check(given)
            elif isinstance(given, (list, tuple)):
                for each in given:
                    check(each)
        except ValueError as error:  # InvalidIdentifier too
            raise invalid_param(f"{name} is invalid: {error}") from error
