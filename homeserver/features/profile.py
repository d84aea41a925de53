"""Profiles: display name, avatar, time zone and custom fields. Spec: client-server-api/#profiles

`homeserver/users/profile_changes.py` tells the user's rooms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from homeserver import limits
from homeserver.api.routes import Empty, Request, Routes
from homeserver.authenticate import Requester
from homeserver.config import Config
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param, missing_param, not_found
from homeserver.feature import Feature, JsonObject, Worklist
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, UserID, parse_user_id
from homeserver.limits import Bucket
from homeserver.remote.application_services import provide_user
from homeserver.remote.profiles import fetch_profile
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.application_services import find_calling
from homeserver.users.profile import (
    find_profile,
    forget_profile,
    list_unfinished,
)
from homeserver.users.profile_changes import SPECIFIED, change_profile, checked_value, finish_update

# The Common Namespaced Identifier Grammar, with a namespace.
_FIELD = re.compile(r"[a-z][a-z0-9_-]*(\.[a-z0-9_-]+)+", re.ASCII)

# Clients from before v1.16 use this path, if the feature is announced.
UNSTABLE_PATH = "/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}/{key_name}"

routes = Routes()


@routes.get("/_matrix/client/v3/profile/{user_id}")
@routes.get("/_matrix/client/unstable/uk.tcpip.msc4133/profile/{user_id}")
async def get_user_profile(hs: Resources, user_id: UserID, request: Request) -> JsonObject:
    return await _look_up(hs, user_id, None, find_calling(hs, request))


@routes.get("/_matrix/client/v3/profile/{user_id}/{key_name}")
@routes.get(UNSTABLE_PATH)
async def get_profile_field(hs: Resources, user_id: UserID, key_name: str, request: Request) -> JsonObject:
    profile = await _look_up(hs, user_id, key_name, find_calling(hs, request))
    is_unset = not accounts.is_local(hs, user_id) and profile.get(key_name) is None  # servers may send null for "none"
    if is_unset or key_name not in profile:
        raise not_found("The user's profile has no such field.")
    return {key_name: profile[key_name]}


async def _look_up(hs: Resources, user_id: UserID, field: str | None, appservice: str | None = None) -> JsonObject:
    """Returns the profile, or one field of it if the field is set. Raises M_NOT_FOUND if there is no such user."""
    if not accounts.is_local(hs, user_id):
        return await fetch_profile(hs, user_id, field)
    await provide_user(hs, user_id, appservice)
    return await hs.database.read(_read_profile, user_id, field)


def _read_profile(tx: Transaction, user_id: UserID, field: str | None) -> JsonObject:
    if not accounts.is_active(tx, user_id):
        raise not_found("There is no such user.")
    return find_profile(tx, user_id, field)


@routes.put("/_matrix/client/v3/profile/{user_id}/{key_name}", rate_limit="profile", allow_guest=True)
@routes.put(UNSTABLE_PATH, rate_limit="profile")
async def set_profile_field(hs: Resources, requester: Requester, user_id: UserID, key_name: str, body: dict) -> Empty:
    _check_may_change(requester, user_id, key_name)
    if key_name not in body:
        raise missing_param(f"The body does not contain {key_name}.")
    value = checked_value(key_name, body[key_name])
    await change_profile(hs, requester.user_id, key_name, value)
    return Empty()


@routes.delete("/_matrix/client/v3/profile/{user_id}/{key_name}", rate_limit="profile", allow_guest=True)
@routes.delete(UNSTABLE_PATH, rate_limit="profile")
async def delete_profile_field(hs: Resources, requester: Requester, user_id: UserID, key_name: str) -> Empty:
    _check_may_change(requester, user_id, key_name)
    await change_profile(hs, requester.user_id, key_name, None)
    return Empty()


def _check_may_change(requester: Requester, user_id: UserID, field: str) -> None:
    if requester.user_id != user_id:
        raise forbidden("You cannot change another user's profile.")
    if requester.is_guest and field != "displayname":
        raise forbidden("Guests can only change their display name.")
    if len(field.encode()) > limits.users.PROFILE_KEY_BYTES_MAX:
        most = limits.users.PROFILE_KEY_BYTES_MAX
        raise MatrixError(400, "M_KEY_TOO_LARGE", f"The name of a profile field may be at most {most} bytes long.")
    if field not in SPECIFIED and _FIELD.fullmatch(field) is None:
        raise invalid_param("There is no such profile field; custom fields have names like org.example.field.")


def _profile_fields(config: Config, requester: Requester) -> JsonObject:
    return {"enabled": True, "allowed": ["displayname"]} if requester.is_guest else {"enabled": True}


async def answer_profile_query(hs: Resources, origin: ServerName, query: Mapping[str, str]) -> JsonObject:
    """Answers another server's query. Spec: server-server-api/#get_matrixfederationv1queryprofile"""
    if "user_id" not in query:
        raise missing_param("user_id is required.")
    try:
        user_id = parse_user_id(query["user_id"])
    except InvalidIdentifier as error:
        raise invalid_param(f"user_id is not valid: {error}") from error
    if not accounts.is_local(hs, user_id):
        raise not_found("The user does not belong to this server.")
    return await _look_up(hs, user_id, query.get("field"))


FEATURE = Feature(
    name="profile",
    spec="client-server-api/#profiles",
    routes=routes,
    queries={"profile": answer_profile_query},
    limits={"profile": Bucket(20, 0.5)},  # a new name is an event in each of the user's rooms
    capabilities={
        "m.profile_fields": _profile_fields,
        "uk.tcpip.msc4133.profile_fields": _profile_fields,
        "m.set_displayname": lambda config, requester: {"enabled": True},
        "m.set_avatar_url": lambda config, requester: {"enabled": not requester.is_guest},
    },
    worklists=(Worklist("profiles", list_unfinished, finish_update),),
    forget_user=forget_profile,
    unstable_features={"uk.tcpip.msc4133": True, "uk.tcpip.msc4133.stable": True},
)
