"""Every limit of the server, each with its reason. Grouped by topic.

`limits.http` holds those of HTTP, `limits.users` those of what is kept of a user, `limits.peers` those of what other
servers may cost us. A limit that only one file uses is in that file. Units are in the names. A limit that an operator
should decide is a key of `homeserver.config` instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from homeserver.limits import http, peers, users

__all__ = ["http", "peers", "users"]

# Database

# Writes that are committed together: more would make the first wait for long without saving anything further.
DATABASE_BATCH_MAX = 256
# How often a node looks whether it may take over from another, or whether another may have taken over from it.
DATABASE_HOLD_SECONDS = 2.0
# How often a server on SQLite looks whether a command of its administrator has written: they act at once, to people.
DATABASE_BELL_SECONDS = 0.25
# About 100 bytes each in two dictionaries: 20 MB at most, and all that a busy server touches in a day.
INTERNED_STRINGS_CACHED_MAX = 100_000
# Longer than every identifier of the specification (255 bytes), short enough for a PostgreSQL index entry (2704 bytes).
INTERNED_STRING_MAX_BYTES = 2048

# Stream

# Keys whose last position is remembered for waiters that come late; one that comes too late is woken once for nothing.
STREAM_KEYS_REMEMBERED_MAX = 10_000
# Positions that a tail is told of at once: bounds what it has to hold in memory, and what it repeats after a crash.
TAIL_SPAN_MAX = 1000
# A tail stores its position at most this late: a write for every change and tail would cost more than the change.
TAIL_STORE_SECONDS = 1.0

# Blobs

# Read and written at once: large enough that the thread hop is cheap, small enough for many downloads at a time.
BLOB_CHUNK_BYTES = 256 * 1024
# Object stores allow 1024 bytes with the prefix of the URL.
BLOB_KEY_CHARACTERS_MAX = 512
# A request to an object store is tried again so often, for so long: a client waits for the answer.
BLOB_RETRIES_MAX = 3
BLOB_RETRY_SECONDS_MAX = 8
# One request to an object store, with at most 5 MiB of content.
BLOB_REQUEST_SECONDS_MAX = 8
# Reads and writes at once: they wait for the disk or the network, each on a thread.
BLOB_THREADS_MAX = 16

# Workers

# More threads than cores only take each other's caches: argon2 needs 19 MiB each.
WORKER_THREADS_MAX = max(2, min(8, os.cpu_count() or 2))
# The separate process: an image of 64 million pixels is 256 MB, and is held twice while it is scaled.
WORKER_MEMORY_BYTES_MAX = 1 << 30
# The largest thumbnail of the largest image takes some seconds on a slow core; more is an attack.
WORKER_SECONDS_MAX = 20.0
# It ends itself, and gives back its 30 MB, when nothing was asked of it for this long.
WORKER_IDLE_SECONDS = 60.0
# The largest upload as an answer: a re-encoded image.
WORKER_ANSWER_BYTES_MAX = 64 << 20

# Access tokens

# A token that was looked up costs about 500 bytes: 10 MB, and no read for as many devices as are ever active at once.
TOKEN_CACHE_ENTRIES_MAX = 20_000

# How long another node of the same database may still accept a token that this one has deleted.
TOKEN_CACHE_AGE_MS_MAX = 5_000

# Of a token that can be refreshed: short enough that a leaked one is soon worthless, long enough to refresh seldom.
ACCESS_TOKEN_LIFETIME_MS = 60 * 60 * 1000

# Longer is no token of ours or of an application service: it is not hashed at all.
ACCESS_TOKEN_CHARACTERS_MAX = 2_048

# Time

# By how much the clocks of nodes of one database may differ, and a clock be put right, without anything being expired.
CLOCK_SKEW_MS = 60 * 1000

# Background

# After work in the background has failed: what it needs, the database or a store, may be in reach again by then.
BACKGROUND_PAUSE_S = 30.0

# How often an item is tried that fails by itself, and the pause after the first time; others wait behind it so long.
LANE_TRIES = 3
LANE_PAUSE_S = 1.0
# Parked items that are remembered of each lane: there should be none, and whoever mends the cause needs a few.
PARKED_ITEMS_MAX = 1_000
PARKED_REASON_CHARACTERS_MAX = 500

# Rate limits


class Bucket(NamedTuple):
    """A token bucket: `burst` requests at once, and `per_second` more as time passes."""

    burst: float
    per_second: float


# Of what several features or the core itself limit. What only one feature limits it declares, see `Feature.limits`.
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

# Of a name that someone tries to log in with, in the log: ids have 255 bytes.
LOGGED_NAME_CHARACTERS_MAX = 255

# Hashing reads every byte; no person and no password manager needs more.
PASSWORD_BYTES_MAX = 512

# What `initial_device_display_name` and PUT /devices may hold; it is shown to everyone who shares a room.
DEVICE_NAME_CHARACTERS_MAX = 255

# In URLs and in every key of the device; generated ones have ten characters.
DEVICE_ID_BYTES_MAX = 255

# Every other server stores and fetches the keys of each; bots that log in anew at each start reach this after years.
DEVICES_PER_USER_MAX = 1_000

# When a device was last seen is written this often, all devices at once: it may be "a few minutes out of date".
DEVICE_SEEN_INTERVAL_S = 60

# User-interactive authentication: long enough to find the e-mail with the link and click it.
USER_INTERACTIVE_LIFETIME_MS = 24 * 60 * 60 * 1000

# Anyone may begin one, at 300 bytes each: the oldest go first.
USER_INTERACTIVE_SESSIONS_MAX = 10_000

# Spec: client-server-api/#token-authenticated-registration
REGISTRATION_TOKEN_CHARACTERS_MAX = 64

# Between asking for the nonce of a shared-secret registration and using it: a script does both at once.
SHARED_SECRET_NONCE_MS = 60 * 1000

# Flights

# Of one kind, e.g. fetches or thumbnails, that someone waits for. Beyond it the answer is 503: what waits holds memory.
FLIGHTS_AT_ONCE_MAX = 1_000

# Media

# Held in memory for each upload, fetch or answer before it goes on, to a temporary file or a client.
MEDIA_CHUNK_BYTES = 256 * 1024

# Stored in a row and sent in a header with every download; real ones have at most a few dozen.
MEDIA_CONTENT_TYPE_CHARACTERS_MAX = 255
# The longest name that file systems take is 255 bytes; percent-encoded it still fits into a header line.
MEDIA_FILENAME_BYTES_MAX = 1_024
# In a path and in the index of a table; those of all known servers have less than 70 characters.
MEDIA_ID_CHARACTERS_MAX = 255

# Spec: POST /_matrix/media/v1/create, "recommended default expiration is 24 hours"
MEDIA_PENDING_LIFETIME_MS = 24 * 60 * 60 * 1000
# A client creates one for each file that it is just sending.
MEDIA_PENDING_PER_USER_MAX = 50
# The longest `timeout_ms`: a waiting request holds a connection, and proxies give up after a minute.
MEDIA_WAIT_MS_MAX = 60_000

# How exactly it is known when a file of another server was used last: at most one write a day for each.
MEDIA_USED_INTERVAL_MS = 24 * 60 * 60 * 1000
# Fetched from other servers at once: each may write to the disk as fast as the network is.
MEDIA_FETCHES_AT_ONCE_MAX = 32
# Without a sign of life from the other server for so long, beyond what the client is ready to wait, a fetch has failed.
MEDIA_FETCH_TIMEOUT_S = 30.0
# The headers of a part: a type, a file name, a URL. Real ones have a few hundred bytes.
MEDIA_MULTIPART_HEADERS_BYTES_MAX = 16 * 1024
# The JSON part is "currently always an empty object".
MEDIA_MULTIPART_METADATA_BYTES_MAX = 64 * 1024

# The file is in memory here and in the separate process while a thumbnail of it is made; so many at once.
THUMBNAIL_SOURCE_BYTES_MAX = 50 << 20
THUMBNAILS_AT_ONCE_MAX = 4
# Decoded pixels have four bytes, and there are two copies at a time: 320 MB. The largest screenshots have 35 million.
THUMBNAIL_PIXELS_MAX = 40_000_000
# Of a JPEG, which is scaled down while it is decoded: the cameras of telephones make 200 million.
THUMBNAIL_JPEG_PIXELS_MAX = 210_000_000
# The sides of an image: beyond what WebP and JPEG can have at all.
THUMBNAIL_SIDE_MAX = 65_535
# What an animation may cost to decode, in frames and in pixels of all frames; of others the first frame is shown.
THUMBNAIL_FRAMES_MAX = 300
THUMBNAIL_ANIMATION_PIXELS_MAX = 150_000_000
# All frames of the result are in memory until it is encoded: 100 MB.
THUMBNAIL_ANIMATION_RESULT_PIXELS_MAX = 25_000_000
# Twice the slowest case within the limits above.
THUMBNAIL_TIMEOUT_S = 20.0
# Sizes with an aspect ratio of their own are made as asked for: so many of one file, then the nearest size serves.
THUMBNAILS_PER_MEDIA_MAX = 24
# Smaller ones are kept in their row: one read for each of the dozens of a timeline, and no request to an object store.
THUMBNAIL_INLINE_BYTES_MAX = 16 * 1024
# What could not be made is tried again after this: the server may have learned it meanwhile.
THUMBNAIL_FAILURE_MS = 24 * 60 * 60 * 1000

# Rows that one write of the clean-up changes, so that others wait for the writer no longer than a few milliseconds.
MEDIA_CLEANUP_ROWS = 100
# How often expired URIs, unused remote files and blobs without a row are looked for.
MEDIA_CLEANUP_INTERVAL_S = 60 * 60
# A blob younger than this may belong to an upload that is still under way.
MEDIA_ORPHAN_AGE_MS = 24 * 60 * 60 * 1000

# An event has 65,536 bytes at most; what older room versions or a redaction write differently may add a little.
EVENT_CONTENT_BYTES_MAX = 128 * 1024

# State events are dated ahead of the clock so that they rise, also after it was put back; not after one gone wrong.
STATE_AHEAD_MS_MAX = 10 * 60 * 1000

# Of one POST /createRoom: everything happens in one transaction, in which all other writers wait.
CREATE_ROOM_INVITES_MAX = 100
CREATE_ROOM_STATE_MAX = 100
# How long its answer waits for the invitations to users of other servers, which go on after that.
CREATE_ROOM_INVITES_SECONDS = 10.0
# Clients send some 20 to 40 bytes; it is part of an index.
TXN_ID_BYTES_MAX = 255
# Servers that are asked, one after the other, before a join is given up.
VIA_SERVERS_MAX = 20
# Events of one page of history: what a client shows on a screen, some times over.
MESSAGES_LIMIT_MAX = 1000
# Without a timeout given; the spec's clients renew it every few seconds, and nobody types for longer without a pause.
TYPING_TIMEOUT_MS_DEFAULT = 30_000
TYPING_TIMEOUT_MS_MAX = 120_000
# The largest integer of canonical JSON: what comes from others as a time is passed on.
TIMESTAMP_MS_MAX = 2**53 - 1
# A joining server tries some of them and needs one.
ALIAS_SERVERS_MAX = 50
# Rooms of one page of the directory.
PUBLIC_ROOMS_LIMIT_MAX = 500
# Of a page of another server's directory: it has a kilobyte for each room.
PUBLIC_ROOMS_BYTES_MAX = 2 << 20
# What the directory shows of a room costs a dozen look-ups, and all rooms are sorted for each page: 10 MB.
DIRECTORY_ENTRIES_CACHED_MAX = 10_000

# Federation: keys

# A few hundred bytes each.
KEYS_CACHED_SERVERS_MAX = 20_000
# Servers whose back-off is remembered, about 200 bytes each.
BACK_OFFS_MAX = 50_000
# Statements of one server that are kept: one for each time that it has changed its keys.
KEY_STATEMENTS_PER_SERVER_MAX = 10
# Hundreds of old keys at most.
KEY_RESPONSE_BYTES_MAX = 256 * 1024
# A notary's answer about a hundred servers.
NOTARY_RESPONSE_BYTES_MAX = 16 << 20
KEY_FETCH_TIMEOUT_S = 10.0
# A server whose keys lacked the wanted one is not asked again before this.
KEY_RETRY_MS = 10_000
# What claims to be signed later than this from now is not worth asking for a key that is valid then.
KEY_FUTURE_MS = 60 * 60 * 1000
# Servers whose keys are fetched at once: those of a large room are, when it is joined, and many are long gone.
KEY_FETCHES_AT_ONCE_MAX = 50
# Servers in one question to a notary, and in one question to us.
NOTARY_SERVERS_MAX = 100
# Spec: "Originating servers should avoid returning responses that expire in less than an hour".
OWN_KEYS_VALID_MS = 24 * 60 * 60 * 1000

# Federation: requests

# An answer that has not come in this time is not worth a person's waiting.
FEDERATION_TIMEOUT_S = 20.0
# What peers answer to a question, unless it is one for many events or rooms: the servers of a large room at most.
FEDERATION_RESPONSE_BYTES_MAX = 1 << 20
# A destination that does not answer is left alone for so long; it doubles with each failure.
RETRY_MS = 2_000
RETRY_MS_MAX = 60 * 60 * 1000
# 50 PDUs of 64 KiB, and 100 EDUs that may be as large. While its signature is checked it is in memory three times.
TRANSACTION_BODY_BYTES_MAX = 10 << 20
# The worst that the users of an honest server can put into 50 PDUs: 44,000 values each. See `bodies.count_nodes`.
TRANSACTION_JSON_NODES_MAX = 2_500_000
# One PDU, a little larger than canonical.
PDU_BODY_BYTES_MAX = 128 * 1024
# One PDU, and a dozen of the room's state.
INVITE_BODY_BYTES_MAX = 2 << 20
# Some thousands of event IDs, or key IDs of a hundred servers.
QUESTION_BODY_BYTES_MAX = 1 << 20
# Transactions of one origin that wait for their turn: it should send one after another, and is told to slow down.
TRANSACTIONS_WAITING_MAX = 5

# Federation: events

# A write that takes in events of peers: others wait for the writer no longer than some 20 ms.
EVENTS_PER_WRITE = 20
# Outliers cost half of that: no state is computed.
OUTLIERS_PER_WRITE = 40
# Events that lie between what we know and an event that came: asked for at once. What lies deeper is left to backfill.
GAP_EVENTS_MAX = 50
# States that are fetched to close them: each may be 100,000 event ids. An honest gap has one or two ends.
GAP_STATES_MAX = 4
# How long the gaps of one room are worked on at a stretch.
GAP_SECONDS_MAX = 60
# Servers that are asked for what is missing, one after another, and from how many of the room they are chosen.
SERVERS_ASKED_MAX = 3
SERVERS_CONSIDERED_MAX = 50

# Events of a state that are fetched one by one; where more are missing the whole state is fetched.
STATE_EVENTS_SINGLY_MAX = 30
# Requests for single events that are under way to one server.
EVENT_FETCHES_AT_ONCE = 8
# /state_ids of such a room; /state and /send_join, whose events have some 1 KB each.
STATE_IDS_BYTES_MAX = 64 << 20
STATE_BYTES_MAX = 512 << 20
# The largest rooms take minutes to send and check.
STATE_TIMEOUT_S = 120.0
JOIN_TIMEOUT_S = 180.0
# Parts of one EDU, such as receipts, each of which takes a few look-ups in a write. Synapse sends up to 50; the rest of
# an EDU with more than this is not worth a longer write.
EDU_PARTS_MAX = 500
# Answers to transactions that are kept for each origin, which sends one after another.
TRANSACTIONS_KEPT = 10
# Spec: server-server-api/#get_matrixfederationv1backfillroomid sets no limit; a client's page has at most 100 events.
BACKFILL_EVENTS_MAX = 100
BACKFILL_BYTES_MAX = 16 << 20
# Spec: POST /get_missing_events defaults to 10.
MISSING_EVENTS_MAX = 50
# What comes for a room that is being entered waits, in memory: from so many transactions, 3 MiB at most each.
JOIN_WAITING_MAX = 50
# Servers that a join is tried through before the user is told that it does not work.
JOIN_SERVERS_MAX = 10
# A resident that has not answered after this is not waited for alone: the next is asked as well.
JOIN_NEXT_SERVER_SECONDS = 3.0
# Attempts to join that are undone together if all of them fail: a user who tries more often has joined by one of these.
JOINS_UNDONE_MAX = 20
# A refused join of an invited user is tried again after these pauses: we have told the user of the invitation before
# the inviting server, which waits for our signature, could place it in the room.
INVITED_JOIN_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
# How long others wait for an invitation of ours that is out to be signed: a little less than they wait for us.
INVITE_PLACING_SECONDS_MAX = 10.0
# A user who rejects an invitation waits no longer than this for the other servers, which are told later then.
LEAVE_SECONDS = 10.0
# How often at least that is tried; each costs two requests.
LEAVE_RETRY_MS_MAX = 10 * 60 * 1000
# And for how long: a server that was away for longer has other things to catch up with.
LEAVE_KEPT_MS = 90 * 24 * 60 * 60 * 1000
LEAVES_AT_ONCE_MAX = 20
# Of what an inviter or a room tells about itself to someone outside: real ones have a dozen.
STRIPPED_EVENTS_MAX = 50
STRIPPED_BYTES_MAX = 64 * 1024
# Invites and knocks of one user that are pending: all of them are in each first sync. Nobody answers hundreds.
PENDING_MAX = 500
PENDING_BYTES_MAX = 8 << 20
# Invites of them from the users of one server, so that a server alone cannot keep others from inviting.
INVITES_PENDING_PER_SERVER_MAX = 50

# Federation: sending

# What waits in memory for one destination; beyond it the destination reads what it lacks from the database.
OUTBOX_MAX = 500
# How often it is stored how far everything has been delivered: what lies between is sent twice after a crash.
SENT_INTERVAL_S = 1.0
# Of one transaction, if it has more than one item: 50 PDUs of 64 KiB with some EDUs, far below what receivers take.
TRANSACTION_BYTES = 4 << 20
# A destination that has answered transactions with an error of its own for so long may be stuck at the first item, and
# is given the next. A fault of its own is usually mended sooner.
POISON_SECONDS = 30 * 60.0
# A transaction of 50 PDUs may need missing events fetched, on a slow machine.
TRANSACTION_TIMEOUT_S = 60.0
# Destinations that catch up at once, each with a read and a transaction at a time.
CATCH_UPS_AT_ONCE_MAX = 50
# Our events of one room that a destination has missed: if there are more it gets the newest, and asks for the rest.
# More than OUTBOX_MAX, or whoever is a little slow would lack some.
CATCH_UP_ROOM_EVENTS_MAX = 1000
# Positions that one step of catching up looks at.
CATCH_UP_SPAN = 100_000
# After an unexpected failure of the sender as a whole, which may have a cause that passes.
SENDER_PAUSE_S = 30.0
# A destination that shows itself is tried at once, but not more often than this.
EARLY_RETRY_MS = 5_000
