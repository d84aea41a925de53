"""Limits on what other servers may cost us, each with its reason: connections, answers, and events that wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Connections


class Share(NamedTuple):
    """How many connections each cause of a kind may use at a time, and all causes of the kind together."""

    each: int
    total: int


# The pool has 512 connections. What people wait for has no limit of its own: these leave it 64 at the least, and more
# than half in practice. A tenth of the pool for one peer: a busy peer whose events lead to many dead servers.
CONNECTION_SHARES: Mapping[str, Share] = {
    "delivery": Share(256, 256),  # one for each destination; dead ones hold theirs for ten seconds
    "peer": Share(50, 128),
    "stranger": Share(16, 64),  # a household of servers that start at the same time
}
# What waits for the share of one address: more would be answered after its sender has given up.
STRANGERS_WAITING_MAX = 16
# During a back-off, one request of such a cause is tried each time that this has passed: it costs one connection.
# Anyone can make us ask a server for its keys, so that is done more seldom.
EARLY_ATTEMPT_MS: Mapping[str, int] = {"person": 3_000, "stranger": 10_000}


class Hedge(NamedTuple):
    """After how long the next server is asked beside one that has not answered, and when all are given up."""

    stagger_s: float
    timeout_s: float


# A person who pages back sees an empty page meanwhile. In the background a busy server gets the time that it needs.
HEDGES: Mapping[str, Hedge] = {"person": Hedge(3.0, 20.0), "peer": Hedge(20.0, 120.0)}

# Answers

# Of larger answers, each element: an event of 64 KiB, with escapes and `unsigned`.
ANSWER_ELEMENT_BYTES_MAX = 256 * 1024
# Values in one element, or in an answer that is decoded as a whole: some 100 bytes each. `bodies.count_nodes` counts
# them by characters, also those in texts: an event of 64 KiB, with what it is wrapped in, cannot have more.
ANSWER_NODES_MAX = 70_000
# Elements that are not what they should be. If there are more of them than good ones, the rest is not read.
ANSWER_JUNK_MAX = 1_000
ANSWER_JUNK_BYTES_MAX = 8 << 20
# A server that says nothing for so long in the middle of an answer has gone away.
ANSWER_IDLE_S = 30.0
# Of a list of events, what is read at a time: decoded it is up to thirty times as large. 100 events have 100 KB.
LISTED_EVENTS_BYTES_MAX = 2 << 20
# Events in a state or an auth chain of a peer, at 500 bytes of memory each. The largest rooms have some 200,000.
STATE_EVENTS_MAX = 300_000
# Keys that these are signed with: the largest rooms have users of some 20,000 servers.
STATE_KEYS_MAX = 50_000
# How long we wait for them: many of these servers are gone.
KEYS_TIMEOUT_S = 60.0
# Outliers whose signatures are checked in one go on a thread: some 50 ms, which is how late it can be cancelled.
OUTLIERS_CHECKED_AT_ONCE = 200
# Of the unknown events that an event follows on, how many are asked about where its own state is not told.
GAP_PREV_EVENTS_ASKED_MAX = 2
# Rooms whose past is fetched at once: each may take a state into memory.
BACKFILLS_AT_ONCE_MAX = 10
# How long a page of history waits for what other servers have; fetching goes on, for when it is asked for again.
BACKFILL_WAIT_S = 20.0

# PDUs that were sent to us

# Values in the PDUs of a large transaction that are decoded at once, in the measure of ANSWER_NODES_MAX: 50 usual
# events have 5,000, one of the densest 44,000.
PDUS_NODES_AT_ONCE = 100_000
# A longer PDU or EDU is decoded on a thread: the densest of this size takes a millisecond.
PART_BYTES_INLINE_MAX = 8 * 1024

# Events that wait for what they lack

# How long a transaction waits for its gaps to be closed: an answer that tells of them is worth that, and no more, since
# whatever else its origin has to say waits too.
GAP_WAIT_S = 1.5
# Events that wait for what they lack, of one room and of all, at 64 KiB each: the newest lead back to the others.
PARKED_PER_ROOM_MAX = 100
PARKED_MAX = 5_000
# When they are tried again, doubling, and for how long: a server that is away for a day has lost its place anyway.
PARKED_RETRY_MS = 30_000
PARKED_RETRY_MS_MAX = 60 * 60 * 1000
PARKED_MS_MAX = 24 * 60 * 60 * 1000
# How often we sweep for those that are due.
PARKED_SWEEP_S = 30.0
# Servers whose return rooms wait for.
SERVERS_EXPECTED_MAX = 1_000
