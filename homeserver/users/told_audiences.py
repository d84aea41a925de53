"""Audiences that other servers have told: who may see what they have told us of their people.

Theory of operation. A person's privacy settings are enforced by their own server, which tells other servers only what
somebody there may know. If that is for friends only, it says so, and the server that is told shows it to friends only.
Both servers know who is a friend, because a friendship is a room that both are in. There is a row for each person and
setting that is not for everyone; "nobody" means that we must not show what we were told before.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID

# position: when the audience changed.
SCHEMA = Schema(
    "told_audiences",
    (
        Step(
            "create",
            """
            CREATE TABLE told_audiences (
                user_nid INTEGER NOT NULL,
                setting TEXT NOT NULL,
                audience TEXT NOT NULL,
                position INTEGER NOT NULL,
                PRIMARY KEY (user_nid, setting)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)

ToldSetting = Literal["status", "delivery"]
ToldAudience = Literal["friends", "nobody"]


def list_told_audiences(
    tx: Transaction, user_ids: Collection[UserID], setting: ToldSetting
) -> dict[UserID, ToldAudience]:
    """Returns the audience of each of these users of other servers, without those whose setting is for everyone."""
    nids = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in(
        "SELECT user_nid, audience FROM told_audiences WHERE user_nid IN (?*) AND setting = ?", list(nids), setting
    )
    return {nids[nid]: audience for nid, audience in rows}


def find_told_change(tx: Transaction, user_id: UserID, setting: ToldSetting) -> int:
    """Returns the position at which the audience became narrower than everyone, 0 if it is not."""
    row = tx.one("SELECT position FROM told_audiences WHERE user_nid = ? AND setting = ?", tx.find(user_id), setting)
    return 0 if row is None else int(row[0])


def store_told_audience(tx: Transaction, user_id: UserID, setting: ToldSetting, audience: ToldAudience | None) -> bool:
    """Stores the audience of a user of another server, None for everyone. Returns whether it was another one before."""
    before = list_told_audiences(tx, (user_id,), setting).get(user_id)
    if audience == before:
        return False
    if audience is None:
        tx.run("DELETE FROM told_audiences WHERE user_nid = ? AND setting = ?", tx.find(user_id), setting)
        return True
    tx.run(
        "INSERT INTO told_audiences (user_nid, setting, audience, position) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_nid, setting) DO UPDATE SET audience = excluded.audience, position = excluded.position",
        tx.intern(user_id), setting, audience, tx.next_position(user_id),
    )  # fmt: skip
    return True
