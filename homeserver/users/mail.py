"""Outgoing email: what waits to be sent. `homeserver/features/mail.py` sends it.

Theory of operation. An email is written into a table by the write that has a reason for it, so it is sent even if the
server stops in between. A mail server that does not answer is asked again after a growing pause, until the email is too
old to be of use. An email that is refused is dropped. After a crash an email may be sent twice, with the same
Message-ID.
"""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from email.charset import QP, Charset
from email.header import Header
from email.message import Message
from email.policy import compat32
from email.utils import format_datetime, formataddr, parseaddr

import msgspec

from homeserver import limits
from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID
from homeserver.moments import latest

# The newer policies of `email` parse what they write, and fail for some subjects that strangers can choose.
_POLICY = compat32.clone(mangle_from_=False)

WAKE_KEY = "mail"
"""The stream key of the task that sends."""

# user_nid: whom the email is for, 0 if there is no account yet. message: RFC 5322.
SCHEMA = Schema(
    "mail",
    (
        Step(
            "001_create",
            """
            CREATE TABLE outgoing_mail (
                position INTEGER PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                address TEXT NOT NULL,
                message BLOB NOT NULL,
                queued_ms INTEGER NOT NULL,
                failures INTEGER NOT NULL,
                retry_after_ms INTEGER NOT NULL
            );
            CREATE INDEX outgoing_mail_of_user ON outgoing_mail (user_nid);
            """,
        ),
    ),
)


class Mail(msgspec.Struct, frozen=True):
    """An email that waits. message: RFC 5322. failures: how often sending it has failed."""

    position: int
    address: str
    message: bytes
    failures: int


def insert_mail(
    tx: Transaction,
    user_id: UserID | None,
    address: str,
    subject: str,
    text: str,
    *,
    headers: tuple[tuple[str, str], ...] = (),
) -> None:
    """Writes an email, and wakes the task that sends it. user_id: the recipient, None without an account.

    Over MAILS_WAITING_MAX the oldest ones are dropped.
    """
    message = Message(_POLICY)
    sender = tx.server.config.email.from_address
    message["From"] = formataddr(parseaddr(sender))
    message["To"] = address
    message["Subject"] = _encoded(subject)
    message["Date"] = format_datetime(datetime.fromtimestamp(tx.now_ms / 1000, UTC))
    message["Message-ID"] = f"<{secrets.token_urlsafe(18)}@{parseaddr(sender)[1].rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    for name, value in headers:
        message[name] = value
    message.set_payload(text, _charset_of(text))
    tx.run(
        "INSERT INTO outgoing_mail (position, user_nid, address, message, queued_ms, failures, retry_after_ms)"
        " VALUES (?, ?, ?, ?, ?, 0, 0)",
        tx.next_position(WAKE_KEY), tx.intern(user_id) if user_id else 0, address, message.as_bytes(), tx.now_ms,
    )  # fmt: skip
    tx.run(
        "DELETE FROM outgoing_mail WHERE position <= COALESCE((SELECT position FROM outgoing_mail"
        " ORDER BY position DESC LIMIT 1 OFFSET ?), 0)",
        limits.users.MAILS_WAITING_MAX,
    )


def _charset_of(text: str) -> Charset:
    charset = Charset("us-ascii" if text.isascii() else "utf-8")
    if not text.isascii():
        charset.body_encoding = QP
    return charset


def _encoded(text: str) -> str:
    """Returns the text of a header. What only looks like an encoded word (RFC 2047) is encoded too."""
    line = " ".join(text.split())
    return Header(line, "us-ascii" if line.isascii() and "=?" not in line else "utf-8", header_name="Subject").encode()


def list_mail_due(tx: Transaction) -> list[Mail]:
    """Returns the first emails that are to be sent now."""
    rows = tx.all(
        "SELECT position, address, message, failures FROM outgoing_mail WHERE retry_after_ms <= ?"
        " OR retry_after_ms > ? ORDER BY position LIMIT ?",
        tx.now_ms, latest(tx.now_ms, limits.users.MAIL_RETRY_MS_MAX), limits.users.MAILS_PER_CONNECTION,
    )  # fmt: skip
    return [Mail(position, address, bytes(message), failures) for position, address, message, failures in rows]


def find_next_mail_ms(tx: Transaction) -> int | None:
    """Returns when the next email is to be sent, None if none waits."""
    row = tx.one("SELECT MIN(retry_after_ms) FROM outgoing_mail")
    return (
        None if row is None or row[0] is None else min(int(row[0]), latest(tx.now_ms, limits.users.MAIL_RETRY_MS_MAX))
    )


def delete_mail(tx: Transaction, position: int) -> None:
    """Deletes an email that was sent or refused."""
    tx.run("DELETE FROM outgoing_mail WHERE position = ?", position)


def note_mail_failed(tx: Transaction, mail: Mail) -> None:
    """Notes that the mail server did not take an email this time. Emails that are too old are dropped."""
    delay_ms = min(limits.users.MAIL_RETRY_MS << min(mail.failures, 20), limits.users.MAIL_RETRY_MS_MAX)
    tx.run(
        "UPDATE outgoing_mail SET failures = ?, retry_after_ms = ? WHERE position = ?",
        mail.failures + 1, tx.now_ms + delay_ms, mail.position,
    )  # fmt: skip
    tx.run(
        "DELETE FROM outgoing_mail WHERE position = ? AND (queued_ms <= ? OR queued_ms > ?)",
        mail.position, tx.now_ms - limits.users.MAIL_AGE_MS, latest(tx.now_ms, 0),
    )  # fmt: skip


def forget_mail(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes emails for the user."""
    tx.run("DELETE FROM outgoing_mail WHERE user_nid = ?", tx.find(user_id))
    return False
