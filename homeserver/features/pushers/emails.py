"""Email pushers: tell users by email what they have not read. Spec: client-server-api/#push-notifications

Theory of operation. Notifications for an email pusher wait in its queue for EMAIL_DELAY_MS, since most are read soon
after they came. Then one email has all of them, but for those that were read meanwhile. The next one comes after a
pause, which doubles with each email until the user has read everything. Taking the rows from the queue and writing the
email is one write, so that nothing is lost or told twice.

Each email has a link that ends the pusher, for people and for the buttons of mail programs (RFC 8058).
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
from collections.abc import Sequence
from urllib.parse import quote

import msgspec
import trio

from homeserver import limits
from homeserver.api.forms import make_page
from homeserver.api.routes import Response, Routes
from homeserver.database import Transaction
from homeserver.feature import JsonObject
from homeserver.features.pushers.messages import find_notification, list_unusable
from homeserver.moments import passed
from homeserver.process.outages import is_outage
from homeserver.resources import Resources
from homeserver.users.mail import insert_mail
from homeserver.users.push.pushers import (
    COUNTS_ONLY,
    WAKE_KEY,
    Pusher,
    delete_all_queued,
    delete_pusher,
    delete_queued,
    find_pusher,
    list_email_queues,
    list_queued,
    set_mailed,
)

_log = logging.getLogger("homeserver.push")

PATH = "/_homeserver/client/v1/unsubscribe"

routes = Routes()


# --- writing emails ---


async def write_emails(hs: Resources) -> None:
    """Writes emails when they are due, for ever. One node of several does."""
    if not hs.config.email.smtp_host:
        return
    async with hs.database.hold("email_pushers"):
        while True:
            numbers, next_ms, position = await hs.database.read(list_due)
            for number in numbers:
                await _write_carefully(hs, number)
            if not numbers:
                wait_s = math.inf if next_ms is None else max(0, next_ms - hs.now_ms()) / 1000
                await hs.stream.wait((WAKE_KEY,), position, trio.current_time() + wait_s)


async def _write_carefully(hs: Resources, number: int) -> None:
    try:
        await hs.database.write(write_email, number)
    except Exception as error:  # whatever is wrong with one notification, all others are told
        if is_outage(error):
            raise
        _log.exception("notifications are not told by email", extra={"pusher": number})
        await hs.database.write(delete_all_queued, await hs.database.read(list_unusable, number))


def list_due(tx: Transaction) -> tuple[list[int], int | None, int]:
    """Returns the pushers whose next email is due, when the next one after them is, and the stream's position."""
    due = {number: _due_ms(tx, *moments) for number, *moments in list_email_queues(tx)}
    later = [moment for moment in due.values() if moment > tx.now_ms]
    return [number for number, moment in due.items() if moment <= tx.now_ms], min(later, default=None), tx.position


def _due_ms(tx: Transaction, queued_ms: int, mailed_ms: int, pause_ms: int) -> int:
    after_last = passed(mailed_ms, tx.now_ms) + min(pause_ms, limits.users.EMAIL_PAUSE_MS_MAX)
    return max(passed(queued_ms, tx.now_ms) + limits.users.EMAIL_DELAY_MS, after_last)


def write_email(tx: Transaction, number: int) -> None:
    """Takes everything from a pusher's queue, and writes an email of what is still unread."""
    pusher = find_pusher(tx, number)
    if pusher is None:
        return
    queued = list_queued(tx, number)
    events = [row for row in queued if row.position != COUNTS_ONLY]
    told = [each for row in events if (each := find_notification(tx, pusher, row)) is not None]
    for row in queued:
        delete_queued(tx, row)
    if not told:
        set_mailed(tx, number, 0, 0)  # all is read: the pause starts from its shortest
        return
    pause_ms = min(max(2 * pusher.pause_ms, limits.users.EMAIL_PAUSE_MS), limits.users.EMAIL_PAUSE_MS_MAX)
    set_mailed(tx, number, tx.now_ms, pause_ms)
    link = f"{tx.server.config.base_url}{PATH}?pusher={number}&token={_token(tx, pusher).decode()}"
    insert_mail(
        tx, pusher.user_id, pusher.pushkey, _subject(tx, told), _text(told, link),
        headers=(("List-Unsubscribe", f"<{link}>"), ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")),
    )  # fmt: skip


def _subject(tx: Transaction, told: Sequence[JsonObject]) -> str:
    rooms = {each["room_id"]: _room_name(each) for each in told}
    what = "1 unread message" if len(told) == 1 else f"{len(told)} unread messages"
    where = f"in {next(iter(rooms.values()))}" if len(rooms) == 1 else f"in {len(rooms)} rooms"
    return f"[{tx.server.name}] {what} {where}"


def _text(told: Sequence[JsonObject], link: str) -> str:
    """Returns the text of an email: the newest messages of each room."""
    by_room: dict[str, list[JsonObject]] = {}
    for each in told:
        by_room.setdefault(each["room_id"], []).append(each)
    lines: list[str] = []
    for room_id, messages in list(by_room.items())[: limits.users.EMAIL_ROOMS_MAX]:
        lines += [_room_name(messages[0]), f"https://matrix.to/#/{quote(room_id)}"]
        shown = messages[-limits.users.EMAIL_MESSAGES_PER_ROOM_MAX :]
        if len(shown) < len(messages):
            lines.append(f"  … and {len(messages) - len(shown)} before")
        lines += [f"  {_plain(_name(each))}: {_message(each)}" for each in shown]
        lines.append("")
    if len(by_room) > limits.users.EMAIL_ROOMS_MAX:
        lines += [f"… and messages in {len(by_room) - limits.users.EMAIL_ROOMS_MAX} more rooms", ""]
    return "\n".join([*lines, "To get no more of these emails, open:", link, ""])


def _room_name(told: JsonObject) -> str:
    return _plain(told.get("room_name") or told.get("room_alias") or f"a room with {_name(told)}")


def _name(told: JsonObject) -> str:
    return str(told.get("sender_display_name") or told.get("sender", "somebody"))


def _message(told: JsonObject) -> str:
    """Returns a message in a line. Members' contents are of any type; only text is shown."""
    if told.get("type") == "m.room.encrypted":
        return "an encrypted message"
    if told.get("user_is_target"):
        return "invites you"
    body = told.get("content", {}).get("body")
    return _plain(body) if isinstance(body, str) and body.strip() else "something new"


def _plain(text: str) -> str:
    """Returns the beginning of a text in one line, without characters that could hide what it is."""
    words = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    most = limits.users.EMAIL_MESSAGE_CHARACTERS_MAX
    return words if len(words) <= most else f"{words[: most - 1]}…"


# --- unsubscribing ---


class UnsubscribeQuery(msgspec.Struct, frozen=True):
    """The link in an email."""

    pusher: int
    token: str


@routes.get(PATH, rate_limit="login")
async def show_unsubscribe(hs: Resources, query: UnsubscribeQuery) -> Response:
    pusher = await hs.database.read(_find_subscribed, query)
    if pusher is None:
        return _nothing_to_end()
    return make_page(f"No more emails to {pusher.pushkey}?", f"{hs.server_name} sends what you have not read.", "Stop")


@routes.post(PATH, rate_limit="login")
async def unsubscribe(hs: Resources, query: UnsubscribeQuery) -> Response:
    if not await hs.database.write(_unsubscribe, query):
        return _nothing_to_end()
    return make_page("Done", "You get no more emails about unread messages. In your app you can turn them on again.")


def _unsubscribe(tx: Transaction, query: UnsubscribeQuery) -> bool:
    pusher = _find_subscribed(tx, query)
    if pusher is not None:
        delete_pusher(tx, pusher.user_id, pusher.app_id, pusher.pushkey)
    return pusher is not None


def _find_subscribed(tx: Transaction, query: UnsubscribeQuery) -> Pusher | None:
    """Returns the email pusher that a link is about, None if the link is wrong or the pusher has ended."""
    pusher = find_pusher(tx, query.pusher)
    if pusher is None or not pusher.is_email or not hmac.compare_digest(_token(tx, pusher), query.token.encode()):
        return None
    return pusher


def _token(tx: Transaction, pusher: Pusher) -> bytes:
    """Returns what only we can know of a pusher: made from a secret, so that nothing has to be stored."""
    about = f"unsubscribe {pusher.number} {pusher.pushkey}".encode()
    return hmac.digest(tx.server.signing_key.seed, about, hashlib.sha256).hex()[:32].encode()


def _nothing_to_end() -> Response:
    return make_page("Nothing to stop", "This link is wrong, or you get no emails any more.", status=404)
