"""Push rules: which events notify a user, and how. Spec: client-server-api/#push-rules-api

The server stores them and shows them to the user's clients, which evaluate them for their notifications.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import bad_json, invalid_param, missing_param
from homeserver.feature import Feature, JsonObject, SyncContext
from homeserver.federation.identifiers import InvalidIdentifier, parse_room_id, parse_user_id
from homeserver.resources import Resources
from homeserver.users.push_rules import (
    KINDS,
    Kind,
    delete_rule,
    forget_push_rules,
    get_rule,
    get_ruleset,
    has_changed,
    set_rule_fields,
    store_rule,
    unknown_rule,
)

HISTORICAL_ACTIONS = ("dont_notify", "coalesce")  # "Clients and homeservers MUST ignore these actions"

routes = Routes()


@routes.get("/_matrix/client/v3/pushrules/", allow_guest=True)
async def get_push_rules(hs: Resources, requester: Requester) -> JsonObject:
    return {"global": await hs.database.read(get_ruleset, requester.user_id)}


@routes.get("/_matrix/client/v3/pushrules/global/")
async def get_push_rules_global(hs: Resources, requester: Requester) -> dict[Kind, list[JsonObject]]:
    return await hs.database.read(get_ruleset, requester.user_id)


# Paths of older clients: without the last slash, one kind of rules, and rules of a device, of which there are none.


@routes.get("/_matrix/client/v3/pushrules", allow_guest=True)
async def get_push_rules_without_slash(hs: Resources, requester: Requester) -> JsonObject:
    return await get_push_rules(hs, requester)


@routes.get("/_matrix/client/v3/pushrules/global")
async def get_push_rules_global_without_slash(hs: Resources, requester: Requester) -> dict[Kind, list[JsonObject]]:
    return await get_push_rules_global(hs, requester)


@routes.get("/_matrix/client/v3/pushrules/global/{kind}/")
async def get_push_rules_of_kind(hs: Resources, requester: Requester, kind: Kind) -> list[JsonObject]:
    return (await hs.database.read(get_ruleset, requester.user_id))[kind]


@routes.get("/_matrix/client/v3/pushrules/device/{profile_tag}/")
async def get_push_rules_of_device(
    hs: Resources, requester: Requester, profile_tag: str
) -> dict[Kind, list[JsonObject]]:
    return {kind: [] for kind in KINDS}


@routes.get("/_matrix/client/v3/pushrules/device/{profile_tag}/{kind}/{rule_id}")
async def get_push_rule_of_device(
    hs: Resources, requester: Requester, profile_tag: str, kind: Kind, rule_id: str
) -> JsonObject:
    raise unknown_rule()


@routes.put("/_matrix/client/v3/pushrules/device/{profile_tag}/{kind}/{rule_id}")
async def set_push_rule_of_device(
    hs: Resources, requester: Requester, profile_tag: str, kind: Kind, rule_id: str
) -> JsonObject:
    raise invalid_param("Push rules of a device do not exist any more. Use the scope global.")


@routes.get("/_matrix/client/v3/pushrules/global/{kind}/{rule_id}")
async def get_push_rule(hs: Resources, requester: Requester, kind: Kind, rule_id: str) -> JsonObject:
    return await hs.database.read(get_rule, requester.user_id, kind, rule_id)


class Place(msgspec.Struct, frozen=True):
    """The user's own rules that a rule is to be placed next to."""

    before: str | None = None
    after: str | None = None


class RuleBody(msgspec.Struct, frozen=True):
    """`conditions` belong to override and underride rules, `pattern` to content rules."""

    actions: list[str | JsonObject]
    conditions: list[JsonObject] | None = None
    pattern: str | None = None


@routes.put("/_matrix/client/v3/pushrules/global/{kind}/{rule_id}", allow_suspended=True)
async def set_push_rule(
    hs: Resources, requester: Requester, kind: Kind, rule_id: str, query: Place, body: RuleBody
) -> Empty:
    _check_rule_id(kind, rule_id)
    if kind == "postcontent":
        raise invalid_param("There are no rules of one's own of this kind.")
    content: JsonObject = {"actions": _known_actions(body.actions)}
    if kind in ("override", "underride"):
        content["conditions"] = body.conditions or []
        for condition in content["conditions"]:
            _check_condition(condition)
    elif kind == "content":
        if body.pattern is None:
            raise missing_param("A content rule needs a pattern.")
        content["pattern"] = body.pattern
    await hs.database.write(store_rule, requester.user_id, kind, rule_id, content, query.before, query.after)
    return Empty()


@routes.delete("/_matrix/client/v3/pushrules/global/{kind}/{rule_id}", allow_suspended=True)
async def delete_push_rule(hs: Resources, requester: Requester, kind: Kind, rule_id: str) -> Empty:
    await hs.database.write(delete_rule, requester.user_id, kind, rule_id)
    return Empty()


@routes.get("/_matrix/client/v3/pushrules/global/{kind}/{rule_id}/enabled")
async def is_push_rule_enabled(hs: Resources, requester: Requester, kind: Kind, rule_id: str) -> JsonObject:
    return {"enabled": (await hs.database.read(get_rule, requester.user_id, kind, rule_id))["enabled"]}


class EnabledBody(msgspec.Struct, frozen=True):
    enabled: bool


@routes.put("/_matrix/client/v3/pushrules/global/{kind}/{rule_id}/enabled", allow_suspended=True)
async def set_push_rule_enabled(
    hs: Resources, requester: Requester, kind: Kind, rule_id: str, body: EnabledBody
) -> Empty:
    await hs.database.write(set_rule_fields, requester.user_id, kind, rule_id, {"enabled": body.enabled})
    return Empty()


@routes.get("/_matrix/client/v3/pushrules/global/{kind}/{rule_id}/actions")
async def get_push_rule_actions(hs: Resources, requester: Requester, kind: Kind, rule_id: str) -> JsonObject:
    return {"actions": (await hs.database.read(get_rule, requester.user_id, kind, rule_id))["actions"]}


class ActionsBody(msgspec.Struct, frozen=True):
    actions: list[str | JsonObject]


@routes.put("/_matrix/client/v3/pushrules/global/{kind}/{rule_id}/actions", allow_suspended=True)
async def set_push_rule_actions(
    hs: Resources, requester: Requester, kind: Kind, rule_id: str, body: ActionsBody
) -> Empty:
    actions = _known_actions(body.actions)
    await hs.database.write(set_rule_fields, requester.user_id, kind, rule_id, {"actions": actions})
    return Empty()


# --- validation of rules ---


CanonicalInteger = Annotated[int, msgspec.Meta(gt=-(2**53), lt=2**53)]


class Condition(msgspec.Struct, frozen=True, rename={"is_": "is"}):
    """The known fields of a condition. Later spec versions may add kinds and fields, so unknown ones are accepted."""

    kind: str
    key: str | msgspec.UnsetType = msgspec.UNSET
    pattern: str | msgspec.UnsetType = msgspec.UNSET
    is_: str | msgspec.UnsetType = msgspec.UNSET
    value: str | CanonicalInteger | bool | msgspec.UnsetType | None = msgspec.UNSET


REQUIRED_FIELDS: Mapping[str, tuple[str, ...]] = {
    "event_match": ("key", "pattern"),
    "event_property_is": ("key", "value"),
    "event_property_contains": ("key", "value"),
    "room_member_count": ("is",),
    "sender_notification_permission": ("key",),
}


def _check_condition(condition: JsonObject) -> None:
    """Raises M_BAD_JSON, M_MISSING_PARAM or M_INVALID_PARAM. Spec: client-server-api/#conditions-1"""
    try:
        parsed = msgspec.convert(condition, Condition)
    except msgspec.ValidationError as error:
        raise bad_json(f"The condition is not valid: {error}.") from error
    missing = [name for name in REQUIRED_FIELDS.get(parsed.kind, ()) if name not in condition]
    if missing:
        raise missing_param(f"A condition {parsed.kind} needs {' and '.join(missing)}.")
    if parsed.kind == "room_member_count" and not re.fullmatch(r"(==|<=|>=|<|>)?[0-9]+", condition["is"]):
        raise invalid_param("A room_member_count is a number, optionally preceded by one of == < > <= >=.")


def _check_rule_id(kind: Kind, rule_id: str) -> None:
    """Raises M_INVALID_PARAM if a user may not give a rule of this kind that ID."""
    if rule_id.startswith("."):
        raise invalid_param("A rule ID may not begin with a dot, which marks server-default rules.")
    if "/" in rule_id or "\\" in rule_id:
        raise invalid_param("A rule ID may not contain a slash or backslash.")
    if len(rule_id.encode()) > limits.users.PUSH_RULE_ID_BYTES_MAX:
        raise invalid_param(f"A rule ID may be at most {limits.users.PUSH_RULE_ID_BYTES_MAX} bytes long.")
    try:
        if kind == "room":
            parse_room_id(rule_id)
        elif kind == "sender":
            parse_user_id(rule_id)
    except InvalidIdentifier as error:
        raise invalid_param(f"The ID of a {kind} rule must be a {kind} ID: {error}") from error


def _known_actions(actions: list[Any]) -> list[Any]:
    return [action for action in actions if action not in HISTORICAL_ACTIONS]


# --- sync ---


def sync_push_rules(tx: Transaction, context: SyncContext) -> None:
    """Adds all rules, initially and whenever one has changed. Spec: client-server-api/#push-rules-events"""
    if context.since == 0 or has_changed(tx, context.user_id, context.since, context.upto):
        content = {"global": get_ruleset(tx, context.user_id)}
        context.account_data.append({"type": "m.push_rules", "content": content})


FEATURE = Feature(
    name="push_rules",
    spec="client-server-api/#push-rules",
    routes=routes,
    sync=sync_push_rules,
    forget_user=forget_push_rules,
)
