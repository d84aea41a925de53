"""Limits of federation, each with its reason: what other servers may cost us, and what we do with or for them."""

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

# To-device messages

# EDUs that wait for a server that is away: the keys that people with 1,000 devices there use up in a month. A server
# that is gone for good must not fill the disk.
OUTBOX_EDUS_MAX = 50_000
OUTBOX_BYTES_MAX = 128 << 20
# Message IDs of one origin that are recognised. After a crash an origin sends the last few again, or its last outage.
TO_DEVICE_IDS_KEPT = 2_000

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

# Keys

# A few hundred bytes each.
KEYS_CACHED_SERVERS_MAX = 20_000
# Servers whose back-off is remembered, about 200 bytes each.
BACK_OFFS_MAX = 50_000
# Stored statements of one server: one for each time that it changed its keys.
KEY_STATEMENTS_PER_SERVER_MAX = 10
# Hundreds of old keys at most.
KEY_RESPONSE_BYTES_MAX = 256 * 1024
# A notary's answer for a hundred servers.
NOTARY_RESPONSE_BYTES_MAX = 16 << 20
KEY_FETCH_TIMEOUT_S = 10.0
# A server whose keys lacked the wanted one is not asked again before this.
KEY_RETRY_MS = 10_000
# A signature dated later than this cannot be valid with any key yet, so no key is fetched for it.
KEY_FUTURE_MS = 60 * 60 * 1000
# Servers whose keys are fetched in parallel when a large room is joined. Many of them no longer exist.
KEY_FETCHES_AT_ONCE_MAX = 50
# Servers in one request to a notary, and in one request to us.
NOTARY_SERVERS_MAX = 100
# Spec: "Originating servers should avoid returning responses that expire in less than an hour".
OWN_KEYS_VALID_MS = 24 * 60 * 60 * 1000

# Requests

# A person should not have to wait longer than this for an answer.
FEDERATION_TIMEOUT_S = 20.0
# The size of ordinary answers from peers, except those with many events or rooms: at most the servers of a large room.
FEDERATION_RESPONSE_BYTES_MAX = 1 << 20
# The back-off of a destination that does not answer. It doubles with each failure.
RETRY_MS = 2_000
RETRY_MS_MAX = 60 * 60 * 1000
# 50 PDUs of 64 KiB, and 100 EDUs that may be as large. While its signature is checked, it is in memory three times.
TRANSACTION_BODY_BYTES_MAX = 10 << 20
# The worst that the users of an honest server can put into 50 PDUs: 44,000 values each. See `bodies.count_nodes`.
TRANSACTION_JSON_NODES_MAX = 2_500_000
# One PDU, a little larger than canonical.
PDU_BODY_BYTES_MAX = 128 * 1024
# One PDU and a dozen events of the room's state.
INVITE_BODY_BYTES_MAX = 2 << 20
# Thousands of event IDs, or key IDs of a hundred servers.
QUESTION_BODY_BYTES_MAX = 1 << 20
# Transactions of one origin that wait for their turn. It should send one after another, and is told to slow down.
TRANSACTIONS_WAITING_MAX = 5

# Events

# Events of peers stored in one write. Other writes wait for about 20 ms at most.
EVENTS_PER_WRITE = 20
# Outliers cost half of that, because no state is computed.
OUTLIERS_PER_WRITE = 40
# Events between what we know and a new event that are requested at once. Backfill fetches older ones.
GAP_EVENTS_MAX = 50
# States fetched to close gaps. Each may have 100,000 event IDs. An honest gap has one or two ends.
GAP_STATES_MAX = 4
# How long the gaps of one room are worked on without a break.
GAP_SECONDS_MAX = 60
# Servers asked for missing events, one after another, and how many of the room's servers they are chosen from.
SERVERS_ASKED_MAX = 3
SERVERS_CONSIDERED_MAX = 50

# State events that are fetched one by one. If more are missing, the whole state is fetched.
STATE_EVENTS_SINGLY_MAX = 30
# Parallel requests for single events to one server.
EVENT_FETCHES_AT_ONCE = 8
# The sizes of /state_ids, and of /state and /send_join, whose events have about 1 KB each, for the largest rooms.
STATE_IDS_BYTES_MAX = 64 << 20
STATE_BYTES_MAX = 512 << 20
# The largest rooms take minutes to send and check.
STATE_TIMEOUT_S = 120.0
JOIN_TIMEOUT_S = 180.0
# Parts of one EDU, such as receipts, each of which takes a few look-ups in a write. Synapse sends up to 50; the rest of
# an EDU with more than this is not worth a longer write.
EDU_PARTS_MAX = 500
# Stored answers to transactions per origin. An origin sends one after another.
TRANSACTIONS_KEPT = 10
# Spec: server-server-api/#get_matrixfederationv1backfillroomid sets no limit; a client's page has at most 100 events.
BACKFILL_EVENTS_MAX = 100
BACKFILL_BYTES_MAX = 16 << 20
# Spec: POST /get_missing_events defaults to 10.
MISSING_EVENTS_MAX = 50

# Spaces

# A space with 1,000 children: a summary and an event for each, about a kilobyte together.
HIERARCHY_BYTES_MAX = 4 << 20
# Someone looks at a list that fills meanwhile. A page waits a little longer than a request, for a second server.
HIERARCHY_TIMEOUT_S = 5.0
HIERARCHY_PAGE_S = 8.0
# Servers asked about one room, of those that lead to it, and requests for one page at a time.
HIERARCHY_SERVERS_ASKED_MAX = 3
HIERARCHY_FETCHES_AT_ONCE = 10
# How long an answer is used. A server that did not answer is asked again sooner.
HIERARCHY_CACHED_MS = 5 * 60 * 1000
HIERARCHY_FAILURE_CACHED_MS = 60 * 1000
HIERARCHY_CACHED_BYTES_MAX = 32 << 20
# Children that one answer of ours describes, at a dozen look-ups each unless they are cached.
HIERARCHY_CHILDREN_SERVED_MAX = 200

# Joining, inviting, leaving

# Transactions kept in memory for a room that we are just joining, with at most 3 MiB each.
JOIN_WAITING_MAX = 50
# Servers tried for a join before the user is told that it failed.
JOIN_SERVERS_MAX = 10
# If a resident server has not answered by then, the next one is asked in parallel.
JOIN_NEXT_SERVER_SECONDS = 3.0
# Attempts to join that are undone together if all of them fail: a user who tries more often has joined by one of these.
JOINS_UNDONE_MAX = 20
# A refused join of an invited user is tried again after these pauses: we have told the user of the invitation before
# the inviting server, which waits for our signature, could place it in the room.
INVITED_JOIN_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
# How long other requests wait for an invitation of ours that is being signed: a little less than others wait for us.
INVITE_PLACING_SECONDS_MAX = 10.0
# How long a user who rejects an invitation waits for the other servers. After that these are told in the background.
LEAVE_SECONDS = 10.0
# The longest pause between attempts. Each costs two requests.
LEAVE_RETRY_MS_MAX = 10 * 60 * 1000
# How long this is tried. A server that was away for longer has other things to catch up with.
LEAVE_KEPT_MS = 90 * 24 * 60 * 60 * 1000
LEAVES_AT_ONCE_MAX = 20
# Servers at which stored friend requests are delivered at a time. One that does not answer holds a place for a minute.
FRIEND_LANES_MAX = 50
# Stripped state from an inviter or a room. Real ones have a dozen events.
STRIPPED_EVENTS_MAX = 50
STRIPPED_BYTES_MAX = 64 * 1024
# Pending invites from one server's users, so that one server alone cannot keep others from inviting.
INVITES_PENDING_PER_SERVER_MAX = 50

# Identity servers and third-party invites

# An identity server is chosen by a user, who waits for a look-up and an invite: three requests.
IDENTITY_TIMEOUT_S = 10.0
# A token, a few keys and a name. A look-up of one address has one user.
IDENTITY_ANSWER_BYTES_MAX = 64 * 1024
# What of it becomes part of an event: two keys of 43 characters, each with a URL, and a name. All must fit into one.
IDENTITY_KEYS_MAX = 10
IDENTITY_KEY_CHARACTERS_MAX = 255
IDENTITY_URL_CHARACTERS_MAX = 1000
IDENTITY_NAME_CHARACTERS_MAX = 1000
# Invites in one notification of an identity server. Each may be a request to another server.
BINDING_INVITES_MAX = 50
BINDING_INVITES_AT_ONCE = 5
# How long the identity server waits for them. It is told to come back if they take longer.
BINDING_SECONDS_MAX = 60.0
# Keys of one invite whose validity is asked for. A real one is signed with one or two.
INVITE_KEYS_ASKED_MAX = 3

# Policy servers

# How long a person who sends an event waits for its check, and a peer's event for a missing one.
POLICY_TIMEOUT_S = 10.0
# Requests for the events of one transaction at a time. A policy server answers each of its own accord.
POLICY_REQUESTS_AT_ONCE = 5

# Sending

# Events waiting in memory for one destination. Beyond it, the destination's events are read from the database.
OUTBOX_MAX = 500
# How often the delivered position is stored. After a crash, events since then are sent twice.
SENT_INTERVAL_S = 1.0
# The size of a transaction with more than one item: 50 PDUs of 64 KiB with a few EDUs, far below receivers' limits.
TRANSACTION_BYTES = 4 << 20
# A destination that has answered with an error of its own for this long may be stuck at the first item, so it gets the
# next one. Faults of the destination itself are usually fixed sooner.
POISON_SECONDS = 30 * 60.0
# A transaction of 50 PDUs may need missing events to be fetched, on a slow machine.
TRANSACTION_TIMEOUT_S = 60.0
# Destinations that catch up in parallel, each with one read and one transaction at a time.
CATCH_UPS_AT_ONCE_MAX = 50
# Our events in one room that a destination has missed. If there are more, it gets the newest and requests the rest.
# More than OUTBOX_MAX, so that a slightly slow destination does not miss any.
CATCH_UP_ROOM_EVENTS_MAX = 1000
# Durable EDUs that one step of catching up reads, at 64 KiB each: as much memory as a transaction of events.
CATCH_UP_DURABLE_EDUS = 50
# Positions examined in one step of catching up.
CATCH_UP_SPAN = 100_000
# The pause after an unexpected failure of the whole sender, whose cause may be temporary.
SENDER_PAUSE_S = 30.0
# A destination that shows a sign of life is tried at once, but not more often than this.
EARLY_RETRY_MS = 5_000
