"""The rooms of a space, page by page. Spec: client-server-api/#spaces

Theory of operation. The tree is walked depth-first, each space before its children. A page ends when it is full, when
enough rooms have been examined, or when the time for other servers is up; its token is the path to where it ended. A
token holds nothing but room IDs and numbers, and each step of its path is checked like the steps of a walk: so a forged
token leads nowhere that a request without one does not, and pages need no memory. A room is not entered again below
itself. The same room may be a child of several spaces, and is then on several pages.

Rooms that this server is in are described from its own state, all others by servers that the `via` of the child leads
to (`homeserver.remote.hierarchy`), in parallel and within one deadline for the page.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import forbidden, invalid_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.limits import Bucket
from homeserver.process.peers import PERSON
from homeserver.remote.access import is_allowed
from homeserver.remote.directory import list_servers_to_ask
from homeserver.remote.hierarchy import RemoteRoom, find_any_cached, find_remote_room
from homeserver.resources import Resources
from homeserver.rooms.heads import Head, find_head
from homeserver.rooms.membership import is_server_joined
from homeserver.rooms.spaces import Child, list_children
from homeserver.rooms.summaries import may_see_summary, may_server_see_summary, room_summary

ROOMS_PER_PAGE_MAX = 50
# Examined for one page: most children of a space may be rooms that the user must not know of.
EXAMINED_PER_PAGE_MAX = 500
# Loaded together, even if the page has only one place left: the next children may be rooms that are not shown.
AHEAD_MIN = 10
# All children of a space are in the answer; with this much a page is full.
PAGE_BYTES = 2 << 20
# Real ones have two or three levels.
DEPTH_MAX = 10
# All pages together. A tree of 100 spaces with 100 rooms each; a malicious one has no end.
ROOMS_MAX = 10_000
TOKEN_CHARACTERS_MAX = 6_000

routes = Routes()


class HierarchyQuery(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#get_matrixclientv1roomsroomidhierarchy. None: as on the page before."""

    suggested_only: bool | None = None
    limit: Annotated[int, msgspec.Meta(ge=1)] = ROOMS_PER_PAGE_MAX
    max_depth: Annotated[int, msgspec.Meta(ge=0)] | None = None
    from_: str | None = msgspec.field(name="from", default=None)


class SuggestedQuery(msgspec.Struct, frozen=True):
    suggested_only: bool = False


class Token(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Where a page ended. path: the spaces below the first one that the walk is in, each with its place among its
    siblings. place: that of the next child in the last one. told: how many rooms the pages so far had."""

    suggested_only: bool
    max_depth: Annotated[int, msgspec.Meta(ge=0, le=DEPTH_MAX)]
    told: Annotated[int, msgspec.Meta(ge=0, le=ROOMS_MAX)]
    path: Annotated[tuple[tuple[Annotated[int, msgspec.Meta(ge=0)], str], ...], msgspec.Meta(max_length=DEPTH_MAX)]
    place: Annotated[int, msgspec.Meta(ge=0)]


class Node(msgspec.Struct, frozen=True):
    """A room and its children. remote: what another server said, if this one is not in the room."""

    summary: Mapping[str, Any]
    children: tuple[Child, ...]
    remote: RemoteRoom | None = None


class Frame(msgspec.Struct):
    """A space that the walk is in. `place` is that of the next child."""

    room_id: RoomID
    children: tuple[Child, ...]
    remote: RemoteRoom | None
    place: int = 0


@routes.get("/_matrix/client/v1/rooms/{room_id}/hierarchy", rate_limit="hierarchy")
async def get_space_hierarchy(
    hs: Resources, requester: Requester, room_id: RoomID, query: HierarchyQuery
) -> JsonObject:
    token = _read_token(query)
    servers = await hs.database.read(list_servers_to_ask, room_id, requester.user_id, [])
    walk = Walk(hs, requester.user_id, token, min(query.limit, ROOMS_PER_PAGE_MAX))
    root = await walk.find(Child(room_id, tuple(servers), False, {}), None)
    if root is None:
        raise forbidden("You are not allowed to see this room.")
    if query.from_ is None:
        walk.show(root)
    await walk.resume(root)
    following = await walk.go_on()
    return {"rooms": walk.rooms} if following is None else {"rooms": walk.rooms, "next_batch": following}


def _read_token(query: HierarchyQuery) -> Token:
    """Returns where the page begins. Raises M_INVALID_PARAM if the token is malformed or of a request with others."""
    if query.from_ is None:
        depth = DEPTH_MAX if query.max_depth is None else min(query.max_depth, DEPTH_MAX)
        return Token(query.suggested_only is True, depth, 0, (), 0)
    try:
        if len(query.from_) > TOKEN_CHARACTERS_MAX:
            raise ValueError
        data = base64.b64decode(query.from_.encode("ascii"), altchars=b"-_", validate=True)
        token = msgspec.msgpack.decode(data, type=Token)
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise invalid_param("from is not a token of this server.") from None
    depth = token.max_depth if query.max_depth is None else min(query.max_depth, DEPTH_MAX)
    suggested_only = token.suggested_only if query.suggested_only is None else query.suggested_only
    if depth != token.max_depth or suggested_only != token.suggested_only:
        raise invalid_param("suggested_only and max_depth cannot change from one page to the next.")
    return token


class Walk:
    """The walk of one page. `rooms` is the answer."""

    def __init__(self, hs: Resources, user_id: UserID, token: Token, limit: int) -> None:
        self.rooms: list[JsonObject] = []
        self._hs = hs
        self._user_id = user_id
        self._token = token
        self._limit = limit
        self._deadline = trio.current_time() + limits.peers.HIERARCHY_PAGE_S
        self._nodes: dict[RoomID, Node | None] = {}
        self._frames: list[Frame] = []
        self._shown: set[RoomID] = set()
        self._examined = 0
        self._bytes = 0

    async def find(self, child: Child, remote: RemoteRoom | None) -> Node | None:
        """Returns a room, or None if the user must not know of it, or nobody tells us about it."""
        if child.room_id not in self._nodes:
            await self._load([child], remote)
        return self._nodes[child.room_id]

    def show(self, node: Node) -> None:
        """Adds a room to the page."""
        room = {**node.summary, "children_state": [child.event for child in self._wanted(node.children)]}
        self.rooms.append(room)
        self._shown.add(room["room_id"])
        self._bytes += len(to_json(room))

    async def resume(self, root: Node) -> None:
        """Enters the spaces that the walk was in at the end of the last page, as far as they are still there."""
        if self._token.max_depth == 0:
            return
        self._enter(root)
        for place, room_id in self._token.path:
            frame = self._frames[-1]
            found = next((i for i, child in enumerate(frame.children) if child.room_id == room_id), None)
            frame.place = place + 1 if found is None else found + 1
            if found is None or len(self._frames) >= self._token.max_depth or self._is_in(room_id):
                return
            node = await self.find(frame.children[found], frame.remote)
            if node is None:
                return
            self._enter(node)
        self._frames[-1].place = self._token.place

    async def go_on(self) -> str | None:
        """Fills the page. Returns the token of the next one, or None at the end of the tree."""
        while (frame := self._innermost()) is not None:
            if self._is_full():
                return self._next_token()
            child = frame.children[frame.place]
            if child.room_id not in self._nodes:
                await self._load(
                    frame.children[frame.place : frame.place + self._limit - len(self.rooms)], frame.remote
                )
            frame.place += 1
            self._examined += 1
            node = self._nodes[child.room_id]
            if node is None or child.room_id in self._shown or self._is_in(child.room_id):
                continue
            self.show(node)
            if len(self._frames) < self._token.max_depth:
                self._enter(node)
        return None

    def _wanted(self, children: Sequence[Child]) -> tuple[Child, ...]:
        return tuple(child for child in children if child.is_suggested or not self._token.suggested_only)

    def _enter(self, node: Node) -> None:
        self._frames.append(Frame(node.summary["room_id"], self._wanted(node.children), node.remote))

    def _is_in(self, room_id: str) -> bool:
        return any(frame.room_id == room_id for frame in self._frames)

    def _innermost(self) -> Frame | None:
        """Returns the space to continue with, after leaving those that have no further children."""
        while self._frames and self._frames[-1].place >= len(self._frames[-1].children):
            self._frames.pop()
        return self._frames[-1] if self._frames else None

    def _is_full(self) -> bool:
        return len(self.rooms) >= self._limit or self._examined >= EXAMINED_PER_PAGE_MAX or self._bytes >= PAGE_BYTES

    def _next_token(self) -> str | None:
        told = self._token.told + len(self.rooms)
        if told > ROOMS_MAX:
            return None
        path = tuple((frame.place - 1, below.room_id) for frame, below in pairwise(self._frames))
        token = Token(self._token.suggested_only, self._token.max_depth, told, path, self._frames[-1].place)
        return base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).decode()

    async def _load(self, children: Sequence[Child], remote: RemoteRoom | None) -> None:
        """Finds out about children of a space: from this server's rooms, `remote`, or other servers."""
        new = [child for child in children if child.room_id not in self._nodes]
        nodes = await self._hs.database.read(_read_local, self._user_id, [child.room_id for child in new])
        self._nodes.update(nodes)
        others = [child for child in new if child.room_id not in nodes]
        told = await self._ask(others, remote)
        summaries = [node.summary for node in told.values()]
        visible = await self._hs.database.read(_list_visible, self._user_id, summaries)
        for child in others:
            self._nodes[child.room_id] = told[child.room_id] if child.room_id in visible else None

    async def _ask(self, children: Sequence[Child], remote: RemoteRoom | None) -> dict[RoomID, Node]:
        """Returns what other servers say about rooms that this server is not in, as far as they answer in time."""
        told: dict[RoomID, Node] = {}
        asked: list[Child] = []
        for child in children:
            summary = None if remote is None else remote.summaries.get(child.room_id)
            if summary is not None:
                told[child.room_id] = Node(summary, ())
            if remote is not None and child.room_id in remote.inaccessible:
                continue
            if summary is not None and summary.get("room_type") != "m.space":
                continue
            room = find_any_cached(self._hs, child.room_id, child.via)
            if room is None:
                asked.append(child)
            elif room.summary is not None:
                told[child.room_id] = Node(room.summary, room.children, room)
        limiter = trio.CapacityLimiter(limits.peers.HIERARCHY_FETCHES_AT_ONCE)

        async def ask_about(child: Child) -> None:
            async with limiter:
                room = await find_remote_room(self._hs, child.room_id, child.via, PERSON)
            if room is not None and room.summary is not None:
                told[child.room_id] = Node(room.summary, room.children, room)

        with trio.move_on_at(self._deadline):
            async with trio.open_nursery() as nursery:
                for child in asked:
                    nursery.start_soon(ask_about, child)
        return told


def _read_local(tx: Transaction, user_id: UserID, room_ids: Sequence[RoomID]) -> dict[RoomID, Node | None]:
    """Returns those rooms that this server is in; None for one that the user must not know of."""
    found: dict[RoomID, Node | None] = {}
    for room_id in room_ids:
        head = find_head(tx, room_id)
        if head is not None and is_server_joined(tx, room_id, tx.server.name):
            summary = room_summary(tx, head)
            is_visible = may_see_summary(tx, summary, user_id)
            found[room_id] = Node(summary, _children_of(tx, head, summary)) if is_visible else None
    return found


def _children_of(tx: Transaction, head: Head, summary: Mapping[str, Any]) -> tuple[Child, ...]:
    return list_children(tx, head) if summary.get("room_type") == "m.space" else ()


def _list_visible(tx: Transaction, user_id: UserID, summaries: Sequence[Mapping[str, Any]]) -> set[RoomID]:
    return {each["room_id"] for each in summaries if may_see_summary(tx, each, user_id)}


# --- federation ---


@routes.get("/_matrix/federation/v1/hierarchy/{room_id}", rate_limit="hierarchy_of_servers")
async def get_space_hierarchy_over_federation(
    hs: Resources, origin: ServerName, room_id: RoomID, query: SuggestedQuery
) -> JsonObject:
    return await hs.database.read(_tell_server, origin, room_id, query.suggested_only)


def _tell_server(tx: Transaction, origin: ServerName, room_id: RoomID, suggested_only: bool) -> JsonObject:
    """Returns a room and its children as far as users of the origin could join or read them. Raises MatrixError 404."""
    head = _find_resident(tx, room_id)
    summary = None if head is None else _find_summary_for(tx, head, origin)
    if head is None or summary is None:
        raise not_found("This server does not know that room, or your server cannot join it.")
    children = [child for child in _children_of(tx, head, summary) if child.is_suggested or not suggested_only]
    known: list[JsonObject] = []
    inaccessible: list[RoomID] = []
    for child in children[: limits.peers.HIERARCHY_CHILDREN_SERVED_MAX]:
        below = _find_resident(tx, child.room_id)
        if below is not None:
            about = _find_summary_for(tx, below, origin)
            if about is None:
                inaccessible.append(child.room_id)
            else:
                known.append(about)
    room = {**summary, "children_state": [child.event for child in children]}
    return {"room": room, "children": known, "inaccessible_children": inaccessible}


def _find_resident(tx: Transaction, room_id: RoomID) -> Head | None:
    head = find_head(tx, room_id)
    return head if head is not None and is_server_joined(tx, room_id, tx.server.name) else None


def _find_summary_for(tx: Transaction, head: Head, origin: ServerName) -> JsonObject | None:
    summary = room_summary(tx, head)
    if not is_allowed(tx, head, origin) or not may_server_see_summary(tx, head, summary, origin):
        return None
    return summary


FEATURE = Feature(
    name="room_hierarchy",
    spec="client-server-api/#spaces",
    routes=routes,
    limits={
        "hierarchy": Bucket(50, 2),  # a page may ask fifty other servers
        "hierarchy_of_servers": Bucket(200, 10),  # a user there who opens a space asks about each of its spaces
    },
)
