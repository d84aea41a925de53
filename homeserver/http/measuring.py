"""Metrics about the process and the parts that all features share: loop, database, stream, other servers."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import trio

from homeserver.http.dispatch import Dispatch
from homeserver.resources import Resources

# Often enough to see a stall of a second, rarely enough to cost nothing.
LOOP_LAG_INTERVAL_S = 1.0
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def register_metrics(hs: Resources) -> None:
    """Registers all values that are read when the metrics are requested."""
    metrics, database = hs.metrics, hs.database
    metrics.total("process_cpu_seconds_total", _cpu_seconds, "CPU time of this process, all threads.")
    metrics.gauge("process_resident_memory_bytes", _resident_bytes, "Memory of this process that is in RAM.")
    metrics.gauge("process_open_fds", _open_files, "File descriptors that are open.")
    metrics.gauge("process_max_fds", _files_max, "The limit for open file descriptors.")
    metrics.gauge("homeserver_database_writes_waiting", lambda: database.writes_waiting, "Writes that are waiting.")
    metrics.total("homeserver_database_writes_total", lambda: database.writes, "Writes requested.")
    metrics.total("homeserver_database_batches_total", lambda: database.batches, "Transactions that they shared.")
    metrics.total(
        "homeserver_database_write_seconds_total", lambda: database.write_seconds, "Time spent in those transactions."
    )
    metrics.gauge("homeserver_stream_position", lambda: hs.stream.position, "Position of the last change.")
    metrics.gauge("homeserver_stream_waiting", lambda: hs.stream.waiting, "Syncs and the like that wait for a change.")
    metrics.gauge(
        "homeserver_federation_destinations_in_back_off",
        lambda: hs.peers.count_back_offs(hs.now_ms()),
        "Servers that get no background requests for a while, because they did not answer.",
    )
    metrics.describe("homeserver_federation_pdus_received_total", "Events received from other servers, by outcome.")
    metrics.describe("homeserver_rate_limited_total", "Requests refused because there were too many, by operation.")
    metrics.describe("homeserver_loop_lag_seconds_total", "How late the event loop was, summed over all measurements.")
    metrics.describe("homeserver_loop_lag_measurements_total", "How often the lag of the event loop was measured.")


async def measure_loop_lag(dispatch: Dispatch) -> None:
    """Measures forever how late a sleeping task wakes, which is a delay for every request too.

    Measures only while there are requests, so that an idle server sleeps.
    """
    while True:
        await dispatch.requested.wait()
        dispatch.requested = trio.Event()
        asked = trio.current_time() + LOOP_LAG_INTERVAL_S
        await trio.sleep_until(asked)
        metrics = dispatch.hs.metrics
        metrics.count("homeserver_loop_lag_seconds_total", amount=max(0.0, trio.current_time() - asked))
        metrics.count("homeserver_loop_lag_measurements_total")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:  # not Linux: use the peak instead
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _open_files() -> int:
    return len(os.listdir("/dev/fd"))


def _files_max() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
