"""Limits on what other servers may cost us, each with its reason: connections, answers, and events that wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Connections


class Share(NamedTuple):
    """How many connections each cause of a kind may use at a time, and all causes of the kind together."""

    each: int
    total: int


# The pool has 512 connections. Requests that people wait for have no limit of their own: at least 64 are left for them,
# in practice more than half. One peer gets a tenth of the pool, enough if its events lead to many dead servers.
CONNECTION_SHARES: Mapping[str, Share] = {
    "delivery": Share(256, 256),  # one for each destination; dead ones hold theirs for ten seconds
    "peer": Share(50, 128),
    "stranger": Share(16, 64),  # a household of servers that start at the same time
}
# Requests that wait for one address's share. More would be answered only after the sender has given up.
STRANGERS_WAITING_MAX = 16
# During a back-off, one request with such a cause is tried at this interval. It costs one connection. Strangers can
# make us ask any server for its keys, so theirs are tried less often.
EARLY_ATTEMPT_MS: Mapping[str, int] = {"person": 3_000, "stranger": 10_000}


class Hedge(NamedTuple):
    """When the next server is asked in parallel to one that has not answered, and when all are given up."""

    stagger_s: float
    timeout_s: float


# Someone scrolling back sees an empty page meanwhile. Background requests give a busy server the time it needs.
HEDGES: Mapping[str, Hedge] = {"person": Hedge(3.0, 20.0), "peer": Hedge(20.0, 120.0)}

# Answers

# The size of each element of a large answer: an event of 64 KiB, with escapes and `unsigned`.
ANSWER_ELEMENT_BYTES_MAX = 256 * 1024
# Values in one element, or in an answer that is decoded as a whole: about 100 bytes each. `bodies.count_nodes` counts
# characters, also those within strings. An event of 64 KiB, including its wrapping, cannot have more.
ANSWER_NODES_MAX = 70_000
# Invalid elements. If there are more of them than good ones, the rest is not read.
ANSWER_JUNK_MAX = 1_000
ANSWER_JUNK_BYTES_MAX = 8 << 20
# A server that is silent for this long in the middle of an answer is gone.
ANSWER_IDLE_S = 30.0
# How much of a list of events is read at a time. Decoded it is up to thirty times as large. 100 events have 100 KB.
LISTED_EVENTS_BYTES_MAX = 2 << 20
# Events in a state or an auth chain from a peer, at 500 bytes of memory each. The largest rooms have about 200,000.
STATE_EVENTS_MAX = 300_000
# The keys that these are signed with. The largest rooms have users of about 20,000 servers.
STATE_KEYS_MAX = 50_000
# How long we wait for these keys. Many of the servers no longer exist.
KEYS_TIMEOUT_S = 60.0
# Outliers whose signatures are checked together on a thread: about 50 ms, which delays cancelling by as much.
OUTLIERS_CHECKED_AT_ONCE = 200
# How many of an event's unknown prev_events we request if we did not get its own state.
GAP_PREV_EVENTS_ASKED_MAX = 2
# Rooms whose history is fetched in parallel. Each may load a state into memory.
BACKFILLS_AT_ONCE_MAX = 10
# How long a page of history waits for other servers. Fetching continues, for the next request of the page.
BACKFILL_WAIT_S = 20.0

# PDUs that were sent to us

# Values in the PDUs of a large transaction that are decoded at once, counted as for ANSWER_NODES_MAX. 50 usual events
# have 5,000, one of the densest 44,000.
PDUS_NODES_AT_ONCE = 100_000
# A longer PDU or EDU is decoded on a thread. The densest of this size takes a millisecond.
PART_BYTES_INLINE_MAX = 8 * 1024

# Events that wait for what they lack

# How long a transaction waits until its gaps are closed. It is worth waiting so that the answer can report on them, but
# not longer, because everything else from its origin waits too.
GAP_WAIT_S = 1.5
# Events waiting for missing ancestors, per room and in total, at 64 KiB each. The newest lead back to the others.
PARKED_PER_ROOM_MAX = 100
PARKED_MAX = 5_000
# When they are tried again, doubling, and for how long. A server that is away for a day has to catch up anyway.
PARKED_RETRY_MS = 30_000
PARKED_RETRY_MS_MAX = 60 * 60 * 1000
PARKED_MS_MAX = 24 * 60 * 60 * 1000
# How often we sweep for those that are due.
PARKED_SWEEP_S = 30.0
# Servers whose return some room waits for.
SERVERS_EXPECTED_MAX = 1_000
