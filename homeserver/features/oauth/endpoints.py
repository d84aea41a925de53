"""The endpoints that clients call: registration, tokens, revocation, device codes.

Their bodies are forms, but for registration, and their errors have the fields of OAuth.
Spec: client-server-api/#oauth-20-api, RFC 6749, 7009, 7591, 8628
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from homeserver import authenticate, limits
from homeserver.api.routes import Empty, Request, Response, Routes
from homeserver.authenticate import hash_token
from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.features.oauth.forms import decode_parameters, read_parameter
from homeserver.features.oauth.metadata import check_enabled
from homeserver.process.rate_limits import address_key
from homeserver.resources import Resources
from homeserver.users.oauth.clients import DEVICE_CODE, find_client, find_equal_client, parse_metadata, store_client
from homeserver.users.oauth.device_grants import DeviceCodes, create_device_grant
from homeserver.users.oauth.errors import OAuthError
from homeserver.users.oauth.grants import Reply, answer_token_request, end_session
from homeserver.users.oauth.scopes import InvalidScope, parse_scope
from homeserver.users.oauth.sessions import OAuthSession, find_session

_log = logging.getLogger(__name__)

TOKENS_COUNTER = "homeserver_oauth_token_requests_total"
REPLAYS_COUNTER = "homeserver_oauth_replays_total"

# No cache may keep a token. Spec: RFC 6749, section 5.1
_SECRET = {"cache-control": "no-store", "pragma": "no-cache"}

routes = Routes()


# --- registration ---


@routes.post("/_homeserver/oauth/register", max_body_bytes=limits.users.OAUTH_METADATA_BYTES_MAX, headers=_SECRET)
async def register_oauth_client(hs: Resources, body: dict, request: Request) -> Response:
    """Registers a client, or finds an equal one. New ones are few, and have a rate limit of their own."""
    check_enabled(hs)
    metadata = parse_metadata(body)
    if await hs.database.read(find_equal_client, metadata) is None:
        hs.rate_limits.take("oauth_register", address_key(request.client_ip), hs.now_ms())
    client = await hs.database.write(store_client, metadata)
    return Response(201, {"client_id": client.client_id, **msgspec.to_builtins(client.metadata)})


# --- tokens ---


@routes.post("/_homeserver/oauth/token", decode=decode_parameters, headers=_SECRET)
async def get_oauth_tokens(hs: Resources, body: dict) -> JsonObject:
    """Exchanges a code or a refresh token for tokens. It has the rate limit of `/refresh`, for the same reason."""
    check_enabled(hs)
    parameters: Mapping[str, list[str]] = body
    _limit_polls(hs, parameters)
    try:
        reply: Reply = await hs.database.write(answer_token_request, parameters)
    except MatrixError as error:  # the device cannot be logged in
        reply = Reply(400, {"error": "invalid_grant", "error_description": error.error})
    outcome = "accepted" if reply.status == 200 else str(reply.body["error"])
    hs.metrics.count(TOKENS_COUNTER, (("grant", _grant_of(parameters)), ("outcome", outcome)))
    if reply.ended is not None:
        _tell_replay(hs, reply.ended)
    if reply.status != 200:
        raise OAuthError(str(reply.body["error"]), str(reply.body.get("error_description", "")), status=reply.status)
    return reply.body


def _limit_polls(hs: Resources, parameters: Mapping[str, list[str]]) -> None:
    """Raises M_LIMIT_EXCEEDED for a client that polls so often that even refusing it costs too much."""
    for code in parameters.get("device_code", ())[:1]:
        hs.rate_limits.take("oauth_poll", hash_token(code).hex(), hs.now_ms())


def _grant_of(parameters: Mapping[str, list[str]]) -> str:
    grant = (parameters.get("grant_type") or [""])[0]
    known = {"authorization_code": grant, "refresh_token": grant, DEVICE_CODE: "device_code"}
    return known.get(grant, "unknown")


def _tell_replay(hs: Resources, session: OAuthSession) -> None:
    """Logs that a session has ended because its code or token was copied: its owner may ask why."""
    hs.metrics.count(REPLAYS_COUNTER)
    _log.warning(
        "a used OAuth code or token was presented again, so its session was ended",
        extra={"user": session.user_id, "device": session.device_id, "client": session.client_id},
    )


# --- revocation ---


@routes.post("/_homeserver/oauth/revoke", decode=decode_parameters, headers=_SECRET)
async def revoke_oauth_token(hs: Resources, body: dict) -> Empty:
    """Logs a client out by one of its tokens. Whoever has the token may do that, also one who has found it."""
    check_enabled(hs)
    token = read_parameter(body, "token")
    if len(token) <= limits.ACCESS_TOKEN_CHARACTERS_MAX:
        await hs.database.write(_revoke, token)
    return Empty()


def _revoke(tx: Transaction, token: str) -> None:
    """Ends the session of a token. Unknown tokens, and those of other ways to log in, are left alone."""
    access = authenticate.find_token(tx, hash_token(token))
    found = access.requester if access is not None else authenticate.find_refresh_token(tx, token)
    session = None if found is None else find_session(tx, found.user_id, found.device_id)
    if session is not None:
        end_session(tx, session)


# --- device codes ---


@routes.post("/_homeserver/oauth/device", rate_limit="oauth_device", decode=decode_parameters, headers=_SECRET)
async def authorize_oauth_device(hs: Resources, body: dict, request: Request) -> JsonObject:
    """Begins a device grant, see `homeserver.users.oauth.device_grants`."""
    check_enabled(hs)
    client_id, scope = read_parameter(body, "client_id"), read_parameter(body, "scope")
    codes = await hs.database.write(
        _create_device_grant, client_id, scope, request.client_ip, request.find_header(b"user-agent") or ""
    )
    page = f"{hs.config.base_url}/_homeserver/account/link"
    return {
        "device_code": codes.device_code,
        "user_code": codes.user_code,
        "verification_uri": page,
        "verification_uri_complete": f"{page}?user_code={codes.user_code}",
        "expires_in": limits.users.OAUTH_DEVICE_CODE_LIFETIME_MS // 1000,
        "interval": limits.users.OAUTH_POLL_INTERVAL_MS // 1000,
    }


def _create_device_grant(tx: Transaction, client_id: str, scope: str, address: str, user_agent: str) -> DeviceCodes:
    client = find_client(tx, client_id)
    if client is None:
        raise OAuthError("invalid_client", "The client does not exist on this server.")
    if not client.check_grant_type(DEVICE_CODE):
        raise OAuthError("unauthorized_client", "The client has not registered for device codes.")
    try:
        return create_device_grant(tx, client, parse_scope(scope), address, user_agent)
    except InvalidScope as error:
        raise OAuthError("invalid_scope", str(error)) from None
