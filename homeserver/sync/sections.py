"""What features contribute to syncs, and how the engine calls them. The contract is in `homeserver.feature`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import msgspec

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.feature import BeforeSync, Feature, Recount, Share, SyncContext, SyncSection, SyncStart
from homeserver.resources import Resources


class Sections(msgspec.Struct, frozen=True):
    """The features' parts of `/sync`, each in the order of the features."""

    before: tuple[BeforeSync, ...] = ()
    acknowledged: tuple[Callable[[Resources, SyncStart], None], ...] = ()
    news: tuple[SyncSection, ...] = ()
    always: tuple[SyncSection, ...] = ()
    recount: Recount | None = None
    shares: tuple[Share, ...] = ()

    @classmethod
    def of(cls, features: Sequence[Feature]) -> Self:
        """Returns the parts that these features declare."""
        recounts = [feature.recount for feature in features if feature.recount is not None]
        if len(recounts) > 1:
            raise ValueError("Only one feature can count the messages of rooms.")
        return cls(
            before=tuple(feature.before_sync for feature in features if feature.before_sync is not None),
            acknowledged=tuple(feature.acknowledged for feature in features if feature.acknowledged is not None),
            news=tuple(feature.sync for feature in features if feature.sync is not None),
            always=tuple(feature.sync_always for feature in features if feature.sync_always is not None),
            recount=recounts[0] if recounts else None,
            shares=tuple(feature.share for feature in features if feature.share is not None),
        )


def is_due(tx: Transaction, before: Iterable[BeforeSync], start: SyncStart) -> bool:
    """Returns whether any feature has something to write before a sync is answered."""
    return any(each.is_due(tx, start) for each in before)


def look_ahead(tx: Transaction, before: Sequence[BeforeSync], start: SyncStart) -> tuple[bool, int]:
    """Returns `is_due`, and for how many milliseconds nothing will be due unless the user has news."""
    if is_due(tx, before, start):
        return True, 0
    return False, min(each.idle_ms(tx, start) for each in before)


def write_before(tx: Transaction, before: Iterable[BeforeSync], start: SyncStart) -> None:
    """Writes what all features have to write before a sync is answered."""
    for each in before:
        if each.is_due(tx, start):  # another sync of the device may have written it meanwhile
            each.write(tx, start)


def add_sections(
    tx: Transaction, sections: Iterable[SyncSection], context: SyncContext, *, around_damage: bool
) -> None:
    """Calls each of `sections`. around_damage: skips unreadable sections instead of raising DatabaseDamaged."""
    for section in sections:
        if around_damage:
            with contextlib.suppress(DatabaseDamaged):
                tx.attempt(section, tx, context)
        else:
            section(tx, context)
