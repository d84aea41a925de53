"""How far each application service has got, and when it is tried again."""

from __future__ import annotations

from typing import NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.database.parked import RETRY_KEY
from homeserver.moments import is_ahead

# acked: it has everything up to this position. sending: the end of the transaction under way, 0 if there is none.
# number: of the last transaction. generation: of the stream, when that transaction was begun.
# failures: in a row. since_ms: of the first of them. retry_after_ms: not before this. reason: of the last one.
SCHEMA = Schema(
    "application_services",
    (
        Step(
            "001_create",
            """
            CREATE TABLE application_services (
                id TEXT PRIMARY KEY,
                acked INTEGER NOT NULL,
                sending INTEGER NOT NULL,
                number INTEGER NOT NULL
            );
            """,
        ),
        Step(
            "002_back_off",
            """
            ALTER TABLE application_services ADD COLUMN generation TEXT NOT NULL DEFAULT '';
            ALTER TABLE application_services ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE application_services ADD COLUMN since_ms INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE application_services ADD COLUMN retry_after_ms INTEGER NOT NULL DEFAULT 0;
            ALTER TABLE application_services ADD COLUMN reason TEXT NOT NULL DEFAULT '';
            """,
        ),
    ),
)

RETRY_S_MAX = 60.0
_REASON_CHARACTERS_MAX = 300


def lane_of(service_id: str) -> str:
    """Returns the name under which the table of parked items has what the service refuses."""
    return f"bridge {service_id}"


class Progress(NamedTuple):
    """How far a service has got: a row of the table."""

    acked: int
    sending: int
    number: int
    generation: str = ""
    failures: int = 0
    since_ms: int = 0
    retry_after_ms: int = 0
    reason: str = ""

    @property
    def transaction_id(self) -> str:
        """Names the last transaction. After a restore of the database from a backup it begins differently.

        Numbers that come again would be taken for repetitions.
        """
        return f"{self.number}_{self.generation}" if self.generation else f"{self.number}"

    def begin(self, upto: int, generation: str) -> Progress:
        """Returns the progress with a new transaction under way."""
        return self._replace(sending=upto, number=self.number + 1, generation=generation)

    def end(self, acked: int) -> Progress:
        """Returns the progress once the transaction has ended: the service answers."""
        return Progress(acked, 0, self.number, self.generation)

    def recover(self) -> Progress:
        """Returns the progress without its failures: the service answers, or an administrator wants it tried again."""
        return self._replace(failures=0, since_ms=0, retry_after_ms=0, reason="")

    def fail(self, reason: str, now_ms: int) -> Progress:
        """Returns the progress after another failure. The pause doubles with each, up to RETRY_S_MAX."""
        failures = self.failures + 1
        pause_s = min(2.0 ** min(failures, 16), RETRY_S_MAX)
        return self._replace(
            failures=failures,
            since_ms=self.since_ms if self.failures else now_ms,
            retry_after_ms=now_ms + int(pause_s * 1000),
            reason=reason.replace("\0", "")[:_REASON_CHARACTERS_MAX],
        )

    def due_in_s(self, now_ms: int) -> float:
        """Returns how many seconds it must be left alone."""
        is_paused = self.failures and is_ahead(self.retry_after_ms, now_ms, int(RETRY_S_MAX * 1000))
        return (self.retry_after_ms - now_ms) / 1000 if is_paused else 0.0


def create_progress(tx: Transaction, service_id: str) -> Progress:
    """Returns how far an application service has got. A new one begins with what happens next."""
    tx.run(
        "INSERT INTO application_services (id, acked, sending, number) VALUES (?, ?, 0, 0)"
        " ON CONFLICT (id) DO NOTHING",
        service_id, tx.position,
    )  # fmt: skip
    progress = find_progress(tx, service_id)
    assert progress is not None
    return progress


def find_progress(tx: Transaction, service_id: str) -> Progress | None:
    """Returns how far an application service has got, None if it has not been sent anything yet."""
    row = tx.one(
        "SELECT acked, sending, number, generation, failures, since_ms, retry_after_ms, reason"
        " FROM application_services WHERE id = ?",
        service_id,
    )
    return None if row is None else Progress(*row)


def delete_pause(tx: Transaction, service_id: str) -> None:
    """Has an application service that failed tried again at once."""
    tx.run(
        "UPDATE application_services SET failures = 0, since_ms = 0, retry_after_ms = 0, reason = '' WHERE id = ?",
        service_id,
    )
    tx.next_position(RETRY_KEY)


def store_progress(tx: Transaction, service_id: str, progress: Progress) -> None:
    """Stores how far an application service has got."""
    tx.run(
        "UPDATE application_services SET acked = ?, sending = ?, number = ?, generation = ?, failures = ?,"
        " since_ms = ?, retry_after_ms = ?, reason = ? WHERE id = ?",
        *progress, service_id,
    )  # fmt: skip
