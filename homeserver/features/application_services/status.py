"""What administrators see of application services, and how they have one tried again."""

from __future__ import annotations

from collections.abc import Iterable

from homeserver.config import ApplicationService
from homeserver.database import Transaction
from homeserver.database.parked import ParkedItem, list_parked, set_parked_due
from homeserver.feature import JsonObject
from homeserver.features.application_services.storage import delete_pause, find_progress, lane_of


def list_status(tx: Transaction, services: Iterable[ApplicationService]) -> list[JsonObject]:
    """Returns how each application service stands.

    lag: how many positions of the stream it may lack, of which few may concern it. Times are in ms since 1970.
    """
    parked = list_parked(tx)
    return [
        _read_status(tx, service, [each for each in parked if each.lane == lane_of(service.id)]) for service in services
    ]


def _read_status(tx: Transaction, service: ApplicationService, parked: list[ParkedItem]) -> JsonObject:
    progress = find_progress(tx, service.id)
    status: JsonObject = {
        "id": service.id,
        "url": service.url,
        "user_id": service.sender,
        "lag": 0 if progress is None or service.url is None else tx.position - progress.acked,
        "transactions": 0 if progress is None else progress.number,
        "parked": [
            {"item": each.item, "reason": each.reason, "parked_ts": each.parked_ms, "retry": each.is_due}
            for each in parked
        ],
    }
    if progress is not None and progress.failures:
        status |= {
            "failures": progress.failures,
            "failing_since_ts": progress.since_ms,
            "retry_ts": progress.retry_after_ms,
            "reason": progress.reason,
        }
    return status


def retry(tx: Transaction, service_id: str, item: str | None = None) -> int:
    """Has an application service tried again at once, with what was parked, or one item of it. Returns the number."""
    delete_pause(tx, service_id)
    return set_parked_due(tx, lane_of(service_id), item)
