"""Holds the events of one large answer from their arrival until they are stored.

Their text is in a temporary file. Memory only has an index of about 500 bytes for each event: its ID, its references,
and the position of its text. So the events of a room with a hundred thousand members take 50 MB on their way into the
database, instead of a gigabyte.
"""

from __future__ import annotations

import tempfile
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, cast

import trio

from homeserver import limits
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.identifiers import EventID, RoomID, ServerName
from homeserver.federation.pdu_checks import signing_keys_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.remote.answers import Verdict
from homeserver.remote.checking import parse_pdu
from homeserver.remote.keys import WantedKey

T = TypeVar("T", bound=str)

_STEPS_AT_ONCE = 1_000  # of a walk over the index; each takes some microseconds


class Collected:
    """Well-formed events of one room, each once, by index. Their signatures are not checked.

    state: the IDs of the events that were added as a state, by type and state key. Use it as a context manager. If the
    disk is full, the error that `failure` makes from the OSError is raised.
    """

    def __init__(
        self, folder: Path, version: RoomVersion, room_id: RoomID, failure: Callable[[OSError], Exception]
    ) -> None:
        self.version = version
        self.room_id = room_id
        self.state: dict[tuple[str, str], EventID] = {}
        self._failure = failure
        with self._storing():
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__
        self._indices: dict[EventID, int] = {}
        self._auth_events: list[tuple[EventID, ...]] = []
        self._offsets = array("Q", [0])
        self._names: dict[str, str] = {}
        self._keys: dict[tuple[ServerName, str], int] = {}
        self._create: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Deletes the temporary file."""
        with suppress(OSError):  # buffered data that no longer fits on the disk is not needed any more
            self._file.close()

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(error) from error

    def __len__(self) -> int:
        return len(self._indices)

    def __contains__(self, event_id: EventID) -> bool:
        return event_id in self._indices

    def take(self, text: bytes) -> Verdict:
        """Adds the text of a PDU."""
        return self._take(text, is_state=False)

    def take_state(self, text: bytes) -> Verdict:
        """Adds the text of a PDU that belongs to the state."""
        return self._take(text, is_state=True)

    def _take(self, text: bytes, *, is_state: bool) -> Verdict:
        if len(self) >= limits.peers.STATE_EVENTS_MAX:
            return "full"
        try:
            event = parse_pdu(canonical_json.decode(text), self.version, self.room_id)
        except NotCanonical:
            return "junk"
        if not isinstance(event, Event):
            return "junk"
        event_id = self._shared(event.event_id)
        if is_state and event.is_state:
            event_type, state_key = event.key
            self.state[self._shared(event_type), state_key] = event_id
        if event_id not in self._indices:
            with self._storing():
                self._file.write(text)
            self._offsets.append(self._offsets[-1] + len(text))
            if event.type == "m.room.create" and not event.auth_events:
                self._create = len(self)
            self._indices[event_id] = len(self)
            self._auth_events.append(tuple([self._shared(each) for each in event.auth_events]))
            self._want_keys(event)
        return "taken"

    def _shared(self, text: T) -> T:
        """Returns one shared string for equal ones: most events cite the same few events."""
        return cast("T", self._names.setdefault(text, text))

    def _want_keys(self, event: Event) -> None:
        signed_ts = event.origin_server_ts if self.version.signing_key_validity_enforced else 0
        for named in signing_keys_of(event):
            if named in self._keys or len(self._keys) < limits.peers.STATE_KEYS_MAX:
                self._keys[named] = max(signed_ts, self._keys.get(named, 0))

    def wanted_keys(self) -> list[WantedKey]:
        """Returns the keys that the events are signed with."""
        return [WantedKey(server, key_id, signed_ts) for (server, key_id), signed_ts in self._keys.items()]

    def find(self, event_id: EventID | None) -> Event | None:
        """Returns one of the events, or None."""
        with self._storing():
            self._file.flush()
        index = None if event_id is None else self._indices.get(event_id)
        return None if index is None or event_id is None else next(self.read([(index, event_id)]))

    def ids(self) -> list[EventID]:
        """Returns the IDs of all events, by index."""
        return list(self._indices)

    async def in_order(self) -> array[int]:
        """Returns the indices in an order in which each event comes after its auth events, the create event first.

        Leaves out events in a loop, which no honest server creates.
        """
        with self._storing():
            self._file.flush()  # so that reading on a thread writes nothing
        unmet = array("I", bytes(4 * len(self)))
        citing: dict[int, array[int]] = {}
        for steps, (index, cited) in enumerate(enumerate(self._auth_events)):
            for event_id in set(cited):
                other = self._indices.get(event_id)
                if other is not None:
                    citing.setdefault(other, array("I")).append(index)
                    unmet[index] += 1
            if steps % _STEPS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        ready = deque(index for index, count in enumerate(unmet) if not count)
        if self._create is not None:
            # From room version 12 on no event cites the create event, although all depend on it.
            ready.remove(self._create)
            ready.appendleft(self._create)
        ordered = array("I")
        while ready:
            index = ready.popleft()
            ordered.append(index)
            for later in citing.pop(index, ()):
                unmet[later] -= 1
                if not unmet[later]:
                    ready.append(later)
            if len(ordered) % _STEPS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return ordered

    def read(self, events: Iterable[tuple[int, EventID]]) -> Iterator[Event]:
        """Yields the events with these indices and IDs, read back from the file."""
        for index, event_id in events:
            self._file.seek(self._offsets[index])
            pdu = canonical_json.decode(self._file.read(self._offsets[index + 1] - self._offsets[index]))
            pdu.pop("unsigned", None)
            yield trusted_event(pdu, self.version, event_id)
