"""Sending email through the operator's mail server, with smtplib in a thread: no library for trio is well kept."""

from __future__ import annotations

import logging
import math
import smtplib
import ssl
from collections.abc import Sequence
from email.utils import parseaddr
from pathlib import Path
from typing import Literal

import trio

from homeserver import limits
from homeserver.config import Email
from homeserver.database import Transaction
from homeserver.feature import Feature
from homeserver.resources import Resources
from homeserver.users.mail import (
    WAKE_KEY,
    Mail,
    delete_mail,
    find_next_mail_ms,
    forget_mail,
    list_mail_due,
    note_mail_failed,
)

_log = logging.getLogger(__name__)

SENT_COUNTER = "homeserver_mails_total"

Outcome = Literal["sent", "refused", "failed"]


async def send_mail(hs: Resources) -> None:
    """Sends what waits, for ever. One node of several does."""
    if not hs.config.email.smtp_host:
        return
    hs.metrics.describe(SENT_COUNTER, "Emails given to the mail server, and what became of them.")
    async with hs.database.hold("mail"):
        while True:
            mails, next_ms, position = await hs.database.read(_read_due)
            if mails:
                outcomes = await hs.workers.wait_for(send_all, hs.config.email, mails)
                await hs.database.write(_store_outcomes, mails, outcomes)
                for outcome, _ in outcomes:
                    hs.metrics.count(SENT_COUNTER, (("outcome", outcome),))
            else:
                wait_s = math.inf if next_ms is None else max(0, next_ms - hs.now_ms()) / 1000
                await hs.stream.wait((WAKE_KEY,), position, trio.current_time() + wait_s)


def _read_due(tx: Transaction) -> tuple[list[Mail], int | None, int]:
    return list_mail_due(tx), find_next_mail_ms(tx), tx.position


def _store_outcomes(tx: Transaction, mails: Sequence[Mail], outcomes: Sequence[tuple[Outcome, str]]) -> None:
    for mail, (outcome, reason) in zip(mails, outcomes, strict=False):  # the rest was not tried
        if outcome != "sent":  # without the address, which does not belong in the log
            _log.warning("email not sent", extra={"outcome": outcome, "reason": reason})
        if outcome == "failed":
            note_mail_failed(tx, mail)
        else:
            delete_mail(tx, mail.position)


def send_all(settings: Email, mails: Sequence[Mail]) -> list[tuple[Outcome, str]]:
    """Gives emails to the mail server over one connection. Blocks. Returns the outcome of each, and why.

    If the mail server ends the connection, the emails that it has not seen are left out: it may only have disliked the
    last one, and the others are sent over a new connection.
    """
    outcomes: list[tuple[Outcome, str]] = []
    tried = len(mails)
    try:
        with _connect(settings) as connection:
            for number, mail in enumerate(mails, 1):
                tried = number
                outcomes.append(_send(connection, settings, mail))
                if connection.sock is None:  # smtplib has closed it, because the answer was 421
                    break
    except (OSError, ValueError) as error:  # smtplib's errors are OSErrors
        outcomes += [("failed", _reason(error))] * (tried - len(outcomes))
    return outcomes


def try_mail_server(settings: Email) -> str:
    """Returns why the mail server cannot be used, "" if it can. Blocks. Sends nothing."""
    try:
        with _connect(settings) as connection:
            connection.noop()
    except (OSError, ValueError) as error:
        return _reason(error)
    return ""


def _connect(settings: Email) -> smtplib.SMTP:
    """Returns a connection over which email can be sent. Raises OSError or ValueError."""
    context = ssl.create_default_context()
    where, timeout_s = (settings.smtp_host, settings.smtp_port), limits.users.MAIL_TIMEOUT_S
    if settings.smtp_tls == "tls":
        connection: smtplib.SMTP = smtplib.SMTP_SSL(*where, timeout=timeout_s, context=context)
    else:
        connection = smtplib.SMTP(*where, timeout=timeout_s)
    try:
        if settings.smtp_tls == "starttls":
            connection.starttls(context=context)
        if settings.smtp_user:
            password = Path(settings.smtp_password_file).read_text().strip() if settings.smtp_password_file else ""
            connection.login(settings.smtp_user, password)
    except BaseException:  # whatever it is, the connection must not stay open
        connection.close()
        raise
    return connection


def _send(connection: smtplib.SMTP, settings: Email, mail: Mail) -> tuple[Outcome, str]:
    try:
        connection.sendmail(parseaddr(settings.from_address)[1], [mail.address], mail.message)
    except smtplib.SMTPRecipientsRefused as error:
        codes = [code for code, _ in error.recipients.values()]
        return ("refused" if all(code >= 500 for code in codes) else "failed"), f"status {codes}"
    except smtplib.SMTPResponseException as error:
        return ("refused" if error.smtp_code >= 500 else "failed"), f"status {error.smtp_code}"
    return "sent", ""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


FEATURE = Feature(
    name="mail",
    spec="none: email that other features send",
    background=(send_mail,),
    forget_user=forget_mail,
)
