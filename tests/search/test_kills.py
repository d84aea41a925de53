"""An index whose process is killed at any step has what it says it has, and goes on from there."""

from __future__ import annotations

import shutil
from pathlib import Path

from homeserver.search.service import Service
from tests.support.kills import kill_at_every_step

KEY = bytes(range(32))
LAST = 9
DELETED_AFTER = 4  # each document deletes the one that came so many before it


def work(folder: Path) -> None:
    """Adds the documents that the index lacks, deletes others, and merges all slices now and then."""
    service = opened(folder)
    for number in range(service.begin("h")[1] + 1, LAST + 1):
        document = [number, number * 1000, 1, 1, 1, f"kettle word{number}"]
        assert service.add(number - 1, number, [document], [[number - DELETED_AFTER], [], []])
        if number % 2:
            service.store()
        if number % 3 == 0 and (plan := service.plan_merge(True)):
            service.adopt(plan[0], plan[1:], service.merge(plan[0], plan[1:]))
    service.close()


def opened(folder: Path) -> Service:
    service = Service(str(folder))
    service.unlock(KEY)
    return service


def check(folder: Path) -> int:
    """Checks that the index has what it should have up to its position, and returns that."""
    service = opened(folder)
    _, position, _, damage = service.begin("h")
    assert damage == ""
    found = service.search("kettle", {"limit": 100}, 60.0)
    assert found is not None
    assert [hit[2] for hit in found[0]] == [*range(position, max(0, position - DELETED_AFTER), -1)]
    service.close()
    return int(position)


def test_an_index_that_is_killed_at_any_step_loses_nothing_that_it_had_written(tmp_path: Path) -> None:
    reached: list[int] = []
    for step in kill_at_every_step(lambda: work(tmp_path / "index")):
        reached.append(check(tmp_path / "index"))
        work(tmp_path / "index")
        assert check(tmp_path / "index") == LAST
        assert len([*(tmp_path / "index").glob("index-*")]) == 1, f"step {step} has left something"
        shutil.rmtree(tmp_path / "index")
    assert len(reached) > 30 and reached == sorted(reached) and reached[0] == 0
