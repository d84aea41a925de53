"""The requester of an operation, and what they may do. Spec: client-server-api/#account-locking, #account-suspension"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Operation
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.limits import Bucket
from homeserver.resources import Resources


class Requester(msgspec.Struct, frozen=True):
    """The user who makes a request. `token_id` is the hash of the access token, b"" if there is none.

    appservice: the ID of the application service that makes the request for the user. It may name no device: "".
    is_limited: whether rate limits apply to requests of an application service; to those of users they always do.
    is_shadow_banned: whether what the user does is answered as if it had worked, and reaches nobody.
    rate_limit: what an administrator has set for this account instead of the usual limits. If its `per_second` is 0,
    nothing is limited.
    """

    user_id: UserID
    device_id: str
    is_guest: bool = False
    is_admin: bool = False
    token_id: bytes = b""
    appservice: str | None = None
    is_suspended: bool = False
    is_locked: bool = False
    is_limited: bool = False
    is_shadow_banned: bool = False
    rate_limit: Bucket | None = None


# Classes that count requests of people, for which an account's own rate limit holds. Others count bytes and the like.
_COUNTED = frozenset({"default", "message", "join", "invite"})


def check_may_call(requester: Requester, operation: Operation) -> None:
    """Raises MatrixError if the account is locked, suspended or a guest's and the operation is not for such accounts.

    Suspended accounts and guests may call every operation that needs no access token.
    """
    if requester.is_locked and not operation.allow_locked:
        raise user_locked()
    if operation.plan.requester_optional:
        return
    if not operation.allow_guest:
        check_not_guest(requester)
    if not operation.allow_suspended:
        check_not_suspended(requester)


def check_not_guest(requester: Requester) -> None:
    """Raises M_GUEST_ACCESS_FORBIDDEN if the requester is a guest. For operations that need no access token."""
    if requester.is_guest:
        raise MatrixError(403, "M_GUEST_ACCESS_FORBIDDEN", "Guests may not do this.")


def check_not_suspended(requester: Requester) -> None:
    """Raises M_USER_SUSPENDED if the requester is suspended. Spec: client-server-api/#account-suspension

    For operations with `allow_suspended` that suspended accounts may use for some purposes only.
    """
    if requester.is_suspended:
        raise user_suspended()


def user_suspended() -> MatrixError:
    """Returns 403 M_USER_SUSPENDED."""
    return MatrixError(403, "M_USER_SUSPENDED", "Your account is suspended: you cannot do that at the moment.")


def check_admin(requester: Requester) -> None:
    """Raises M_FORBIDDEN unless the requester is an administrator of this server."""
    if not requester.is_admin:
        raise MatrixError(403, "M_FORBIDDEN", "Only administrators of this server may do this.")


def limit_requester(hs: Resources, requester: Requester, rate_class: str, cost: float = 1) -> None:
    """Takes from the requester's bucket of a class of rate limits. Raises M_LIMIT_EXCEEDED.

    Does nothing for embedding programs, and for application services unless their registration says otherwise.
    """
    if (requester.token_id or requester.is_limited) and not _is_unlimited(requester):
        own = requester.rate_limit if rate_class in _COUNTED else None
        hs.rate_limits.take(rate_class, requester.user_id, hs.now_ms(), cost, own)


def _is_unlimited(requester: Requester) -> bool:
    return requester.rate_limit is not None and not requester.rate_limit.per_second


def charge_requester(hs: Resources, requester: Requester, rate_class: str, cost: float) -> None:
    """Takes a cost that became known only afterwards from the bucket that `limit_requester` takes from.

    The bucket may go into debt. Until that is paid off, `limit_requester` raises M_LIMIT_EXCEEDED, for a cost of 0 too.
    """
    if (requester.token_id or requester.is_limited) and not _is_unlimited(requester):
        hs.rate_limits.charge(rate_class, requester.user_id, hs.now_ms(), cost)


def user_locked() -> MatrixError:
    """Returns 401 M_USER_LOCKED as a soft logout, so the client keeps its keys: the account may be unlocked again."""
    return MatrixError(401, "M_USER_LOCKED", "This account has been locked.", soft_logout=True)
