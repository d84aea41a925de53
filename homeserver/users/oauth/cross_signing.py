"""Resetting cross-signing on a device that was logged in by OAuth: its client knows no password to authenticate with.

The user approves it on the account page instead, and has some minutes for it. An approval is good for one reset, by any
OAuth session of the user. Spec: client-server-api/#oauth-authentication
"""

from __future__ import annotations

from homeserver import limits
from homeserver.config import Config
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_ahead
from homeserver.resources import Resources
from homeserver.users.user_interactive import Authentication, Flow, Stage

STAGE = "m.oauth"
# The second is what it was called before v1.17. Clients of that time know no other name.
_STAGES = (STAGE, "org.matrix.cross_signing_reset")


def note_reset_approved(tx: Transaction, user_id: UserID) -> None:
    """Lets an OAuth session of the user replace the cross-signing keys, once, within `CROSS_SIGNING_RESET_MS`."""
    tx.run(
        "INSERT INTO cross_signing_resets (user_nid, until_ms) VALUES (?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET until_ms = excluded.until_ms",
        tx.intern(user_id), tx.now_ms + limits.users.CROSS_SIGNING_RESET_MS,
    )  # fmt: skip


def is_reset_approved(tx: Transaction, user_id: UserID) -> bool:
    """Returns whether the user has approved a reset that has not happened yet."""
    row = tx.one("SELECT until_ms FROM cross_signing_resets WHERE user_nid = ?", tx.find(user_id))
    return row is not None and is_ahead(row[0], tx.now_ms, limits.users.CROSS_SIGNING_RESET_MS)


def delete_approval(tx: Transaction, user_id: UserID) -> bool:
    """Deletes an approval. Returns whether there was one."""
    return bool(tx.run("DELETE FROM cross_signing_resets WHERE user_nid = ?", tx.find(user_id)))


def delete_used_approval(tx: Transaction, user_id: UserID, authentication: Authentication) -> None:
    """Deletes the approval by which a reset was authenticated. Raises M_FORBIDDEN if another reset has used it."""
    if not authentication.results.keys().isdisjoint(_STAGES) and not delete_approval(tx, user_id):
        raise forbidden("This approval has already been used.")


def with_stage(auth: JsonObject | None) -> JsonObject | None:
    """Returns `auth` with the stage that a client completes by naming the session only."""
    return auth if auth is None or "session" not in auth else {"type": STAGE, **auth}


def reset_flows(config: Config, user_id: UserID) -> list[Flow]:
    """Returns the flows of user-interactive authentication by which an OAuth session resets cross-signing."""
    url = f"{config.base_url}/_homeserver/account/?action=org.matrix.cross_signing_reset"

    def load(tx: Transaction, auth: JsonObject) -> bool:
        return is_reset_approved(tx, user_id)

    async def check(hs: Resources, auth: JsonObject, is_approved: bool) -> bool:
        if not is_approved:
            raise MatrixError(401, "M_FORBIDDEN", f"Approve the reset first, on {url}.")
        return True

    return [(Stage(name, check, load, {"url": url}),) for name in _STAGES]
