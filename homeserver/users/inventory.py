"""The inventory of a person's data: every table that has any. Exporting and erasing follow the same list.

Theory of operation
- `INVENTORY` has each column that says whose a row is. `tests/stories/test_erasure.py` fills every table, and fails if
  one names the user in a column that is not listed here. So a new table has to be thought of once, for both.
- `homeserver export user` writes the rows of all these tables (`homeserver.portability.people`).
- When an account ends, each feature first deletes its rows in its own way (`Feature.forget_user`): it counts, wakes
  clients, empties caches. Then `forget_rest` deletes what is still there of the tables that must not outlive the
  account, in case a feature has forgotten something.
- What stays, and why, is in docs/erasure.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from homeserver.database import Transaction
from homeserver.database.rows import delete_rows_of, has_rows_of
from homeserver.federation.identifiers import UserID


class Ends(Enum):
    """When the rows go. LATER: by the feature, with the erasure, in time, or not at all; see docs/erasure.md."""

    WITH_ACCOUNT = "with the account"
    LATER = "later"


class Personal(NamedTuple):
    """The rows of a table that belong to a person.

    column: has the number of the user; or, with `by`, the value of a column of another table's rows of that user.
    hidden: columns that are not exported, because they are secrets of the server or would tell on someone else.
    """

    table: str
    column: str = "user_nid"
    ends: Ends = Ends.WITH_ACCOUNT
    hidden: tuple[str, ...] = ()
    by: tuple[str, str] | None = None


_LATER = Ends.LATER

INVENTORY: tuple[Personal, ...] = (
    # The account
    Personal("users", ends=_LATER, hidden=("password_hash",)),
    Personal("account_flags"),
    Personal("access_tokens", hidden=("token_hash",)),
    Personal("access_tokens", "issued_by_nid", hidden=("token_hash", "user_nid")),
    Personal("refresh_tokens", hidden=("token_hash", "family")),
    Personal("registrations", ends=_LATER, hidden=("session",)),
    Personal("user_interactive_sessions", ends=_LATER, hidden=("session",)),
    Personal("threepids"),
    Personal("threepid_bindings"),
    Personal("email_validations", hidden=("client_secret", "token")),
    Personal("outgoing_mail", ends=_LATER),
    Personal("devices"),
    Personal("proof_tokens", hidden=("token_hash",)),
    Personal("page_sessions", hidden=("token_hash",)),
    Personal("oauth_sessions", hidden=("origin",)),
    Personal("cross_signing_resets"),
    Personal("oauth_codes", hidden=("code_hash",)),
    Personal("oauth_device_grants", hidden=("code_hash", "user_code")),
    Personal("passkeys"),
    Personal("external_ids", ends=_LATER),
    Personal("sso_attempts", hidden=("state_hash", "browser_hash", "nonce", "verifier")),
    Personal("departures", ends=_LATER),
    Personal("erased_senders", "sender_nid", ends=_LATER),
    # What clients store, and how they sync
    Personal("account_data"),
    Personal("account_data_sizes"),
    Personal("filters"),
    Personal("push_rules"),
    Personal("push_rule_changes"),
    Personal("pushers"),
    Personal("push_queue", "pusher", ends=_LATER, by=("pushers", "pusher")),
    Personal("sync_connections"),
    Personal("sync_connection_configs", "connection", ends=_LATER, by=("sync_connections", "connection")),
    Personal("sync_connection_rooms", "connection", ends=_LATER, by=("sync_connections", "connection")),
    # What others see
    Personal("profiles"),
    Personal("profile_updates"),
    Personal("profile_renames", ends=_LATER),
    Personal("presence", ends=_LATER),
    Personal("presence_devices"),
    Personal("heartbeats", ends=_LATER),
    Personal("friends"),
    Personal("friends", "friend_nid", ends=_LATER),
    Personal("friend_rooms", ends=_LATER),
    Personal("friend_rooms", "friend_nid", ends=_LATER),
    Personal("friend_tasks"),
    Personal("friend_tasks", "friend_nid", ends=_LATER),
    Personal("friend_withdrawals", ends=_LATER),
    Personal("friend_withdrawals", "friend_nid", ends=_LATER),
    Personal("typing", ends=_LATER),
    Personal("receipts"),
    Personal("receipt_moves"),
    Personal("directory_words", ends=_LATER),
    Personal("aliases", "creator_nid", ends=_LATER),
    # Rooms; the events themselves are exported apart
    Personal("memberships", ends=_LATER),
    Personal("outside_memberships", ends=_LATER),
    Personal("pending_leaves", ends=_LATER),
    Personal("thread_senders", "sender_nid", ends=_LATER),
    Personal("relations", "sender_nid", ends=_LATER),
    Personal("notified_events", "sender_nid", ends=_LATER),
    Personal("own_notifications"),
    Personal("own_notifications", "sender_nid", ends=_LATER, hidden=("user_nid",)),
    Personal("written_up_to"),
    Personal("delivered_upto"),
    Personal("imports", "keeper_nid", ends=_LATER),
    Personal("thread_subscriptions"),
    Personal("delayed_events", hidden=("delay_id",)),
    # Keys and messages between devices
    Personal("device_keys"),
    Personal("dehydrated_devices"),
    Personal("one_time_keys"),
    Personal("issued_one_time_keys"),
    Personal("fallback_keys"),
    Personal("cross_signing_keys"),
    Personal("user_signatures", "signer_nid"),
    Personal("user_signatures", "signed_user_nid", ends=_LATER),
    Personal("device_lists", ends=_LATER),
    Personal("device_list_updates", ends=_LATER),
    Personal("to_device_inbox"),
    Personal("to_device_inbox", "holder_nid", ends=_LATER),
    Personal("to_device_outbox", "holder_nid", ends=_LATER),
    Personal("to_device_queue_sizes", "owner_nid"),
    Personal("to_device_queue_sizes", "holder_nid", ends=_LATER),
    Personal("to_device_requests"),
    Personal("key_backups"),
    Personal("key_backup_versions", ends=_LATER),
    Personal("key_backup_keys", "store", ends=_LATER, by=("key_backup_versions", "store")),
    # Files
    Personal("media", "uploader_nid", ends=_LATER, hidden=("blob_key",)),
    Personal("media_usage", "uploader_nid", ends=_LATER),
    Personal("media_pending", "uploader_nid", ends=_LATER),
    Personal("media_uploads", "owner_nid", ends=_LATER),
    # Reports: the people who have reported the user are not told
    Personal("reports", "reporter_nid", ends=_LATER),
    Personal("reports", "target_nid", ends=_LATER, hidden=("reporter_nid", "reason")),
    Personal("notice_rooms"),
    # What administrators have done
    Personal("blocked_rooms", ends=_LATER),
    Personal("tasks", "resource_nid", ends=_LATER, hidden=("parameters", "result")),
    # Figures
    Personal("active_people"),
)


def list_rest(tx: Transaction, user_id: UserID) -> list[Personal]:
    """Returns the tables that still have rows of a user whose account has ended, though they must not outlive it."""
    user_nid = tx.find(user_id)
    ending = (each for each in INVENTORY if each.ends is Ends.WITH_ACCOUNT and each.by is None)
    return [each for each in ending if has_rows_of(tx, each.table, each.column, user_nid)]


def forget_rest(tx: Transaction, user_id: UserID, rest: Sequence[Personal]) -> None:
    """Deletes the rows of such tables."""
    for each in rest:
        delete_rows_of(tx, each.table, each.column, tx.find(user_id))
