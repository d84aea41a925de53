"""Carries out tasks: one after the other, each by the function for its action, and after a crash those that it left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from homeserver.features.administration import history_changes, room_deletion
from homeserver.resources import Resources
from homeserver.rooms.tasks import find_task

RUNNERS: Mapping[str, Callable[[Resources, str], Awaitable[None]]] = {
    room_deletion.ACTION: room_deletion.run_deletion,
    history_changes.PURGE: history_changes.run_purge,
    history_changes.REDACT: history_changes.run_redaction,
}


async def run_task(hs: Resources, task_id: str) -> None:
    """Carries out a task. A request that waits for it and the worklist share one run."""
    await hs.flights.join(hs.nursery, ("task", task_id), _run, hs, task_id)


async def _run(hs: Resources, task_id: str) -> None:
    task = await hs.database.read(find_task, task_id)
    if task is not None and not task.has_ended:
        await RUNNERS[task.action](hs, task_id)
