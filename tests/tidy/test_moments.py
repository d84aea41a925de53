"""Every column that holds a moment is read so that a clock which was wrong does no lasting harm.

A new column fails here until it has an entry: the function that reads it by way of `homeserver/moments.py`, or why a
wrong moment in it does no harm.
"""

from __future__ import annotations

import re

from tests.tidy.source import python_files

TABLE = re.compile(r"CREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?(\w+)\s*\((.*?)\)\s*(?:WITHOUT ROWID)?;", re.DOTALL)
DROPPED = re.compile(r"DROP TABLE (\w+)")
ADDED = re.compile(r"ALTER\s+TABLE\s+(\w+)\s+ADD\s+(?:COLUMN\s+)?(\w+)")
MOMENT = re.compile(r"^\s*(\w+_(?:ms|ts|at|until)|expires|deadline)\s+(?:INTEGER|BIGINT)", re.MULTILINE)

# What is looked up in a moment that decides something, and where.
READ = {
    "application_services.retry_after_ms": "homeserver/features/application_services/storage.py::due_in_s",
    "archive_garbage.due_ms": "homeserver/rooms/archive/blocks.py::list_garbage",
    "access_tokens.expires_ms": "homeserver/authenticate/identify.py::_requester_of",
    "delayed_events.due_ms": "homeserver/features/delayed_events.py::_follow_clock",
    "delayed_events.scheduled_ms": "homeserver/users/delayed_events.py::note_wrong_times",
    "cross_signing_resets.until_ms": "homeserver/users/oauth/cross_signing.py::is_reset_approved",
    "device_list_resyncs.retry_after_ms": "homeserver/remote/resyncs.py::list_servers_due",
    "destinations_behind.retry_after_ms": "homeserver/process/back_off.py::is_over",
    "heartbeats.last_ms": "homeserver/users/status.py::find_last_heartbeats",
    "friend_lanes.retry_after_ms": "homeserver/users/friend_tasks.py::list_lanes_due",
    "friend_tasks.retry_after_ms": "homeserver/users/friend_tasks.py::find_lane_task",
    "media.used_ms": "homeserver/features/media/downloads.py::note_used",
    "media_images.checked_ms": "homeserver/features/media/thumbnails.py::get_thumbnail",
    "media_pending.expires_ms": "homeserver/features/media/storage.py::_pending_between",
    "media_uploads.expires_ms": "homeserver/features/media/resumable_storage.py::_unexpired",
    "parked_events.retry_ms": "homeserver/remote/gaps.py::_due",
    "pending_leaves.retry_after_ms": "homeserver/remote/pending_leaves.py::list_due",
    "oauth_codes.expires_ms": "homeserver/users/oauth/grants.py::query_authorization_code",
    "oauth_device_grants.expires_ms": "homeserver/users/oauth/device_grants.py::find_poll",
    "oauth_device_grants.polled_ms": "homeserver/users/oauth/device_grants.py::note_poll",
    "presence.due_ms": "homeserver/users/presence.py::_due",
    "presence.last_active_ms": "homeserver/users/presence.py::_presences",
    "presence.told_ms": "homeserver/users/presence.py::_presences",
    "presence_devices.seen_ms": "homeserver/users/presence.py::_store_current",
    "push_queue.queued_ms": "homeserver/features/pushers/messages.py::find_notification",
    "email_validations.created_ms": "homeserver/users/email_validation.py::_lifetime",
    "outgoing_mail.retry_after_ms": "homeserver/users/mail.py::list_mail_due",
    "pushers.mailed_ms": "homeserver/features/pushers/emails.py::_due_ms",
    "registrations.created_ms": "homeserver/features/registration.py::_find_made",
    "server_keys.fetched_ms": "homeserver/remote/keys.py::list_statements",
    "server_keys.valid_until_ts": "homeserver/remote/keys.py::store_statements",
    "transactions.received_ms": "homeserver/remote/inbound.py::store_answer",
    "typing.expires_ms": "homeserver/features/typing.py::_is_typing",
    "page_sessions.created_ms": "homeserver/users/page_sessions.py::find_page_session",
    "passkey_challenges.created_ms": "homeserver/users/passkeys.py::get_challenge",
    "proof_tokens.expires_ms": "homeserver/users/proof_tokens.py::find_proven",
    "sso_attempts.created_ms": "homeserver/users/single_sign_on.py::find_attempt",
    "rendezvous_sessions.expires_ms": "homeserver/features/rendezvous.py::_get_session",
    "user_interactive_sessions.created_ms": "homeserver/users/user_interactive.py::_find_session",
    "own_keys.expired_ts": "homeserver/remote/identity.py::list_old_keys",
    "url_previews.fetched_ms": "homeserver/features/media/previews.py::_is_fresh",
    "url_preview_pictures.used_ms": "homeserver/features/media/preview_storage.py::delete_expired_previews",
}
SHOWN = "It is shown to people and decides nothing."
HARMLESS = {
    "application_services.since_ms": SHOWN,
    "media_references.last_ts": "What senders claim: with a wrong time a file stays longer, or goes earlier.",
    "archived_txns.event_ts": "A client's retry is recognised for a while, or a while longer.",
    "archive_blocks.first_ts": "What senders claim: it says in which blocks to look.",
    "archive_blocks.live_ts": "What senders claim: of a message with a wrong time nobody knows when it expires.",
    "archive_blocks.last_ts": "What senders claim: it says in which blocks to look.",
    "leases.until_ms": "By the clock of PostgreSQL; one that lasts longer than any is granted is taken as over.",
    "access_tokens.created_ms": SHOWN,
    "refresh_tokens.created_ms": SHOWN,
    "users.created_ms": SHOWN,
    "users.deactivated_ms": "Whether it is set counts, not when.",
    "delayed_events.delay_ms": "A length of time, at most DELAY_MS_MAX.",
    "delayed_events.sent_as_ms": "An application service says so: it decides nothing.",
    "delayed_events.finalised_ms": "What became of an event is told for a while, or a while longer.",
    "devices.created_ms": SHOWN,
    "devices.last_seen_ms": SHOWN,
    "oauth_sessions.created_ms": SHOWN,
    "oauth_clients.used_ms": "A client that nobody uses is kept for a while, or goes earlier and registers again.",
    "oauth_device_grants.interval_ms": "A length of time; a code whose interval is too long has ended.",
    "media.created_ms": "An operator has named the day of the freeze; a wrong clock makes single files old or new.",
    "passkeys.created_ms": SHOWN,
    "passkeys.used_ms": SHOWN,
    "pushers.set_ms": SHOWN,
    "pushers.pause_ms": "A length of time, at most EMAIL_PAUSE_MS_MAX when it is read.",
    "email_validations.validated_ms": "Whether it is set counts, not when.",
    "outgoing_mail.queued_ms": "An email that cannot be sent is kept for a while, or a while longer.",
    "threepids.added_ms": SHOWN,
    "threepids.validated_ms": SHOWN,
    "receipts.ts_ms": SHOWN,
    "receipt_moves.ts_ms": SHOWN,
    "friends.since_ms": SHOWN,
    "friend_tasks.since_ms": "A request to a server that is away is given up after months, or some later.",
    "rendezvous_sessions.changed_ms": SHOWN,
    "reports.received_ms": SHOWN,
    "tasks.changed_ms": SHOWN,
    "events.origin_server_ts": "Other servers claim what they like: nothing trusts it.",
    "relations.edit_ts": "The same timestamp, by which the specification orders edits.",
    "registration_tokens.created_ms": SHOWN,
    "registration_tokens.expires_ms": "An operator has named the day: it is right whatever the clock says meanwhile.",
    "parked_events.received_ms": "The events are kept for a while, or a while longer.",
    "parked_items.parked_ms": SHOWN,
    "figures_clock.clock_ms": "Never taken beyond the present; days that it closed too early are closed again.",
    "destinations_behind.since_ms": SHOWN,
    "pending_leaves.since_ms": "It tells a leave from the one that it replaces; and when it is given up after months.",
}


def columns() -> set[str]:
    found = set()
    for source in python_files("homeserver"):
        for _, text in source.strings:
            for table, body in TABLE.findall(text):
                found.update(f"{table}.{column}" for column in MOMENT.findall(body))
            for table, column in ADDED.findall(text):
                if MOMENT.match(f"{column} INTEGER"):
                    found.add(f"{table}.{column}")
    dropped = dropped_tables()
    return {column for column in found if column.partition(".")[0] not in dropped}


def dropped_tables() -> set[str]:
    """The tables that a later step of their schema replaces."""
    return {
        table for source in python_files("homeserver") for _, text in source.strings for table in DROPPED.findall(text)
    }


def functions() -> set[str]:
    return {f"{source.name}::{node.name}" for source in python_files("homeserver") for node in source.functions}


def test_every_stored_moment_is_accounted_for() -> None:
    assert columns() == READ.keys() | HARMLESS.keys()


def test_readers_of_stored_moments_exist() -> None:
    assert set(READ.values()) <= functions()
