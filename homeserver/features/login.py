"""Login with a password, or with a token from a device that is logged in. Spec: client-server-api/#login"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from homeserver.api.routes import Request, Routes
from homeserver.authenticate import Requester, note_seen
from homeserver.config import SsoProvider
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, missing_param
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.process.rate_limits import address_key
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.accounts import read_identifier
from homeserver.users.application_services import get_service
from homeserver.users.devices import check_device_id, log_in
from homeserver.users.password_login import check_password, count_login, keep_checked, log_failed_login
from homeserver.users.proof_tokens import LIFETIMES_MS, Purpose, create_proof, delete_proof, find_proven
from homeserver.users.user_interactive import Authentication, delete_session, owner_flows, require_stages

routes = Routes()


@routes.get("/_matrix/client/v3/login")
async def get_login_flows(hs: Resources) -> JsonObject:
    if not hs.config.sso:
        return {"flows": list(FLOWS)}
    return {"flows": [{"type": "m.login.sso", "identity_providers": list(map(_shown, hs.config.sso))}, *FLOWS]}


def _shown(provider: SsoProvider) -> JsonObject:
    """Returns what clients show on the button of a provider. Spec: #definition-mloginsso-flow-schema"""
    shown = {"id": provider.id, "name": provider.name}
    optional = {"icon": provider.icon, "brand": provider.brand}
    return shown | {key: value for key, value in optional.items() if value}


class LoginBody(msgspec.Struct, frozen=True):
    """`user`, `medium` and `address` are the old form of an identifier."""

    type: str
    identifier: JsonObject | None = None
    user: str | None = None
    medium: str | None = None
    address: str | None = None
    password: str | None = None
    token: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: bool | None = None


@routes.post("/_matrix/client/v3/login", rate_limit="login")
async def login(hs: Resources, body: LoginBody, request: Request) -> JsonObject:
    check_device_id(body.device_id)
    try:
        if body.type == "m.login.password":
            answer = await _log_in_with_password(hs, body, request)
        elif body.type == "m.login.token":
            answer = await _log_in_with_token(hs, body)
        elif body.type == "m.login.application_service":
            answer = await _log_in_by_appservice(hs, body, request)
        else:
            raise MatrixError(400, "M_UNKNOWN", "This login type is not supported.")
    except MatrixError as error:
        count_login(hs, "refused")
        log_failed_login(request.client_ip, (body.identifier or {}).get("user", body.user), error.errcode)
        raise
    count_login(hs, "accepted")
    note_seen(hs, UserID(answer["user_id"]), answer["device_id"], request, hs.now_ms())
    if hs.config.public.serve_well_known:
        answer["well_known"] = hs.config.client_discovery()
    return answer


# --- with a password ---


async def _log_in_with_password(hs: Resources, body: LoginBody, request: Request) -> JsonObject:
    user_id, new_hash = await _check_password(hs, body, address_key(request.client_ip))
    return await hs.database.write(_store_login, user_id, body, new_hash)


async def _check_password(hs: Resources, body: LoginBody, address: str) -> tuple[UserID, str | None]:
    """Checks the password. Returns the user, and a new hash to store if the old one has outdated parameters."""
    if body.password is None:
        raise missing_param("The password is missing.")
    identifier = body.identifier
    if identifier is None and body.user is None and body.address is not None:
        identifier = {"type": "m.id.thirdparty", "medium": body.medium, "address": body.address}
    return await check_password(hs, identifier, body.user, body.password, address=address)


def _store_login(tx: Transaction, user_id: UserID, body: LoginBody, new_hash: str | None) -> JsonObject:
    keep_checked(tx, user_id, new_hash)
    return log_in(tx, user_id, body.device_id, body.initial_device_display_name, bool(body.refresh_token))


# --- with a token ---


async def _log_in_with_token(hs: Resources, body: LoginBody) -> JsonObject:
    if body.token is None:
        raise missing_param("The token is missing.")
    return await hs.database.write(_use_login_token, body, body.token)


def _use_login_token(tx: Transaction, body: LoginBody, token: str) -> JsonObject:
    """Logs in with a token, which ends in the same write."""
    user_id = find_proven(tx, Purpose.LOGIN, token)
    if user_id is None:
        raise forbidden("This login token is not valid, or has been used already.")
    delete_proof(tx, token)
    return log_in(tx, user_id, body.device_id, body.initial_device_display_name, bool(body.refresh_token))


class LoginTokenBody(msgspec.Struct, frozen=True):
    auth: JsonObject | None = None


@routes.post("/_matrix/client/v1/login/get_token", rate_limit="login", allow_suspended=True)
async def generate_login_token(hs: Resources, requester: Requester, body: LoginTokenBody) -> JsonObject:
    """Returns a token with which another device can log in once. Each needs the password again."""
    user_id = requester.user_id
    authentication = await require_stages(hs, "get a login token", body.auth, owner_flows(user_id), user_id)
    token = await hs.database.write(_create_login_token, requester, authentication)
    return {"login_token": token, "expires_in_ms": LIFETIMES_MS[Purpose.LOGIN]}


def _create_login_token(tx: Transaction, requester: Requester, authentication: Authentication) -> str:
    delete_session(tx, authentication)
    return create_proof(tx, Purpose.LOGIN, requester.user_id, requester.device_id)


# --- by an application service ---


async def _log_in_by_appservice(hs: Resources, body: LoginBody, request: Request) -> JsonObject:
    """Spec: client-server-api/#appservice-login"""
    service = get_service(hs, request)
    user_id = read_identifier(hs.server_name, body.identifier, body.user)
    if not service.covers(user_id):
        raise accounts.exclusive(f"{user_id} is not in the namespace of this application service.")
    return await hs.database.write(_store_login, user_id, body, None)


FLOWS: Sequence[JsonObject] = (
    {"type": "m.login.password"},
    {"type": "m.login.token", "get_login_token": True},
    {"type": "m.login.application_service"},
)

FEATURE = Feature(
    name="login",
    spec="client-server-api/#login",
    routes=routes,
    capabilities={"m.get_login_token": lambda config, requester: {"enabled": not requester.is_guest}},
)
