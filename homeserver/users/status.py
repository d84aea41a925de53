"""Status: whether a person is online, else how long ago they were, as others see it.

A local person is online if their last heartbeat is at most `presence.online_timeout_s` old, see
`homeserver.process.heartbeats`. A person of another server is online while their server says so in m.presence, which
also counts as a heartbeat. Unlike presence, a status does not depend on what clients claim, and is computed when it is
read: no timer and no row changes when somebody falls silent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.moments import is_recent, passed
from homeserver.users.presence import list_presences
from homeserver.users.privacy import list_allowing

SCHEMA = Schema(
    "heartbeats",
    (
        Step(
            "create",
            """
            CREATE TABLE heartbeats (
                user_nid INTEGER PRIMARY KEY,
                last_ms INTEGER NOT NULL
            );
            """,
        ),
    ),
)

# Rows of one write, about 5 ms.
STORED_PER_WRITE = 1_000

_MINUTE_MS = 60 * 1000
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS

# By language: the word for online, then the sentences for minutes, hours and days, each for one and for several.
_TEXTS = {
    "en": ("Online", ("Active {} minute ago", "Active {} minutes ago"), ("Active {} hour ago", "Active {} hours ago"),
           ("Active {} day ago", "Active {} days ago")),
    "de": ("Online", ("Aktiv vor {} Minute", "Aktiv vor {} Minuten"), ("Aktiv vor {} Stunde", "Aktiv vor {} Stunden"),
           ("Aktiv vor {} Tag", "Aktiv vor {} Tagen")),
    "fr": ("En ligne", ("Actif il y a {} minute", "Actif il y a {} minutes"),
           ("Actif il y a {} heure", "Actif il y a {} heures"), ("Actif il y a {} jour", "Actif il y a {} jours")),
    "es": ("En línea", ("Activo hace {} minuto", "Activo hace {} minutos"),
           ("Activo hace {} hora", "Activo hace {} horas"), ("Activo hace {} día", "Activo hace {} días")),
    "it": ("Online", ("Attivo {} minuto fa", "Attivo {} minuti fa"), ("Attivo {} ora fa", "Attivo {} ore fa"),
           ("Attivo {} giorno fa", "Attivo {} giorni fa")),
    "pt": ("Online", ("Ativo há {} minuto", "Ativo há {} minutos"), ("Ativo há {} hora", "Ativo há {} horas"),
           ("Ativo há {} dia", "Ativo há {} dias")),
    "nl": ("Online", ("{} minuut geleden actief", "{} minuten geleden actief"),
           ("{} uur geleden actief", "{} uur geleden actief"), ("{} dag geleden actief", "{} dagen geleden actief")),
}  # fmt: skip
DEFAULT_LANGUAGE = "en"

_LANGUAGE = re.compile(r"\s*([a-z]{2})(?:-[a-z0-9-]*)?\s*(?:;\s*q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)\s*)?", re.ASCII)
# Browsers send fewer than ten.
_LANGUAGES_MAX = 20


class Status(msgspec.Struct, frozen=True):
    """A person's status. last_active_ago: milliseconds since the last heartbeat. text: for people to read."""

    online: bool
    last_active_ago: int
    text: str


def find_language(accept_language: str | None) -> str:
    """Returns the language for `Status.text` that an Accept-Language header prefers, English if we know none of them.

    Spec: RFC 9110, section 12.5.4.
    """
    best, best_quality = DEFAULT_LANGUAGE, 0.0
    for part in (accept_language or "").lower().split(",", _LANGUAGES_MAX)[:_LANGUAGES_MAX]:
        match = _LANGUAGE.fullmatch(part)
        if match is None or match[1] not in _TEXTS:
            continue
        quality = float(match[2] or 1)
        if quality > best_quality:
            best, best_quality = match[1], quality
    return best


def describe(*, online: bool, last_active_ago: int, language: str) -> str:
    """Returns the text of a status: minutes below an hour, hours below a day, then days."""
    word, minutes, hours, days = _TEXTS.get(language, _TEXTS[DEFAULT_LANGUAGE])
    if online:
        return word
    if last_active_ago < _HOUR_MS:
        number, (one, several) = max(1, last_active_ago // _MINUTE_MS), minutes
    elif last_active_ago < _DAY_MS:
        number, (one, several) = last_active_ago // _HOUR_MS, hours
    else:
        number, (one, several) = last_active_ago // _DAY_MS, days
    return (one if number == 1 else several).format(number)


def read_statuses(
    tx: Transaction, asker: UserID, user_ids: Iterable[UserID], language: str
) -> dict[UserID, Status | None]:
    """Returns the status of each user, None if the asker may not see it or nothing is known.

    language: of the text, see `find_language`. The number of reads does not grow with the number of users.
    """
    statuses: dict[UserID, Status | None] = dict.fromkeys(user_ids)
    if not tx.server.config.presence.enabled:
        return statuses
    shown = list_allowing(tx, asker, statuses, "status")
    remote = [user_id for user_id in shown if server_name_of(user_id) != tx.server.name]
    present = {each.user_id for each in list_presences(tx, remote) if each.state != "offline"} if remote else set()
    timeout_ms = tx.server.config.presence.online_timeout_s * 1000
    for user_id, last_ms in find_last_heartbeats(tx, shown).items():
        ago = max(0, tx.now_ms - last_ms)
        is_local = server_name_of(user_id) == tx.server.name
        online = is_recent(last_ms, tx.now_ms, timeout_ms) if is_local else user_id in present
        text = describe(online=online, last_active_ago=ago, language=language)
        statuses[user_id] = Status(online=online, last_active_ago=ago, text=text)
    return statuses


def note_heartbeat(tx: Transaction, user_id: UserID, ts_ms: int) -> None:
    """Notes that a person of another server was active, unless a newer heartbeat is known."""
    last = find_last_heartbeats(tx, (user_id,)).get(user_id, 0)
    if ts_ms > last:
        tx.server.heartbeats.note(user_id, ts_ms)


# --- storage ---


def find_last_heartbeats(tx: Transaction, user_ids: Iterable[UserID]) -> dict[UserID, int]:
    """Returns the time of each user's last heartbeat. Users who never had one are left out."""
    found: dict[UserID, int] = {}
    stored: list[UserID] = []
    for user_id in user_ids:
        heartbeat = tx.server.heartbeats.find(user_id)
        if heartbeat is None:
            stored.append(user_id)
        else:
            found[user_id] = heartbeat.ts_ms
    if stored:
        nids = {nid: UserID(user_id) for user_id, nid in tx.find_all(stored).items()}
        rows = tx.all_in("SELECT user_nid, last_ms FROM heartbeats WHERE user_nid IN (?*)", list(nids))
        found.update((nids[nid], last_ms) for nid, last_ms in rows)
    return {user_id: last_ms for user_id, last_ms in found.items() if passed(last_ms, tx.now_ms)}


def store_heartbeats(tx: Transaction) -> int:
    """Stores some of the heartbeats that are only in memory, and returns their number.

    Nothing takes a position of the stream: nobody waits for a heartbeat.
    """
    unstored = tx.server.heartbeats.list_unstored(STORED_PER_WRITE)
    tx.many(
        "INSERT INTO heartbeats (user_nid, last_ms) VALUES (?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET last_ms = excluded.last_ms",
        [(tx.intern(user_id), ts_ms) for user_id, ts_ms in unstored.items()],
    )
    tx.after_commit(tx.server.heartbeats.note_stored, unstored)
    return len(unstored)


def forget_heartbeats(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the user's last heartbeat."""
    tx.server.heartbeats.forget(user_id)  # before the commit: else a write of the same batch might store it again
    tx.run("DELETE FROM heartbeats WHERE user_nid = ?", tx.find(user_id))
    return False
