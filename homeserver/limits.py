"""Every limit of the server, with its reason. Grouped by topic."""

from __future__ import annotations

# Database

# Writes that are committed together: more would make the first wait for long without saving anything further.
DATABASE_BATCH_MAX = 256
# About 100 bytes each in two dictionaries: 20 MB at most, and all that a busy server touches in a day.
INTERNED_STRINGS_CACHED_MAX = 100_000
# Longer than every identifier of the specification (255 bytes), short enough for a PostgreSQL index entry (2704 bytes).
INTERNED_STRING_MAX_BYTES = 2048

# Stream

# Keys whose last position is remembered for who comes to wait late; who comes later still is woken once for nothing.
STREAM_KEYS_REMEMBERED_MAX = 10_000
# Positions that a tail is told of at once: bounds what it has to hold in memory, and what it repeats after a crash.
TAIL_SPAN_MAX = 1000

# Blobs

# Read and written at once: large enough that the thread hop is cheap, small enough for many downloads at a time.
BLOB_CHUNK_BYTES = 256 * 1024
