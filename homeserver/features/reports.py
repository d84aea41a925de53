"""Reports of events, rooms and users, which administrators of the server read.

Spec: client-server-api/#reporting-content

Reports of rooms and users are accepted whether or not the server knows the room or user: so nobody can find out what
exists, and people can report what they know from directories of other servers. The admin API has the format that tools
for Synapse expect.
"""

from __future__ import annotations

from typing import Literal

import msgspec
import orjson

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import EventID, RoomID, UserID
from homeserver.limits import Bucket
from homeserver.resources import Resources
from homeserver.rooms.client_event import client_event
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.membership import find_membership
from homeserver.rooms.storage import TimelineEvent, find_stored_by_id
from homeserver.rooms.visibility import filter_visible

EVENT_REPORTS = "/_synapse/admin/v1/event_reports"
ROOM_REPORTS = "/_synapse/admin/v1/room_reports"
USER_REPORTS = "/_synapse/admin/v1/user_reports"
_PAGE_MAX = 1000

Kind = Literal["event", "room", "user"]

# position: the report's ID. room_nid, event_id, target_nid: 0 or empty if the report is not about one. reason: JSON.
SCHEMA = Schema(
    "reports",
    (
        Step(
            "create",
            """
            CREATE TABLE reports (
                position INTEGER PRIMARY KEY,
                kind TEXT NOT NULL,
                reporter_nid INTEGER NOT NULL,
                room_nid INTEGER NOT NULL,
                event_id TEXT NOT NULL,
                target_nid INTEGER NOT NULL,
                reason BLOB NOT NULL,
                received_ms INTEGER NOT NULL
            );
            CREATE UNIQUE INDEX reports_by_subject ON reports (reporter_nid, room_nid, event_id, target_nid);
            """,
        ),
    ),
)

routes = Routes()


class EventReportBody(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#post_matrixclientv3roomsroomidreporteventid"""

    reason: str = ""


class ReportBody(msgspec.Struct, frozen=True):
    """Spec: client-server-api/#post_matrixclientv3roomsroomidreport. The reason "may be blank"."""

    reason: str


class Report(msgspec.Struct, frozen=True):
    """A report. `id` is 0 until it is stored. An event report has room and event, a user report the user reported."""

    id: int
    kind: Kind
    reporter: UserID
    reason: str
    received_ms: int
    room_id: RoomID | None = None
    event_id: EventID | None = None
    target: UserID | None = None


@routes.post("/_matrix/client/v3/rooms/{room_id}/report/{event_id}", rate_limit="report")
async def report_event(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, body: EventReportBody
) -> Empty:
    report = Report(0, "event", requester.user_id, _reason(body.reason), hs.now_ms(), room_id, event_id)
    await hs.database.write(_store_event_report, report)
    return Empty()


@routes.post("/_matrix/client/v3/rooms/{room_id}/report", rate_limit="report")
async def report_room(hs: Resources, requester: Requester, room_id: RoomID, body: ReportBody) -> Empty:
    report = Report(0, "room", requester.user_id, _reason(body.reason), hs.now_ms(), room_id)
    await hs.database.write(store_report, report)
    return Empty()


@routes.post("/_matrix/client/v3/users/{user_id}/report", rate_limit="report")
async def report_user(hs: Resources, requester: Requester, user_id: UserID, body: ReportBody) -> Empty:
    report = Report(0, "user", requester.user_id, _reason(body.reason), hs.now_ms(), target=user_id)
    await hs.database.write(store_report, report)
    return Empty()


def _reason(text: str) -> str:
    if len(text.encode("utf-8", "surrogatepass")) > limits.users.REPORT_REASON_BYTES_MAX:
        most = limits.users.REPORT_REASON_BYTES_MAX
        raise MatrixError(413, "M_TOO_LARGE", f"The reason of a report is limited to {most} bytes.")
    return text


def _store_event_report(tx: Transaction, report: Report) -> None:
    """Stores it if the reporter is in the room and may see the event. Raises the same 404 if not."""
    assert report.room_id is not None and report.event_id is not None
    event = find_stored_by_id(tx, report.event_id)
    if (
        find_membership(tx, report.room_id, report.reporter) != "join"
        or not isinstance(event, TimelineEvent)
        or event.room_id != report.room_id
        or not filter_visible(tx, report.reporter, report.room_id, [event])
    ):
        raise not_found("The event was not found, or you are not in its room.")
    store_report(tx, report)


# --- for administrators ---


class ReportsQuery(msgspec.Struct, frozen=True):
    """start (`from`): how many reports to leave out. direction (`dir`): newest first (b), or oldest first (f).

    user_id, room_id: only what this user has reported, or only reports about this room.
    """

    start: int = msgspec.field(name="from", default=0)
    limit: int = 100
    direction: Literal["b", "f"] = msgspec.field(name="dir", default="b")
    user_id: UserID | None = None
    room_id: RoomID | None = None


@routes.get(EVENT_REPORTS)
async def list_event_reports(hs: Resources, requester: Requester, query: ReportsQuery) -> JsonObject:
    return await _list(hs, requester, "event", query)


@routes.get(ROOM_REPORTS)
async def list_room_reports(hs: Resources, requester: Requester, query: ReportsQuery) -> JsonObject:
    return await _list(hs, requester, "room", query)


@routes.get(USER_REPORTS)
async def list_user_reports(hs: Resources, requester: Requester, query: ReportsQuery) -> JsonObject:
    return await _list(hs, requester, "user", query)


@routes.get(f"{EVENT_REPORTS}/{{report_id}}")
async def get_event_report(hs: Resources, requester: Requester, report_id: int) -> JsonObject:
    check_admin(requester)
    body = await hs.database.read(find_report_body, report_id)
    if body is None or "event_id" not in body:
        raise not_found("There is no such report.")
    return body


@routes.delete(f"{EVENT_REPORTS}/{{report_id}}")
@routes.delete(f"{ROOM_REPORTS}/{{report_id}}")
@routes.delete(f"{USER_REPORTS}/{{report_id}}")
async def delete_report_for_admin(hs: Resources, requester: Requester, report_id: int) -> Empty:
    check_admin(requester)
    if not await hs.database.write(delete_report, report_id):
        raise not_found("There is no such report.")
    return Empty()


async def _list(hs: Resources, requester: Requester, kind: Kind, query: ReportsQuery) -> JsonObject:
    check_admin(requester)
    if not 1 <= query.limit <= _PAGE_MAX or not 0 <= query.start < 2**53:
        raise invalid_param(f"The limit must be from 1 to {_PAGE_MAX}, and from must not be negative.")
    return await hs.database.read(_page, kind, query)


def _page(tx: Transaction, kind: Kind, query: ReportsQuery) -> JsonObject:
    total = count_reports(tx, kind, query.user_id, query.room_id)
    newest_first = query.direction == "b"
    found = list_reports(
        tx, kind, query.user_id, query.room_id, start=query.start, limit=query.limit, newest_first=newest_first
    )
    end = query.start + len(found)
    more = {"next_token": end} if end < total and found else {}
    return {f"{kind}_reports": [report_body(tx, each) for each in found], "total": total, **more}


def find_report_body(tx: Transaction, report_id: int) -> JsonObject | None:
    """Returns what `report_body` does, None if there is no such report. Includes a reported event as `event_json`."""
    report = find_report(tx, report_id)
    if report is None:
        return None
    body = report_body(tx, report)
    if report.event_id is not None:
        event = find_stored_by_id(tx, report.event_id)
        body["event_json"] = None if event is None else client_event(tx, event)
    return body


def report_body(tx: Transaction, report: Report) -> JsonObject:
    """Returns a report in the format of the admin API. The sender of an event, and the name of a room, may be None."""
    body: JsonObject = {
        "id": report.id, "received_ts": report.received_ms, "user_id": report.reporter, "reason": report.reason,
    }  # fmt: skip
    if report.target is not None:
        body["target_user_id"] = report.target
    if report.room_id is not None:
        body |= {"room_id": report.room_id, **_names(tx, report.room_id)}
    if report.event_id is not None:
        event = find_stored_by_id(tx, report.event_id)
        body |= {"event_id": report.event_id, "sender": None if event is None else event.sender}
    return body


def _names(tx: Transaction, room_id: RoomID) -> JsonObject:
    head = find_head(tx, room_id)
    name = state_content(tx, head.state_root, "m.room.name") if head is not None else None
    alias = state_content(tx, head.state_root, "m.room.canonical_alias") if head is not None else None
    return {"name": (name or {}).get("name"), "canonical_alias": (alias or {}).get("alias")}


# --- storage ---


def store_report(tx: Transaction, report: Report) -> None:
    """Stores a report. It replaces an earlier one of the same user about the same thing.

    The oldest ones of a user who reports too much are deleted.
    """
    reporter_nid = tx.intern(report.reporter)
    tx.run(
        "INSERT INTO reports (position, kind, reporter_nid, room_nid, event_id, target_nid, reason, received_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (reporter_nid, room_nid, event_id, target_nid) DO UPDATE SET"
        " position = excluded.position, reason = excluded.reason, received_ms = excluded.received_ms",
        tx.next_position(), report.kind, reporter_nid, tx.intern(report.room_id) if report.room_id else 0,
        report.event_id or "", tx.intern(report.target) if report.target else 0, to_json(report.reason),
        report.received_ms,
    )  # fmt: skip
    tx.run(
        "DELETE FROM reports WHERE reporter_nid = ? AND position <= (SELECT position FROM reports"
        " WHERE reporter_nid = ? ORDER BY position DESC LIMIT 1 OFFSET ?)",
        reporter_nid, reporter_nid, limits.users.REPORTS_PER_USER_MAX,
    )  # fmt: skip


def list_reports(
    tx: Transaction,
    kind: Kind | None = None,
    reporter: UserID | None = None,
    room_id: RoomID | None = None,
    *,
    start: int,
    limit: int,
    newest_first: bool,
) -> list[Report]:
    """Returns all reports, or those of a kind, by a reporter, or about a room; the first `start` are left out."""
    wanted = _wanted(tx, kind, reporter, room_id)
    rows = tx.all(
        "SELECT position, kind, reporter_nid, room_nid, event_id, target_nid, reason, received_ms FROM reports"
        " WHERE (? = '' OR kind = ?) AND (? = 0 OR reporter_nid = ?) AND (? = 0 OR room_nid = ?)"
        " ORDER BY position * ? LIMIT ? OFFSET ?",
        *wanted, -1 if newest_first else 1, limit, start,
    )  # fmt: skip
    return _reports(tx, rows)


def count_reports(
    tx: Transaction, kind: Kind | None = None, reporter: UserID | None = None, room_id: RoomID | None = None
) -> int:
    """Returns how many there are."""
    (count,) = tx.values(
        "SELECT count(*) FROM reports"
        " WHERE (? = '' OR kind = ?) AND (? = 0 OR reporter_nid = ?) AND (? = 0 OR room_nid = ?)",
        *_wanted(tx, kind, reporter, room_id),
    )
    return int(count)


def find_report(tx: Transaction, report_id: int) -> Report | None:
    """Returns a report, or None."""
    rows = tx.all(
        "SELECT position, kind, reporter_nid, room_nid, event_id, target_nid, reason, received_ms FROM reports"
        " WHERE position = ?",
        report_id,
    )
    return _reports(tx, rows)[0] if rows else None


def delete_report(tx: Transaction, report_id: int) -> bool:
    """Deletes a report. Returns False if it does not exist."""
    return bool(tx.run("DELETE FROM reports WHERE position = ?", report_id))


def forget_reports(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes what an erased user has reported. Reports about the user remain until an administrator deletes them."""
    if erase:
        tx.run("DELETE FROM reports WHERE reporter_nid = ?", tx.find(user_id))
    return False


def _wanted(
    tx: Transaction, kind: Kind | None, reporter: UserID | None, room_id: RoomID | None
) -> tuple[str | int, ...]:
    """Returns each condition twice: whether it applies, and its value. -1 if no report can fulfil it."""
    reporter_nid = 0 if reporter is None else tx.find(reporter) or -1
    room_nid = 0 if room_id is None else tx.find(room_id) or -1
    return (kind or "", kind or "", reporter_nid, reporter_nid, room_nid, room_nid)


def _reports(tx: Transaction, rows: list[Row]) -> list[Report]:
    names = tx.names({nid for row in rows for nid in (row[2], row[3], row[5]) if nid})
    return [
        Report(
            position,
            kind,
            UserID(names[reporter_nid]),
            orjson.loads(reason),
            received_ms,
            RoomID(names[room_nid]) if room_nid else None,
            EventID(event_id) if event_id else None,
            UserID(names[target_nid]) if target_nid else None,
        )
        for position, kind, reporter_nid, room_nid, event_id, target_nid, reason, received_ms in rows
    ]


FEATURE = Feature(
    name="reports",
    spec="client-server-api/#reporting-content",
    schema=SCHEMA,
    routes=routes,
    limits={"report": Bucket(20, 0.1)},  # each is a row that a person has to read
    forget_user=forget_reports,
)
