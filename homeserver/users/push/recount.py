"""What new messages do to the unread counts of their room, without counting again: for many members at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.rooms.storage import TimelineEvent, list_stored
from homeserver.users.push.counts import TOLD_MAX, Counts
from homeserver.users.push.evaluation import get_audience, is_new, judge, judge_for


def recount_unread(tx: Transaction, positions: Sequence[int]) -> Callable[[UserID, Counts], Counts | None] | None:
    """Returns what new messages of a room do to the counts of a member who sent none of them, and ignores no sender.

    The counts are those of `Counts.body`. None, from either function, if they must be counted again: because of threads
    and redactions, and because of highlights among more notifications than are told. For a member with the default
    rules whom no message mentions it costs no query.
    """
    messages = [each for each in list_stored(tx, positions).values() if isinstance(each, TimelineEvent)]
    by_default = Counts()
    apart: set[str] = set(get_audience(tx, messages[0].room_id).individuals)
    for event in messages:
        judged = judge(tx, event)
        if judged.thread or event.type == "m.room.redaction" or not is_new(event):
            return None
        by_default.add(judged.by_default.level)
        apart |= judged.mentioned

    def add(user_id: UserID, before: Counts) -> Counts | None:
        counts = Counts(before.notifications, before.highlights)
        if user_id in apart:
            for event in messages:
                counts.add(judge_for(tx, event, user_id).level)
        else:
            counts.notifications += by_default.notifications
            counts.highlights += by_default.highlights
        # With more than TOLD_MAX it is not known which ones the engine reads, nor how many of them are highlights.
        return None if before.notifications >= TOLD_MAX and counts.highlights else counts

    return add
