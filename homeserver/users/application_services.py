"""Identity assertion: for whom an application service makes a request.

Spec: application-service-api/#identity-assertion

An application service has one token. It names the user that it acts as in the query, and may name one of that user's
devices. The answer is cached like that to a user's token, see `homeserver/authenticate/identify.py`.
"""

from __future__ import annotations

import msgspec

from homeserver import limits
from homeserver.api.routes import Request
from homeserver.authenticate import Requester, TokenLookup, get_account_flags, hash_token, read_token, unknown_token
from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.federation.identifiers import InvalidIdentifier, RoomAlias, UserID, localpart_of, parse_user_id
from homeserver.resources import Resources
from homeserver.users.accounts import create_account, exclusive, find_user
from homeserver.users.devices import find_device


def get_service(hs: Resources, request: Request) -> ApplicationService:
    """Returns the application service whose token the request has, whatever user it names.

    Raises 401 M_MISSING_TOKEN or M_UNKNOWN_TOKEN. Spec: application-service-api/#server-admin-style-permissions
    """
    token = read_token(request)
    if not token:
        raise MatrixError(401, "M_MISSING_TOKEN", "This needs the token of an application service.")
    service = hs.application_services.find_by_token(token)
    if service is None:
        raise unknown_token()
    return service


def find_calling(hs: Resources, request: Request) -> str | None:
    """Returns the ID of the application service that makes a request, also where no token is needed; else None."""
    token = read_token(request) if hs.application_services else None
    service = hs.application_services.find_by_token(token) if token else None
    return None if service is None else service.id


async def find_asserted(hs: Resources, token: str, request: Request) -> Requester | None:
    """Returns the requester for the token of an application service, None if the token is not one.

    Raises M_FORBIDDEN if it may not act as the user, or the user has no account, M_UNKNOWN_DEVICE for a device that is
    not the user's.
    """
    service = hs.application_services.find_by_token(token)
    if service is None:
        return None
    user_id = _read_user(service, request)
    device_id = _find_parameter(request, "device_id") or _find_parameter(request, "org.matrix.msc3202.device_id") or ""
    key = hash_token("\0".join((token, user_id, device_id)))
    cache = hs.token_cache
    found = cache.get(key, hs.now_ms(), hs.stream.may_have_changed)
    if found is None:
        if user_id == service.sender:
            await create_account(hs, localpart_of(user_id), None, appservice=service.id, exist_ok=True)
        position = hs.stream.position
        requester = await hs.database.read(_find_requester, service, user_id, device_id)
        found = TokenLookup(requester, None, False)
        cache.put(key, user_id, found, now_ms=hs.now_ms(), position=position)
    return found.requester


def _read_user(service: ApplicationService, request: Request) -> UserID:
    given = _find_parameter(request, "user_id")
    if given is None:
        return service.sender
    try:
        user_id = parse_user_id(given)
    except InvalidIdentifier as error:
        raise invalid_param(f"The user_id is not valid: {error}") from error
    if not service.covers(user_id):
        raise forbidden(f"{user_id} is not in the namespace of this application service.")
    return user_id


def _find_parameter(request: Request, name: str) -> str | None:
    if name not in request.query_string:
        return None
    values = request.query.get(name)
    return values[0] if values else None


def _find_requester(tx: Transaction, service: ApplicationService, user_id: UserID, device_id: str) -> Requester:
    user = find_user(tx, user_id)
    if user is None or user.is_deactivated:
        raise forbidden(f"{user_id} has no account. The application service has to register it first.")
    if device_id and ("\0" in device_id or find_device(tx, user_id, device_id) is None):
        raise MatrixError(400, "M_UNKNOWN_DEVICE", f"{user_id} has no such device.")
    flags = get_account_flags(tx, user_id)
    return Requester(
        user_id=user_id,
        device_id=device_id,
        is_admin=flags.is_admin,
        appservice=service.id,
        is_suspended=flags.is_suspended,
        is_locked=flags.is_locked,
        is_shadow_banned=flags.is_shadow_banned,
        is_limited=service.rate_limited and user_id != service.sender,
    )


def check_may_use_alias(hs: Resources, requester: Requester, alias: RoomAlias) -> None:
    """Raises M_EXCLUSIVE if the alias belongs to an application service other than the one that makes the request."""
    if not hs.application_services.may_use_alias(alias, requester.appservice):
        raise exclusive(f"The alias {alias} is reserved for an application service.")


class TimestampQuery(msgspec.Struct, frozen=True):
    """ts: milliseconds since 1970, when an event happened on another network. Only application services may say so."""

    ts: int | None = None

    def origin_server_ts(self, requester: Requester) -> int:
        """Returns the time of an event that the requester sends; 0 stands for the present. Raises M_INVALID_PARAM.

        Spec: application-service-api/#timestamp-massaging
        """
        if self.ts is None or requester.appservice is None:
            return 0
        if not 0 < self.ts <= limits.TIMESTAMP_MS_MAX:
            raise invalid_param(f"ts must be from 1 to {limits.TIMESTAMP_MS_MAX}.")
        return self.ts
