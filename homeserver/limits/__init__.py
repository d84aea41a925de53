"""Every limit of the server, each with its reason. Grouped by topic.

`limits.http` has the limits of HTTP, `limits.users` those of data stored for a user, `limits.peers` the limits on what
other servers may cost us. A limit that only one file uses is in that file. Units are in the names. A limit that an
operator should decide is a key of `homeserver.config` instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from homeserver.limits import http, peers, users

__all__ = ["http", "peers", "users"]

# Database

# Writes that are committed together. With more, the first would wait for long without any further saving.
DATABASE_BATCH_MAX = 256
# How often a node checks whether it may take over from another, or whether another may have taken over from it.
DATABASE_HOLD_SECONDS = 2.0
# How often a server on SQLite checks whether an administration command has written. People expect an instant effect.
DATABASE_BELL_SECONDS = 0.25
# About 100 bytes each in two dictionaries: 20 MB at most, and as many as a busy server uses in a day.
INTERNED_STRINGS_CACHED_MAX = 100_000
# Longer than every identifier of the spec (255 bytes), short enough for a PostgreSQL index entry (2704 bytes).
INTERNED_STRING_MAX_BYTES = 2048

# Stream

# Keys whose last position is remembered for late waiters. A waiter that comes too late is woken once without news.
STREAM_KEYS_REMEMBERED_MAX = 10_000
# Positions that a tail gets at once. Limits how much it holds in memory, and how much it repeats after a crash.
TAIL_SPAN_MAX = 1000
# How late a tail may store its position. A write for every change and every tail would cost more than the change.
TAIL_STORE_SECONDS = 1.0

# Blobs

# Read and written at once: large enough that the thread hop is cheap, small enough for many parallel downloads.
BLOB_CHUNK_BYTES = 256 * 1024
# Object stores allow 1024 bytes with the prefix of the URL.
BLOB_KEY_CHARACTERS_MAX = 512
# How often, and for how long, a request to an object store is retried. A client is waiting for it.
BLOB_RETRIES_MAX = 3
BLOB_RETRY_SECONDS_MAX = 8
# One request to an object store, with at most 5 MiB of content.
BLOB_REQUEST_SECONDS_MAX = 8
# Parallel reads and writes. Each waits for the disk or the network on a thread.
BLOB_THREADS_MAX = 16

# Workers

# With more threads than cores they only evict each other's caches. argon2 needs 19 MiB each.
WORKER_THREADS_MAX = max(2, min(8, os.cpu_count() or 2))
# Memory of the separate process. An image of 64 million pixels takes 256 MB, twice while it is scaled.
WORKER_MEMORY_BYTES_MAX = 1 << 30
# The largest thumbnail of the largest image takes some seconds on a slow core; more is an attack.
WORKER_SECONDS_MAX = 20.0
# The separate process exits, and frees its 30 MB, after being idle for this long.
WORKER_IDLE_SECONDS = 60.0
# The largest result is as large as the largest upload: a re-encoded image.
WORKER_ANSWER_BYTES_MAX = 64 << 20

# Access tokens

# A cached token takes about 500 bytes: 10 MB, enough for as many devices as are ever active at once.
TOKEN_CACHE_ENTRIES_MAX = 20_000

# How long another node of the same database may still accept a token that this one has deleted.
TOKEN_CACHE_AGE_MS_MAX = 5_000

# For tokens that can be refreshed: short enough that a leaked one soon expires, long enough to refresh rarely.
ACCESS_TOKEN_LIFETIME_MS = 60 * 60 * 1000

# Neither we nor application services have longer tokens. A longer one is not even hashed.
ACCESS_TOKEN_CHARACTERS_MAX = 2_048

# Time

# How far the clocks of nodes on one database may differ, or a clock may be corrected, without anything expiring.
CLOCK_SKEW_MS = 60 * 1000

# Background

# The pause after background work has failed. The database or the store may be reachable again by then.
BACKGROUND_PAUSE_S = 30.0

# How often an item that fails on its own is tried, and the first pause. Other items wait behind it meanwhile.
LANE_TRIES = 3
LANE_PAUSE_S = 1.0
# Parked items kept for each lane. There should be none; to fix the cause a few are enough.
PARKED_ITEMS_MAX = 1_000
PARKED_REASON_CHARACTERS_MAX = 500

# Rate limits


class Bucket(NamedTuple):
    """A token bucket: `burst` requests at once, and `per_second` more as time passes."""

    burst: float
    per_second: float


# The classes used by the core or by several features. A class of only one feature is declared by it: `Feature.limits`.
RATE_LIMITS: Mapping[str, Bucket] = {
    "default": Bucket(200, 50),  # a client that opens asks for a page of everything at once
    "message": Bucket(100, 10),  # people paste; bridges have application services, which are not limited
    "join": Bucket(20, 0.5),  # each may cost other servers a state resolution
    "invite": Bucket(20, 0.3),  # spam is sent this way
    "login": Bucket(10, 0.2),  # each costs an argon2 hash or two, and guessing passwords must be hopeless
    "login_account": Bucket(10, 0.05),  # wrong passwords of one account from one address
    "login_anywhere": Bucket(50, 0.2),  # … from everywhere: guessing from many addresses
    "federation": Bucket(1000, 200),  # per origin: a busy server sends one transaction after another
    "json": Bucket(300_000, 20_000),  # values in large bodies of a user: 1000 cost 0.3 ms
    "federation_json": Bucket(5_000_000, 100_000),  # per origin: two of the worst transactions
}

# A bucket is about 200 bytes: 10 MB. The least recently used are forgotten first: they are mostly full again.
RATE_LIMIT_KEYS_MAX = 50_000

# Accounts

# The logged part of a name that someone tries to log in with. IDs have at most 255 bytes.
LOGGED_NAME_CHARACTERS_MAX = 255

# Hashing reads every byte. No person and no password manager needs more.
PASSWORD_BYTES_MAX = 512

# The limit for `initial_device_display_name` and PUT /devices. Everyone who shares a room sees the name.
DEVICE_NAME_CHARACTERS_MAX = 255

# Device IDs are in URLs and in every key of the device. Generated ones have ten characters.
DEVICE_ID_BYTES_MAX = 255

# Every other server stores and fetches the keys of each. Bots that log in at each start reach this after years.
DEVICES_PER_USER_MAX = 1_000

# How often last-seen times are written, for all devices at once. The spec allows "a few minutes out of date".
DEVICE_SEEN_INTERVAL_S = 60

# User-interactive authentication: long enough to find the e-mail with the link and click it.
USER_INTERACTIVE_LIFETIME_MS = 24 * 60 * 60 * 1000

# Anyone may start a session, at 300 bytes each. The oldest are dropped first.
USER_INTERACTIVE_SESSIONS_MAX = 10_000

# Spec: client-server-api/#token-authenticated-registration
REGISTRATION_TOKEN_CHARACTERS_MAX = 64

# The time between fetching the nonce of a shared-secret registration and using it. A script does both at once.
SHARED_SECRET_NONCE_MS = 60 * 1000

# Flights

# Waiting requests per kind of work, e.g. fetches or thumbnails. Beyond it the answer is 503: waiters hold memory.
FLIGHTS_AT_ONCE_MAX = 1_000

# Media

# Held in memory for each upload, fetch or answer before it is passed on to a temporary file or a client.
MEDIA_CHUNK_BYTES = 256 * 1024

# Stored in a row and sent in a header with every download; real ones have at most a few dozen.
MEDIA_CONTENT_TYPE_CHARACTERS_MAX = 255
# The longest name that file systems take is 255 bytes; percent-encoded it still fits into a header line.
MEDIA_FILENAME_BYTES_MAX = 1_024
# Media IDs are in a path and in a table's index. Those of all known servers have fewer than 70 characters.
MEDIA_ID_CHARACTERS_MAX = 255

# Spec: POST /_matrix/media/v1/create, "recommended default expiration is 24 hours"
MEDIA_PENDING_LIFETIME_MS = 24 * 60 * 60 * 1000
# A client creates one for each file that it is about to send.
MEDIA_PENDING_PER_USER_MAX = 50
# The longest `timeout_ms`: a waiting request holds a connection, and proxies give up after a minute.
MEDIA_WAIT_MS_MAX = 60_000

# How precisely the last use of another server's file is known: at most one write a day for each.
MEDIA_USED_INTERVAL_MS = 24 * 60 * 60 * 1000
# Parallel fetches from other servers. Each may write to the disk as fast as the network is.
MEDIA_FETCHES_AT_ONCE_MAX = 32
# A fetch has failed if the other server is silent for this long, beyond the time that the client is ready to wait.
MEDIA_FETCH_TIMEOUT_S = 30.0
# The headers of a part: a type, a file name, a URL. Real ones have a few hundred bytes.
MEDIA_MULTIPART_HEADERS_BYTES_MAX = 16 * 1024
# The JSON part is "currently always an empty object".
MEDIA_MULTIPART_METADATA_BYTES_MAX = 64 * 1024

# While a thumbnail is made, its file is in memory here and in the separate process. This many are made in parallel.
THUMBNAIL_SOURCE_BYTES_MAX = 50 << 20
THUMBNAILS_AT_ONCE_MAX = 4
# Decoded pixels have four bytes, and there are two copies at a time: 320 MB. The largest screenshots have 35 million.
THUMBNAIL_PIXELS_MAX = 40_000_000
# For JPEGs, which are scaled down while they are decoded. Phone cameras take pictures of 200 million pixels.
THUMBNAIL_JPEG_PIXELS_MAX = 210_000_000
# The longest side of an image. WebP and JPEG cannot have more.
THUMBNAIL_SIDE_MAX = 65_535
# What decoding an animation may cost, in frames and in pixels of all frames. Larger ones show their first frame.
THUMBNAIL_FRAMES_MAX = 300
THUMBNAIL_ANIMATION_PIXELS_MAX = 150_000_000
# All frames of the result are in memory until it is encoded: 100 MB.
THUMBNAIL_ANIMATION_RESULT_PIXELS_MAX = 25_000_000
# Twice the slowest case within the limits above.
THUMBNAIL_TIMEOUT_S = 20.0
# Sizes with an unusual aspect ratio are made as requested, up to this many per file, then the nearest is used.
THUMBNAILS_PER_MEDIA_MAX = 24
# Smaller thumbnails are stored in their row: one read for each, and no request to an object store.
THUMBNAIL_INLINE_BYTES_MAX = 16 * 1024
# When a failed thumbnail is tried again. The server may support the format by then.
THUMBNAIL_FAILURE_MS = 24 * 60 * 60 * 1000

# Rows changed by one write of the clean-up, so that other writes wait for at most a few milliseconds.
MEDIA_CLEANUP_ROWS = 100
# How often we search for expired URIs, unused remote files and blobs without a row.
MEDIA_CLEANUP_INTERVAL_S = 60 * 60
# A blob younger than this may belong to an upload that is still under way.
MEDIA_ORPHAN_AGE_MS = 24 * 60 * 60 * 1000

# An event has at most 65,536 bytes. Different encodings in old room versions or redactions may add a little.
EVENT_CONTENT_BYTES_MAX = 128 * 1024

# How far state events may be dated ahead to keep their timestamps rising, e.g. after the clock was set back a little.
STATE_AHEAD_MS_MAX = 10 * 60 * 1000

# Limits for one POST /createRoom. Everything happens in one transaction, and all other writers wait for it.
CREATE_ROOM_INVITES_MAX = 100
CREATE_ROOM_STATE_MAX = 100
# How long the answer waits for invitations to users of other servers, which continue after that.
CREATE_ROOM_INVITES_SECONDS = 10.0
# Clients send about 20 to 40 bytes. It is part of an index.
TXN_ID_BYTES_MAX = 255
# Servers tried one after another before a join is given up.
VIA_SERVERS_MAX = 20
# Events in one page of history: several screens of a client.
MESSAGES_LIMIT_MAX = 1000
# The default timeout. Clients renew it every few seconds, and nobody types longer without a pause.
TYPING_TIMEOUT_MS_DEFAULT = 30_000
TYPING_TIMEOUT_MS_MAX = 120_000
# The largest integer of canonical JSON, because timestamps from others are passed on.
TIMESTAMP_MS_MAX = 2**53 - 1
# A joining server tries some of these and needs one.
ALIAS_SERVERS_MAX = 50
# Rooms in one page of the directory.
PUBLIC_ROOMS_LIMIT_MAX = 500
# The size of a page of another server's directory. It has about a kilobyte for each room.
PUBLIC_ROOMS_BYTES_MAX = 2 << 20
# A room's directory entry costs a dozen lookups, and all rooms are sorted for each page: 10 MB.
DIRECTORY_ENTRIES_CACHED_MAX = 10_000

# Federation: keys

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

# Federation: requests

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

# Federation: events

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
# Stripped state from an inviter or a room. Real ones have a dozen events.
STRIPPED_EVENTS_MAX = 50
STRIPPED_BYTES_MAX = 64 * 1024
# Pending invites and knocks of one user. All of them are in each first sync, and nobody answers hundreds.
PENDING_MAX = 500
PENDING_BYTES_MAX = 8 << 20
# Pending invites from one server's users, so that one server alone cannot keep others from inviting.
INVITES_PENDING_PER_SERVER_MAX = 50

# Federation: sending

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
