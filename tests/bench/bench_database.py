"""What the database costs: CPU per write and per read, at several numbers of callers. Prints one JSON object.

python tests/bench/bench_database.py [sqlite|postgres] [seconds]
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

import trio

from homeserver.database import Database, Schema, Step, Transaction, open_database

SCHEMA = Schema(
    "bench",
    (Step("1", "CREATE TABLE items (position INTEGER PRIMARY KEY, user_nid INTEGER NOT NULL, body BLOB NOT NULL);"),),
)
BODY = b"x" * 200


def store_item(tx: Transaction, user_id: str) -> int:
    """A small write: a position, an interned string, one row."""
    position = tx.next_position(user_id)
    tx.run("INSERT INTO items (position, user_nid, body) VALUES (?, ?, ?)", position, tx.intern(user_id), BODY)
    return position


def get_item(tx: Transaction, position: int) -> bytes | None:
    """A small read: one row by its key."""
    row = tx.one("SELECT body FROM items WHERE position = ?", position)
    return row[0] if row else None


def do_nothing(tx: Transaction) -> None:
    """Measures the way to the writer and back."""


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def measure(callers: int, seconds: float, call: object) -> dict[str, float]:
    count = 0
    end = time.monotonic() + seconds

    async def caller(number: int) -> None:
        nonlocal count
        while time.monotonic() < end:
            await call(number)  # type: ignore[operator]
            count += 1

    cpu, wall = cpu_seconds(), time.monotonic()
    async with trio.open_nursery() as nursery:
        for number in range(callers):
            nursery.start_soon(caller, number)
    cpu, wall = cpu_seconds() - cpu, time.monotonic() - wall
    return {"cpu_us": round(cpu / count * 1e6, 1), "per_second": round(count / wall)}


async def measure_all(database: Database, seconds: float) -> dict[str, object]:
    results: dict[str, object] = {}
    for callers in (1, 8, 32, 128):
        results[f"write_{callers}"] = await measure(
            callers, seconds, lambda number: database.write(store_item, f"@user{number}:example.org")
        )
    for callers in (1, 8, 32, 128):
        results[f"read_{callers}"] = await measure(callers, seconds, lambda number: database.read(get_item, number + 1))
        results[f"empty_read_{callers}"] = await measure(callers, seconds, lambda number: database.read(do_nothing))
    return results


async def main(engine: str, seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
        if engine == "postgres":
            from tests.support.postgres import running_cluster

            with running_cluster(durable=True) as cluster:
                print(json.dumps(await run(cluster.make_database(), seconds), indent=2))
        else:
            print(json.dumps(await run(f"sqlite:{folder}/bench.db", seconds), indent=2))


async def run(url: str, seconds: float) -> dict[str, object]:
    start = time.monotonic()
    database = await open_database(url, [SCHEMA], now_ms=lambda: time.time_ns() // 1_000_000)
    opened = time.monotonic()
    results = await measure_all(database, seconds)
    await database.aclose()
    start_again = time.monotonic()
    database = await open_database(url, [SCHEMA], now_ms=lambda: time.time_ns() // 1_000_000)
    results["create_ms"] = round((opened - start) * 1000, 1)
    results["open_ms"] = round((time.monotonic() - start_again) * 1000, 1)
    results["rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    await database.aclose()
    return results


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "sqlite", float(sys.argv[2]) if len(sys.argv) > 2 else 2.0)
