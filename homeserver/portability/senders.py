"""The senders of imported events: users of this server, and placeholders for everyone else.

A placeholder is an account without password and devices, which belongs to the import: nobody can log in to it. Its name
follows from the exported user ID, so all imports of a person use the same one. It has the person's name and picture.
"""

from __future__ import annotations

import hashlib
import re

from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID, localpart_of
from homeserver.portability.folders import ExportError
from homeserver.users.accounts import create_user, find_user, is_active

OWNER = "org.homeserver.import"
_UNUSUAL = re.compile(r"[^a-z0-9._-]+", re.ASCII)


def get_sender(tx: Transaction, exported: str, *, is_own: bool) -> UserID:
    """Returns the user who sends what `exported` has sent. Creates a placeholder if there is none yet.

    is_own: whether this server has said so itself, so that its own users may be named.
    """
    if is_own and is_active(tx, UserID(exported)):
        return UserID(exported)
    readable = _UNUSUAL.sub("-", localpart_of(UserID(exported)).lower())[:40].strip("-")
    digest = hashlib.sha256(exported.encode()).hexdigest()[:16]
    user_id = UserID(f"@imported-{readable}-{digest}:{tx.server.name}")
    user = find_user(tx, user_id)
    if user is None:
        create_user(tx, user_id, appservice=OWNER)
    elif user.appservice != OWNER:
        raise ExportError(f"the account {user_id}, which would stand for {exported}, belongs to someone else")
    return user_id
