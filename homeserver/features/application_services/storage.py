"""How far each application service has got."""

from __future__ import annotations

from typing import NamedTuple

from homeserver.database import Schema, Step, Transaction

# acked: it has everything up to this position. sending: the end of the transaction under way, 0 if there is none.
# number: of the last transaction.
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
    ),
)


class Progress(NamedTuple):
    """A row: positions of the stream, and the number of the last transaction."""

    acked: int
    sending: int
    number: int


def create_progress(tx: Transaction, service_id: str) -> Progress:
    """Returns how far an application service has got. A new one begins with what happens next."""
    tx.run(
        "INSERT INTO application_services (id, acked, sending, number) VALUES (?, ?, 0, 0)"
        " ON CONFLICT (id) DO NOTHING",
        service_id, tx.position,
    )  # fmt: skip
    row = tx.one("SELECT acked, sending, number FROM application_services WHERE id = ?", service_id)
    assert row is not None
    return Progress(*row)


def store_progress(tx: Transaction, service_id: str, progress: Progress) -> None:
    """Stores how far an application service has got."""
    tx.run("UPDATE application_services SET acked = ?, sending = ?, number = ? WHERE id = ?", *progress, service_id)
