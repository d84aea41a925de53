"""Privacy: what each person lets others see and ask. Kept as account data, so that all their devices agree.

Settings and audiences are those of `Privacy`. "friends" are those of `homeserver.users.friends`, "shared_room" is
everyone who is joined to one of the person's rooms. A person may always see their own data. The settings of people of
other servers are unknown here, because their servers enforce them: they tell us only what somebody here may know, and
whether that is for friends only, see `homeserver.users.told_audiences`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

import msgspec

from homeserver.database import Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import ServerName, UserID, server_name_of
from homeserver.rooms.membership import list_sharing
from homeserver.users.account_data import find_change, list_of_users, store_account_data
from homeserver.users.friends import has_changed, is_friend, list_confirmed, list_friends_among, list_having_friend
from homeserver.users.presence import repeat_presence
from homeserver.users.told_audiences import find_told_change, list_told_audiences

DATA_TYPE = "org.homeserver.privacy"

Audience = Literal["everyone", "shared_room", "friends", "nobody"]
Setting = Literal["status", "friend_requests", "invites", "delivery"]


class Privacy(msgspec.Struct, frozen=True):
    """A person's settings.

    status: who sees whether they are online, and when they were last. friend_requests, invites: who may send them.
    delivery: who sees that messages have reached their devices.
    """

    status: Literal["everyone", "friends", "nobody"] = "everyone"
    friend_requests: Literal["everyone", "shared_room", "nobody"] = "everyone"
    invites: Audience = "everyone"
    delivery: Literal["everyone", "friends", "nobody"] = "everyone"

    def audience(self, setting: Setting) -> Audience:
        """Returns the audience of one setting."""
        audience: Audience = getattr(self, setting)
        return audience


_DEFAULT = Privacy()
_CLOSED = Privacy("nobody", "nobody", "nobody", "nobody")


def _parse_stored(content: JsonObject | None) -> Privacy:
    """Returns stored settings. Those that are damaged, or that another server wrote, let nobody do anything."""
    try:
        return _CLOSED if content is None else msgspec.convert(content, Privacy)
    except msgspec.ValidationError:
        return _CLOSED


def read_privacy(tx: Transaction, user_id: UserID) -> Privacy:
    """Returns a local user's settings."""
    return read_privacies(tx, (user_id,)).get(user_id, _DEFAULT)


def read_privacies(tx: Transaction, user_ids: Collection[UserID]) -> dict[UserID, Privacy]:
    """Returns the settings of those of these local users who have made any, in one read."""
    contents = list_of_users(tx, user_ids, DATA_TYPE)
    return {user_id: _parse_stored(content) for user_id, content in contents.items()}


def set_privacy(tx: Transaction, user_id: UserID, content: JsonObject) -> Privacy:
    """Replaces a local user's settings. Raises ValueError, and changes nothing, if a value is not an audience.

    If others may see the user's presence than before, all are shown it again, and it is hidden from the rest.
    """
    before, privacy = read_privacy(tx, user_id), msgspec.convert(content, Privacy)
    store_account_data(tx, user_id, None, DATA_TYPE, content)
    if privacy.status != before.status:
        repeat_presence(tx, user_id)
    return privacy


def note_other_friends(tx: Transaction, user_id: UserID) -> None:
    """Shows the presence of a local user, who has just gained or lost a friend, to those who may see it now."""
    if read_privacy(tx, user_id).status == "friends":
        repeat_presence(tx, user_id)


def has_just_hidden(tx: Transaction, user_id: UserID, since: int, upto: int) -> bool:
    """Returns whether fewer people may see a user's status since a change in since < position ≤ upto.

    It may also be true if there are others now. Those who may not see it any more are told once that the user is gone.
    """
    if server_name_of(user_id) != tx.server.name:
        return since < find_told_change(tx, user_id, "status") <= upto
    if since < find_change(tx, user_id, DATA_TYPE) <= upto:
        return True
    return read_privacy(tx, user_id).status == "friends" and has_changed(tx, user_id, since, upto)


def allows(tx: Transaction, owner: UserID, asker: UserID, audience: Audience) -> bool:
    """Returns whether the asker belongs to an audience of the owner."""
    if owner == asker or audience == "everyone":
        return True
    if audience == "shared_room":
        return bool(list_sharing(tx, asker, (owner,)))
    return audience == "friends" and is_friend(tx, owner, asker)


def list_allowing(tx: Transaction, asker: UserID, owners: Iterable[UserID], setting: Setting) -> set[UserID]:
    """Returns those of the owners whose setting includes the asker, in one read for all of them.

    Users of other servers are included unless their servers have said that it is for friends only.
    """
    owners = set(owners)
    local, remote = _split(tx, owners - {asker})
    asked = _list_limited(tx, local, remote, setting)
    if friends := asked.get("friends"):
        friends -= list_having_friend(tx, friends & local, asker) | list_friends_among(tx, asker, friends & remote)
    if sharing := asked.get("shared_room"):
        sharing -= list_sharing(tx, asker, sharing)
    return owners - asked.get("friends", set()) - asked.get("shared_room", set()) - asked.get("nobody", set())


def list_for_everyone(tx: Transaction, owners: Iterable[UserID], setting: Setting) -> set[UserID]:
    """Returns those of the owners whose setting includes everyone."""
    owners = set(owners)
    return owners.difference(*_list_limited(tx, *_split(tx, owners), setting).values())


def _split(tx: Transaction, owners: Collection[UserID]) -> tuple[set[UserID], set[UserID]]:
    """Returns the users of this server, and those of others."""
    local = {owner for owner in owners if server_name_of(owner) == tx.server.name}
    return local, set(owners) - local


def _list_limited(
    tx: Transaction, local: Collection[UserID], remote: Collection[UserID], setting: Setting
) -> dict[Audience, set[UserID]]:
    """Returns the owners whose setting does not include everyone, by audience."""
    limited: dict[Audience, set[UserID]] = {}
    for owner, privacy in read_privacies(tx, local).items():
        limited.setdefault(privacy.audience(setting), set()).add(owner)
    limited.pop("everyone", None)
    if remote and setting in ("status", "delivery"):
        for owner, audience in list_told_audiences(tx, remote, setting).items():
            limited.setdefault(audience, set()).add(owner)
    return limited


def list_servers_allowed(tx: Transaction, owner: UserID, servers: Iterable[ServerName]) -> set[ServerName]:
    """Returns those of the servers to which a local user's presence is sent: the ones of an allowed user."""
    audience = read_privacy(tx, owner).status
    if audience == "everyone":
        return set(servers)
    if audience == "nobody":
        return set()
    return {server_name_of(friend) for friend in list_confirmed(tx, owner)}.intersection(servers)
