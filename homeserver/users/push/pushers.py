"""Pushers: the gateways that notify a user's devices, and the notifications that still wait for them.

Theory of operation. The tail that finds out whom an event notifies adds a row to `push_queue` for each pusher of those
users, in the write that stores the notification. Delivery deletes the row once the gateway has taken it. So nothing is
lost if the server stops in between, and the gateway may be told twice, which it notices by the event's ID. A pusher's
queue has PUSH_QUEUE_MAX rows at most; what is older than PUSH_AGE_MS is of no use to anybody. A row of position 0 says
that the number of unread notifications has changed without a new one.

Pushers of kind "email" have the email address as their key and EMAIL_APP_ID as their app. Their queue is emptied into
one email from time to time.

A pusher is known by the position at which it was created. Spec: client-server-api/#push-notifications
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import UserID

WAKE_KEY = "pushers"
"""Wakes the delivery when there is something to be sent."""
COUNTS_ONLY = 0
"""The position of a row that tells no event, only the number of unread ones."""

EMAIL_APP_ID = "m.email"

# content: names, language, profile tag and data, as the client has set them. device_id: of the token that set it.
# added: the position at which a row was added, or changed.
SCHEMA = Schema(
    "pushers",
    (
        Step(
            "001_create",
            """
            CREATE TABLE pushers (
                pusher INTEGER PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                app_id TEXT NOT NULL,
                pushkey TEXT NOT NULL,
                device_id TEXT NOT NULL,
                set_ms INTEGER NOT NULL,
                content BLOB NOT NULL
            );
            CREATE UNIQUE INDEX pushers_by_key ON pushers (pushkey, app_id, user_nid);
            CREATE INDEX pushers_of_user ON pushers (user_nid);
            CREATE TABLE push_queue (
                pusher INTEGER NOT NULL,
                position INTEGER NOT NULL,
                actions TEXT,
                queued_ms INTEGER NOT NULL,
                added INTEGER NOT NULL,
                PRIMARY KEY (pusher, position)
            ) WITHOUT ROWID;
            CREATE INDEX push_queue_by_added ON push_queue (added);
            """,
        ),
        Step(
            "002_emails",
            """
            -- mailed_ms: when the last email was written, 0 if all was read since. pause_ms: until the next one.
            ALTER TABLE pushers ADD COLUMN mailed_ms INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE pushers ADD COLUMN pause_ms INTEGER NOT NULL DEFAULT 0;
            """,
        ),
    ),
)


class Pusher(msgspec.Struct, frozen=True):
    """A pusher as stored. content: what the client has set beside app_id and pushkey. set_ms: when it was set.

    pause_ms: how long after an email the next one may be written.
    """

    number: int
    user_id: UserID
    app_id: str
    pushkey: str
    set_ms: int
    content: JsonObject
    pause_ms: int

    @property
    def is_email(self) -> bool:
        """Whether the pusher sends email, instead of telling a gateway."""
        return self.content.get("kind") == "email"

    @property
    def url(self) -> str:
        """Where to send notifications."""
        return str(self.content["data"]["url"])

    @property
    def data(self) -> JsonObject:
        """The part of the data that the gateway gets: everything but the URL."""
        return {name: value for name, value in self.content["data"].items() if name != "url"}

    def body(self) -> JsonObject:
        """Returns the pusher as in the API."""
        return {"app_id": self.app_id, "pushkey": self.pushkey, "kind": "http", **self.content}


# --- pushers ---


def store_pusher(
    tx: Transaction,
    user_id: UserID,
    device_id: str,
    app_id: str,
    pushkey: str,
    content: JsonObject,
    *,
    append: bool,
) -> None:
    """Creates the user's pusher, or replaces its content. Unless `append`, other users' pushers of that key end.

    Raises MatrixError 403 M_USER_LIMIT_EXCEEDED if the user has too many.
    """
    if not append:
        _delete_of_others(tx, user_id, app_id, pushkey)
    user_nid = tx.intern(user_id)
    changed = tx.run(
        "UPDATE pushers SET device_id = ?, set_ms = ?, content = ? WHERE pushkey = ? AND app_id = ? AND user_nid = ?",
        device_id, tx.now_ms, to_json(content), pushkey, app_id, user_nid,
    )  # fmt: skip
    if changed:
        return
    (count,) = tx.one("SELECT COUNT(*) FROM pushers WHERE user_nid = ?", user_nid) or (0,)
    if count >= limits.users.PUSHERS_MAX:
        raise MatrixError(
            403, "M_USER_LIMIT_EXCEEDED", f"A user may have at most {limits.users.PUSHERS_MAX} pushers. Delete one.",
            info_uri=tx.server.config.base_url,
        )  # fmt: skip
    tx.run(
        "INSERT INTO pushers (pusher, user_nid, app_id, pushkey, device_id, set_ms, content)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        tx.next_position(), user_nid, app_id, pushkey, device_id, tx.now_ms, to_json(content),
    )  # fmt: skip


def list_pushers(tx: Transaction, user_id: UserID) -> list[Pusher]:
    """Returns the user's pushers, oldest first."""
    rows = tx.all(
        "SELECT pusher, user_nid, app_id, pushkey, set_ms, content, pause_ms FROM pushers WHERE user_nid = ?"
        " ORDER BY pusher",
        tx.find(user_id),
    )
    return [_pusher(tx, row) for row in rows]


def find_pusher(tx: Transaction, number: int) -> Pusher | None:
    """Returns a pusher, None if it was deleted."""
    row = tx.one(
        "SELECT pusher, user_nid, app_id, pushkey, set_ms, content, pause_ms FROM pushers WHERE pusher = ?", number
    )
    return None if row is None else _pusher(tx, row)


def _pusher(tx: Transaction, row: Row) -> Pusher:
    number, user_nid, app_id, pushkey, set_ms, content, pause_ms = row
    return Pusher(number, UserID(tx.name(user_nid)), app_id, pushkey, set_ms, orjson.loads(content), pause_ms)


def find_last_pusher(tx: Transaction) -> int:
    """Returns the number of the newest pusher, 0 if there is none."""
    row = tx.one("SELECT MAX(pusher) FROM pushers")
    return 0 if row is None or row[0] is None else int(row[0])


def list_with_pushers(tx: Transaction, user_ids: Collection[UserID]) -> set[UserID]:
    """Returns those of these users who have pushers."""
    by_nid = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in("SELECT DISTINCT user_nid FROM pushers WHERE user_nid IN (?*)", by_nid)
    return {by_nid[nid] for (nid,) in rows}


def delete_pusher(tx: Transaction, user_id: UserID, app_id: str, pushkey: str) -> None:
    """Deletes a pusher of the user, if there is one."""
    _delete(
        tx,
        tx.values(
            "SELECT pusher FROM pushers WHERE pushkey = ? AND app_id = ? AND user_nid = ?",
            pushkey, app_id, tx.find(user_id),
        ),
    )  # fmt: skip


def delete_rejected(tx: Transaction, numbers: Iterable[int]) -> None:
    """Deletes pushers whose key the gateway has rejected."""
    _delete(tx, list(numbers))


def delete_email_pushers(tx: Transaction, user_id: UserID, address: str) -> None:
    """Deletes the pusher of an email address that is the user's no more."""
    delete_pusher(tx, user_id, EMAIL_APP_ID, address)


def _delete_of_others(tx: Transaction, user_id: UserID, app_id: str, pushkey: str) -> None:
    _delete(
        tx,
        tx.values(
            "SELECT pusher FROM pushers WHERE pushkey = ? AND app_id = ? AND user_nid <> ?",
            pushkey, app_id, tx.intern(user_id),
        ),
    )  # fmt: skip


def delete_pushers_of_device(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Deletes the pushers that a device has created, because it is logged out."""
    _delete(
        tx, tx.values("SELECT pusher FROM pushers WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id)
    )


def forget_pushers(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes all pushers of the user."""
    _delete(tx, tx.values("SELECT pusher FROM pushers WHERE user_nid = ?", tx.find(user_id)))
    return False


def _delete(tx: Transaction, numbers: Sequence[int]) -> None:
    tx.many("DELETE FROM push_queue WHERE pusher = ?", [(number,) for number in numbers])
    tx.many("DELETE FROM pushers WHERE pusher = ?", [(number,) for number in numbers])


# --- what they have not been told ---


class Queued(msgspec.Struct, frozen=True):
    """Something a pusher is to be told: an event by its position, or COUNTS_ONLY. actions: JSON, None for notify."""

    pusher: int
    position: int
    actions: str | None
    queued_ms: int
    added: int


def store_queued(tx: Transaction, user_id: UserID, position: int, actions: str | None) -> None:
    """Adds an event, or COUNTS_ONLY, to the queue of each of the user's pushers."""
    numbers = tx.values("SELECT pusher FROM pushers WHERE user_nid = ?", tx.find(user_id))
    for number in numbers:
        _delete_oldest(tx, number)
    tx.many(
        "INSERT INTO push_queue (pusher, position, actions, queued_ms, added) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (pusher, position) DO UPDATE SET queued_ms = excluded.queued_ms, added = excluded.added",
        [(number, position, actions, tx.now_ms, tx.next_position(WAKE_KEY)) for number in numbers],
    )


def _delete_oldest(tx: Transaction, number: int) -> None:
    """Makes place for one more row."""
    (count,) = tx.one("SELECT COUNT(*) FROM push_queue WHERE pusher = ?", number) or (0,)
    if count >= limits.users.PUSH_QUEUE_MAX:
        tx.run(
            "DELETE FROM push_queue WHERE pusher = ? AND position IN"
            " (SELECT position FROM push_queue WHERE pusher = ? ORDER BY position LIMIT ?)",
            number, number, count - limits.users.PUSH_QUEUE_MAX + 1,
        )  # fmt: skip


def list_waiting(tx: Transaction, since: int) -> list[int]:
    """Returns the pushers with a gateway that were given something to tell after position `since`."""
    return tx.values(
        "SELECT DISTINCT push_queue.pusher FROM push_queue JOIN pushers ON pushers.pusher = push_queue.pusher"
        " WHERE added > ? AND app_id <> ?",
        since, EMAIL_APP_ID,
    )  # fmt: skip


def list_email_queues(tx: Transaction) -> list[Row]:
    """Returns the email pushers with events to tell: number, since when, when the last email was, and the pause."""
    return tx.all(
        "SELECT pushers.pusher, MIN(queued_ms), MIN(mailed_ms), MIN(pause_ms) FROM pushers"
        " JOIN push_queue ON push_queue.pusher = pushers.pusher"
        " WHERE app_id = ? AND position <> ? GROUP BY pushers.pusher",
        EMAIL_APP_ID, COUNTS_ONLY,
    )  # fmt: skip


def set_mailed(tx: Transaction, number: int, mailed_ms: int, pause_ms: int) -> None:
    """Notes when an email was written, and the pause until the next one."""
    tx.run("UPDATE pushers SET mailed_ms = ?, pause_ms = ? WHERE pusher = ?", mailed_ms, pause_ms, number)


def find_first_queued(tx: Transaction, number: int) -> Queued | None:
    """Returns what a pusher is to be told next, None if nothing. A change of the counts comes before events."""
    row = tx.one(
        "SELECT pusher, position, actions, queued_ms, added FROM push_queue WHERE pusher = ? ORDER BY position LIMIT 1",
        number,
    )
    return None if row is None else Queued(*row)


def list_queued(tx: Transaction, number: int) -> list[Queued]:
    """Returns everything that a pusher is to be told, in order."""
    rows = tx.all(
        "SELECT pusher, position, actions, queued_ms, added FROM push_queue WHERE pusher = ? ORDER BY position", number
    )
    return [Queued(*row) for row in rows]


def delete_queued(tx: Transaction, queued: Queued) -> None:
    """Deletes a row that is dealt with. A change of the counts that was noted meanwhile stays."""
    tx.run(
        "DELETE FROM push_queue WHERE pusher = ? AND position = ? AND added = ?",
        queued.pusher, queued.position, queued.added,
    )  # fmt: skip


def delete_all_queued(tx: Transaction, queued: Sequence[Queued]) -> None:
    """Deletes several rows."""
    for each in queued:
        delete_queued(tx, each)
