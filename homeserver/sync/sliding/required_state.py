"""Which state of a room a client requires. Spec: MSC4186 (RequiredStateRequest, lazy loaded memberships)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

import msgspec

MEMBER = "m.room.member"

Element = tuple[str | None, str | None]
"""A type and a state key; None matches all."""


class RequiredState(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The state that one list or subscription requires: what `include` matches, without what `exclude` matches.

    lazy_members: of members, only those that an element of `include` names by their state key, and those who speak.
    """

    include: tuple[Element, ...] = ()
    exclude: tuple[Element, ...] = ()
    lazy_members: bool = False

    def matches(self, event_type: str, state_key: str) -> bool:
        """Returns whether the state event with this key is required. Members who speak are added by the caller."""
        if not any(self._includes(element, event_type, state_key) for element in self.include):
            return False
        return not any(_matches(element, event_type, state_key) for element in self.exclude)

    def _includes(self, element: Element, event_type: str, state_key: str) -> bool:
        if self.lazy_members and event_type == MEMBER and element[1] is None:
            return False
        return _matches(element, event_type, state_key)


class RoomConfig(msgspec.Struct, frozen=True):
    """What to tell of a room: up to `timeline_limit` events, and the state that any of `required` matches."""

    timeline_limit: int = 0
    required: tuple[RequiredState, ...] = ()

    @property
    def lazy_members(self) -> bool:
        """Whether the members who speak are to be told."""
        return any(each.lazy_members for each in self.required)


def combine(configs: Iterable[RoomConfig]) -> RoomConfig:
    """Returns the config of a room that is in several lists or subscriptions: whatever any of them asks for."""
    limit = 0
    required: set[RequiredState] = set()
    for config in configs:
        limit = max(limit, config.timeline_limit)
        required |= set(config.required)
    return RoomConfig(limit, tuple(sorted(required, key=encode_one)))


def encode_one(required: RequiredState) -> bytes:
    """Returns the required state as JSON, which also serves as the order of several."""
    return msgspec.json.encode(required)


def encode(required: tuple[RequiredState, ...]) -> bytes:
    """Returns required states as stored."""
    return msgspec.json.encode(required)


def digest(encoded: bytes) -> bytes:
    """Returns the name of encoded required states."""
    return blake2b(encoded, digest_size=16).digest()


_decoder = msgspec.json.Decoder(tuple[RequiredState, ...])


def decode(encoded: bytes) -> tuple[RequiredState, ...]:
    """Returns required states as they were stored."""
    return _decoder.decode(encoded)


def is_required(required: Iterable[RequiredState], event_type: str, state_key: str) -> bool:
    """Returns whether any of the required states matches the key of a state event."""
    return any(each.matches(event_type, state_key) for each in required)


def list_named(required: Iterable[RequiredState]) -> list[tuple[str, str]] | None:
    """Returns the keys of all required state events; None if some element matches more than one key."""
    named: dict[tuple[str, str], None] = {}
    for event_type, state_key in _list_elements(required):
        if event_type is None or state_key is None:
            return None
        named[event_type, state_key] = None
    return list(named)


def _list_elements(required: Iterable[RequiredState]) -> Iterator[Element]:
    for each in required:
        for element in each.include:
            if not (each.lazy_members and element == (MEMBER, None)):
                yield element


def _matches(element: Element, event_type: str, state_key: str) -> bool:
    return element[0] in (None, event_type) and element[1] in (None, state_key)
