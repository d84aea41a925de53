"""Search: full-text search in all rooms that a user was ever in. Spec: client-server-api/#server-side-search

`texts` says what of an event is searched, `feeding` keeps the index up to date, `sealing` has its key, `matches` checks
what the index proposes, `answer` shows the results.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import trio

from homeserver import limits
from homeserver.api.filters import RoomEventFilter, wants, wants_room
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param, unrecognized
from homeserver.feature import Feature, JsonObject
from homeserver.features.search.answer import Page, describe
from homeserver.features.search.feeding import catch_up, follow, purge_forgotten
from homeserver.features.search.matches import Match, Narrowed, Searched, check_proposals
from homeserver.features.search.request import (
    NextBatch,
    RoomEvents,
    SearchBody,
    SearchQuery,
    SimpleQuery,
    parse_has,
    parse_next_batch,
)
from homeserver.features.search.sealing import SCHEMA
from homeserver.features.search.texts import EDITED, KEY_LABELS, KEYS, TYPES, URL
from homeserver.limits import Bucket
from homeserver.process.workers import Service, WorkerFailed
from homeserver.resources import Resources
from homeserver.rooms.membership import list_memberships
from homeserver.search.documents import Hit
from homeserver.search.query import InvalidQuery, parse_query
from homeserver.search.words import Stemmers

RESULTS_DEFAULT = 10

_log = logging.getLogger(__name__)

routes = Routes()


@routes.post("/_matrix/client/v3/search", rate_limit="search")
async def search(hs: Resources, requester: Requester, query: SearchQuery, body: SearchBody) -> JsonObject:
    index, asked = _get_index(hs), body.search_categories.room_events
    if asked is None:
        return {"search_categories": {}}
    found = await _answer(hs, index, requester, query.next_batch, asked, Narrowed())
    return {"search_categories": {"room_events": found}}


@routes.get("/_homeserver/client/v1/search", rate_limit="search")
async def search_simply(hs: Resources, requester: Requester, query: SimpleQuery) -> JsonObject:
    filter_ = RoomEventFilter(
        limit=query.limit,
        rooms=None if query.room_id is None else [query.room_id],
        senders=None if query.sender is None else [query.sender],
    )
    asked = RoomEvents(query.q, filter=filter_, order_by="recent")
    narrowed = Narrowed(parse_has(query.has), query.after, query.before)
    return await _answer(hs, _get_index(hs), requester, query.from_, asked, narrowed)


def _get_index(hs: Resources) -> Service:
    """Returns the index. Raises MatrixError 404 if search is turned off."""
    if hs.search is None:
        raise unrecognized()
    return hs.search


async def _answer(
    hs: Resources,
    index: Service,
    requester: Requester,
    next_batch: str | None,
    asked: RoomEvents,
    narrowed: Narrowed,
) -> JsonObject:
    """Returns `room_events` of the response. Raises MatrixError 503 if the index does not work."""
    batch = parse_next_batch(next_batch, asked.order_by, hs.signing_key)
    try:
        page = await _search(hs, index, requester, batch, asked, narrowed)
    except WorkerFailed as error:
        _log.warning("a search has failed", extra={"reason": str(error)})
        raise MatrixError(503, "M_UNKNOWN", "Search is not available at the moment. Try again later.") from error
    return await hs.database.read(describe, requester, asked, page, hs.database.generation)


async def _search(
    hs: Resources,
    index: Service,
    requester: Requester,
    batch: NextBatch | None,
    asked: RoomEvents,
    narrowed: Narrowed,
) -> Page:
    stemmers = Stemmers()
    try:
        parsed = parse_query(asked.search_term, stemmers)
    except InvalidQuery as error:
        raise invalid_param(str(error)) from error
    filter_ = asked.filter or RoomEventFilter()
    keys = frozenset(key for kind, key in TYPES.items() if key in (asked.keys or KEYS) and wants(filter_, kind, None))
    searched = Searched(requester, parsed, stemmers, keys, filter_, narrowed)
    wanted = await hs.database.read(_wanted, searched, batch)
    if not parsed.units or not keys or wanted is None:
        return Page([], 0 if batch is None else batch.seen, None)
    with trio.move_on_after(limits.search.SEARCH_CATCH_UP_SECONDS_MAX):
        await catch_up(hs.database, index, await hs.database.get_position())
    limit = RESULTS_DEFAULT if filter_.limit is None else filter_.limit
    limit = max(1, min(limit, limits.search.SEARCH_RESULTS_MAX))
    return await _find_page(hs, index, _Search(asked, searched, wanted, batch), limit)


class _Search(msgspec.Struct, frozen=True):
    asked: RoomEvents
    searched: Searched
    wanted: dict[str, Any]
    batch: NextBatch | None

    def next_batch(self, place: Hit, seen: int) -> NextBatch:
        """Returns the token of the page that begins after a place."""
        batch = NextBatch(self.asked.order_by, place.score, place.time, place.number, seen)
        if self.batch is None:
            return batch
        return msgspec.structs.replace(batch, group_key=self.batch.group_key, group=self.batch.group)


def _wanted(tx: Transaction, searched: Searched, batch: NextBatch | None) -> dict[str, Any] | None:
    """Returns the conditions for the index, None if nothing can fulfil them."""
    filter_ = searched.filter
    rooms = {
        each.room_id
        for each in list_memberships(tx, searched.requester.user_id, around_damage=True)
        if not each.forgotten and wants_room(filter_, each.room_id)
    }
    senders = None if filter_.senders is None else set(filter_.senders)
    if batch is not None and batch.group_key == "room_id":
        rooms &= {batch.group}
    if batch is not None and batch.group_key == "sender":
        senders = {batch.group} if senders is None else senders & {batch.group}
    labels = [sum(KEY_LABELS[key] for key in searched.keys)]
    if filter_.contains_url:
        labels.append(URL | EDITED)  # an edit has its own content; the filter is about the message
    if searched.narrowed.has:
        labels.append(searched.narrowed.has)
    authors = None if senders is None else list(tx.find_all(senders).values())
    if not rooms or authors == []:
        return None
    return {
        "groups": list(tx.find_all(rooms).values()),
        "authors": authors,
        "not_authors": list(tx.find_all(filter_.not_senders).values()),
        "labels_any": labels,
        "from_time": searched.narrowed.after,
        "to_time": searched.narrowed.before,
    }


async def _find_page(hs: Resources, index: Service, search: _Search, limit: int) -> Page:
    """Asks the index for proposals and checks them, until the page is full or there is nothing more."""
    seen = 0 if search.batch is None else search.batch.seen
    place = None if search.batch is None else Hit(search.batch.score, search.batch.time, search.batch.number)
    matches: list[Match] = []
    characters = limits.search.SEARCH_CHARACTERS_MAX
    number = max(limit + 1, limits.search.SEARCH_CHECKED_MIN)
    for _ in range(limits.search.SEARCH_ROUNDS_MAX):
        wanted = {
            **search.wanted,
            "by_rank": search.asked.order_by == "rank",
            "before": None if place is None else list(place),
            "limit": number,
        }
        hits, reached = await _propose(hs, index, search.asked.search_term, wanted)
        proposals = [Hit(*hit) for hit in hits]
        checked = await hs.database.read(check_proposals, search.searched, proposals, characters)
        matches += checked.matches
        characters -= checked.characters
        place = None if reached is None else Hit(*reached)
        if checked.last is not None:
            place = checked.last
        if place is None or len(matches) > limit or characters <= 0:
            break
        number = limits.search.SEARCH_CHECKED_PER_ROUND
    shown = matches[:limit]
    if len(matches) > limit:
        place = shown[-1].hit
    following = None if place is None else search.next_batch(place, seen + len(shown))
    return Page(shown, seen + len(matches), following)


async def _propose(hs: Resources, index: Service, term: str, wanted: dict[str, Any]) -> list[Any]:
    """Returns proposals of the index, and where to continue. A damaged index is begun again, and asked once more."""
    for _ in range(2):
        found = await index.call("search", term, wanted, limits.search.SEARCH_SECONDS_MAX)
        if found is not None:
            return list(found)
        await catch_up(hs.database, index, await hs.database.get_position())
    raise WorkerFailed("the search index is damaged again just after it was begun")


FEATURE = Feature(
    name="search",
    spec="client-server-api/#server-side-search",
    schema=SCHEMA,
    routes=routes,
    limits={"search": Bucket(20, 2)},  # some 10 ms each, and much more for malicious ones
    background=(follow, purge_forgotten),
)
