"""Every limit of the server, each with its reason. Grouped by topic.

`limits.http` has the limits of HTTP, `limits.users` those of data stored for a user, `limits.encryption` those of keys,
`limits.peers` those of federation, `limits.search` those of search, `limits.websocket` those of sockets. A limit that
only one file uses is in that file. Units are in the names. A limit that an operator should decide is a key of
`homeserver.config` instead.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import NamedTuple

from homeserver.limits import encryption, http, peers, search, users, websocket

__all__ = ["encryption", "http", "peers", "search", "users", "websocket"]

# Database

# Writes that are committed together. With more, the first would wait for long without any further saving.
DATABASE_BATCH_MAX = 256
# What one write may need from elsewhere, one thing after the other: its author waits for all of it.
DATABASE_NEEDS_MAX = 100
# Positions that are drawn for each write that runs beside others. A message takes one, and one for a presence. Those
# that are not used are lost; a write that takes more runs again, alone.
DATABASE_POSITIONS_PER_WRITE = 4
# After how long a write looks whether it waits for another node that stands still.
DATABASE_STUCK_SECONDS = 1.5
# How often a node tries to take over what another one leads.
DATABASE_HOLD_SECONDS = 1.0
# How long a node that stands still goes on leading, and how often one that does not renews what it leads.
DATABASE_LEASE_SECONDS = 6.0
DATABASE_LEASE_RENEWAL_SECONDS = 2.0
# How often a server on SQLite checks whether an administration command has written. People expect an instant effect.
DATABASE_BELL_SECONDS = 0.25
# About 100 bytes each in two dictionaries: 20 MB at most, and as many as a busy server uses in a day.
INTERNED_STRINGS_CACHED_MAX = 100_000
# Longer than every identifier of the spec (255 bytes), short enough for a PostgreSQL index entry (2704 bytes).
INTERNED_STRING_MAX_BYTES = 2048

# Stream

# Keys whose last position is remembered for late waiters. A waiter that comes too late is woken once without news.
STREAM_KEYS_REMEMBERED_MAX = 10_000
# How often a node asks the database how far all nodes have come, and how long it then waits for the announcements of
# what it does not know yet. Together with the reads, a lost announcement costs less than a second.
STREAM_CONFIRM_SECONDS = 0.5
STREAM_ANNOUNCED_SECONDS_MAX = 0.25
# How old such an answer may be. A log-out has to take effect on all nodes within two seconds.
STREAM_CONFIRMED_SECONDS_MAX = 1.5
# Positions that a tail gets at once. Limits how much it holds in memory, and how much it repeats after a crash.
TAIL_SPAN_MAX = 1000
# Positions by which a tail that waits for certain keys may be behind. A span of so many is one short read.
TAIL_LAG_MAX = 500
# The longest rest of a tail that works only a part of the time. On a slow disk or a busy machine others need it most.
FOLLOWER_REST_SECONDS_MAX = 0.25
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

# How long a cached token is trusted. A server hears of every token that ends, also by another node of the same database
# or an administration command. This bounds the harm if it does not.
TOKEN_CACHE_AGE_MS_MAX = 600_000

# For tokens that can be refreshed: short enough that a leaked one soon expires, long enough to refresh rarely.
ACCESS_TOKEN_LIFETIME_MS = 60 * 60 * 1000
# The longest lifetime that an administrator may give a token to act for a user, if it has one. It is a support case.
ISSUED_TOKEN_LIFETIME_MS_MAX = 366 * 24 * 60 * 60 * 1000

# Neither we nor application services have longer tokens. A longer one is not even hashed.
ACCESS_TOKEN_CHARACTERS_MAX = 2_048

# Time

# How far the clocks of nodes on one database may differ, or a clock may be corrected, without anything expiring.
CLOCK_SKEW_MS = 60 * 1000

# Background

# The pause after background work has failed. The database or the store may be reachable again by then.
BACKGROUND_PAUSE_S = 30.0

# When a server begins to collect what has expired. It should first answer those who have waited for its start.
HOUSEKEEPING_DELAY_S = 60.0

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
    "oauth_user_code": Bucket(
        10, 0.05
    ),  # codes typed by one user: nobody mistypes one for long, and guessing is hopeless
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

# Account pages: a working day. For dangerous actions people show again who they are, if that was longer ago than
# PAGE_CONFIRMATION_MS.
PAGE_SESSION_LIFETIME_MS = 12 * 60 * 60 * 1000
PAGE_CONFIRMATION_MS = 10 * 60 * 1000
# Browsers of one person on one day.
PAGE_SESSIONS_PER_USER_MAX = 20
# One for each device or password manager of a person.
PASSKEYS_PER_USER_MAX = 50
# How long a person may take to find a security key. Anyone may begin a log-in; the oldest beginnings are dropped first.
PASSKEY_CHALLENGE_LIFETIME_MS = 5 * 60 * 1000
PASSKEY_CHALLENGES_MAX = 10_000
# WebAuthn: "at most 1023 bytes". What a browser sends about a new one has a few KiB.
PASSKEY_ID_BYTES_MAX = 1_023
PASSKEY_ANSWER_CHARACTERS_MAX = 32 * 1024
PASSKEY_NAME_CHARACTERS_MAX = 100
# Forms have a few short texts, and one has a picture: a photo of a phone, as it is.
PAGE_FORM_BYTES_MAX = 64 * 1024
PAGE_PICTURE_BYTES_MAX = 8 << 20
PAGE_FORM_FIELDS_MAX = 20

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
# How long an upload waits for what can be known of its file. The file is stored already; the client would rather send
# its message without.
MEDIA_INFO_SECONDS_MAX = 5.0
# The longest recording that is believed: a month.
MEDIA_DURATION_MS_MAX = 31 * 24 * 60 * 60 * 1000
# Media IDs are in a path and in a table's index. Those of all known servers have fewer than 70 characters.
MEDIA_ID_CHARACTERS_MAX = 255

# Spec: POST /_matrix/media/v1/create, "recommended default expiration is 24 hours"
MEDIA_PENDING_LIFETIME_MS = 24 * 60 * 60 * 1000
# A client creates one for each file that it is about to send.
MEDIA_PENDING_PER_USER_MAX = 50
# How long a resumable upload is kept after its last byte. With the pause between two clean-ups, and a margin for a
# server that is down for an hour, a broken one costs its storage no longer than a day.
RESUMABLE_LIFETIME_MS = 22 * 60 * 60 * 1000
# Someone who sends a folder has a few under way at a time, and some that broke off.
RESUMABLE_PER_USER_MAX = 50
# What is received before it is made durable and acknowledged. A crash makes the client repeat no more than this; each
# costs a sync of the disk and a commit.
RESUMABLE_CHECKPOINT_BYTES = 8 << 20
# A request that has received nothing for this long makes way for another one for the same upload: its client has
# probably come back on another network.
RESUMABLE_PATIENCE_S = 5.0
# A file name, a type, and what a client adds. It is a header of answers, and stored for each upload.
RESUMABLE_METADATA_BYTES_MAX = 4 * 1024
# The longest `timeout_ms`: a waiting request holds a connection, and proxies give up after a minute.
MEDIA_WAIT_MS_MAX = 60_000

# Parts of a file in one answer. Players ask for one or two, readers of PDF files for a few.
MEDIA_RANGES_MAX = 16
# How long the URL of a blob in the object store is valid: for a slow client to begin, too short to pass it on.
MEDIA_REDIRECT_SECONDS = 300

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
# Bans that a room upgrade copies, the latest first: each takes a millisecond, for which other writes wait.
UPGRADE_BANS_MAX = 200
# Clients send about 20 to 40 bytes. It is part of an index.
TXN_ID_BYTES_MAX = 255
# Servers tried one after another before a join is given up.
VIA_SERVERS_MAX = 20
# Events in one page of history: several screens of a client.
MESSAGES_LIMIT_MAX = 1000
# Events in one page of relations or threads: each may come with the events that are bundled with it.
RELATIONS_LIMIT_MAX = 100
# Descendants of an event that a recursive request visits on each level: some milliseconds of work.
RELATED_WALKED_MAX = 10_000
# Descendants whose own children it lists, each by a query.
RELATED_PARENTS_MAX = 1_000
# References that are listed with an event. Votes of a poll are references; clients read all of them as relations.
REFERENCES_BUNDLED_MAX = 100
# How many of the newest edits or replies are read for one that the user may see, when the newest is not.
HIDDEN_CHILDREN_MAX = 100
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

# As user IDs. The IDs of networks come from application services.
NETWORK_ID_BYTES_MAX = 255
# Long enough for a bridge that stores what it is sent before it answers.
APPLICATION_SERVICE_TIMEOUT_S = 60.0
# Somebody waits for what a bridge is asked; it may have to make a room first.
APPLICATION_SERVICE_QUERY_S = 15.0
# Answers to queries: lists of the users and rooms of another network.
APPLICATION_SERVICE_ANSWER_BYTES_MAX = 1 << 20
