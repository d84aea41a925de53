"""Suspended accounts: they read, leave and take back what they said, and do nothing else.

Spec: client-server-api/#account-suspension
"""

from __future__ import annotations

from homeserver.authenticate import Requester
from homeserver.errors import MatrixError


def check_not_suspended(requester: Requester) -> None:
    """MatrixError 403 M_USER_SUSPENDED if the requester is suspended."""
    if requester.is_suspended:
        raise MatrixError(403, "M_USER_SUSPENDED", "Your account is suspended: you cannot do that at the moment.")
