"""The limits of connections and requests, each with its reason. Units are in the names."""

from __future__ import annotations

from collections.abc import Mapping

BODY_BYTES_MAX: Mapping[str, int] = {
    "client": 1 << 20,  # an event is 64 KiB at most; uploads of keys for many devices are the largest of the rest
    "federation": 1 << 20,  # some thousands of ids; transactions and invites have limits of their own
    "media": 1 << 20,  # uploads stream and have their own limit, blobs.upload_bytes_max
    "admin": 1 << 20,
    "metrics": 0,
    "health": 0,
}

# Of somebody who has not said who they are: a login has a hundred bytes, a registration with a captcha some kilobytes.
ANONYMOUS_BODY_BYTES_MAX = 64 * 1024

# The values in the JSON of a body, in the measure of `bodies.count_nodes`. 1000 of them take 0.3 ms and 60 KB at the
# worst, so how many there are decides what a body costs; its length does not.
JSON_NODES_MAX: Mapping[str, int] = {
    "client": 100_000,  # the content of an event has 44,000 at most; keys of a thousand devices have 10,000
    "federation": 300_000,  # an invite carries an event and 256 KiB of state
    "media": 1_000,
    "admin": 100_000,
    "metrics": 0,
    "health": 0,
}
# A question to us as a notary has a thousand, a registration a dozen.
ANONYMOUS_JSON_NODES_MAX = 4_000
# Before the signature of a body is checked it is decoded only if it is not canonical, and only up to so many. A longer
# one that is not canonical is refused: 50 PDUs of 64 KiB are shorter.
UNVERIFIED_JSON_NODES_MAX = 100_000
UNVERIFIED_BODY_BYTES_MAX = 4 << 20
# Bodies with more are taken in one at a time.
HEAVY_JSON_NODES = 300_000
# Up to so many are decoded at once, since a thread hop costs as much; more must not hold up everybody else.
INLINE_JSON_NODES_MAX = 4_000
INLINE_BODY_BYTES_MAX = 256 * 1024
# Values in a body that are not charged to anybody: requests have rate limits of their own.
FREE_JSON_NODES = 1_000
# What checking a wrong signature costs in units of the rate limit: one for the request, one for so many bytes.
SIGNATURE_UNIT_BYTES = 64 * 1024
# What the objects of one of them take, a little more than the average.
JSON_NODE_BYTES = 64

# A body that was announced to have at most so much needs no budget: it takes no more than its connection does.
SMALL_BODY_BYTES = 16 * 1024
# Bodies and answers of other servers that are in memory at a time, of all and of one; the largest has 12 MiB. Beside
# them there may be one heavy one.
PEER_BODIES_BYTES_MAX = 48 << 20
PEER_BODIES_BYTES_EACH = 16 << 20
# What only answers may take beside that, by who waits for them: eight of the largest usual ones. The answer of a notary
# may have 16 MiB; few have more than one.
PEER_ANSWERS_BYTES: Mapping[str, int] = {"person": 8 << 20, "background": 8 << 20}
# The same of clients: the largest has 1 MiB.
CLIENT_BODIES_BYTES_MAX = 64 << 20
CLIENT_BODIES_BYTES_EACH = 8 << 20
# Larger answers are counted while they are sent, since a client may take them as slowly as it likes: of all, and of one
# user or server. One answer is always allowed: a first sync may have more.
LARGE_ANSWER_BYTES = 256 * 1024
LARGE_ANSWERS_BYTES_MAX = 192 << 20
LARGE_ANSWERS_BYTES_EACH = 64 << 20
# When somebody who has not taken them may ask again.
LARGE_ANSWERS_RETRY_MS = 5_000
# Long enough for bodies that are under way on a good network, short enough that a sender still listens.
BUDGET_WAIT_SECONDS = 10
# The whole body of a request, but an upload: 1 MiB at 10 KB/s.
BODY_SECONDS_MAX = 120

# Five identifiers of 255 bytes, each byte percent-encoded, with room to spare.
PATH_CHARACTERS_MAX = 8_192

# Browsers send 20, and each proxy adds some. Reading one costs as much as a hundred bytes of a body.
HEADERS_MAX = 200

# Chunks of a chunked body smaller than usual: reading 1000 takes 10 ms, however small they are.
SMALL_CHUNKS_MAX = 1_000
CHUNK_BYTES_USUAL = 512

# Frames of HTTP/2 on one connection, whatever they say; each costs 15 microseconds. Browsers send a dozen at the start,
# about five for each request, and two for each 16 KiB of an answer.
HTTP2_FRAMES_FREE = 1_000
HTTP2_FRAMES_PER_REQUEST = 20
HTTP2_BYTES_PER_FRAME = 1_024
# A frame that is no part of a request and has more counts as several: forty settings.
HTTP2_FRAME_BYTES_USUAL = 240
# Requests that a client takes back, beside as many as it lets be answered: a page that is left at once has a hundred.
HTTP2_RESETS_FREE = 100

# `via` and `server_name` are the only ones that repeat, a few dozen times.
QUERY_PARAMETERS_MAX = 500

# A client whose body stands still for so long has gone; a slow upload may take as long as it moves.
REQUEST_CHUNK_SECONDS_MAX = 60

# What a client still sends after its answer is read and dropped, so that it sees the answer, not a broken connection:
# so much and so long, then the connection is closed.
REFUSED_BODY_BYTES_MAX = 16 << 20
REFUSED_BODY_SECONDS_MAX = 10

# How long a connection that is over waits for its client to close it too: one round trip of a slow network.
LINGER_SECONDS = 3

# A small body that nobody asked for is read before the answer, so that the connection can be used again.
UNREAD_BODY_BYTES = 65_536

# A proxy keeps its connections to the server for about a minute; a shorter time here would race with its next request.
KEEP_ALIVE_SECONDS = 75

# A client that does not take so much of its answer in so long has gone, and would hold up a restart.
SEND_BYTES = 65_536
SEND_SECONDS_MAX = 60

# How often all connections are looked at for the two limits above.
SWEEP_SECONDS = 5

# Certificates are renewed weeks before they end.
CERTIFICATE_CHECK_SECONDS = 60

# A phone on a bad network needs a few seconds for the round trips of a handshake.
TLS_HANDSHAKE_SECONDS_MAX = 20

# The head of a request is one packet or two.
HEAD_SECONDS_MAX = 20

# An idle connection costs about 10 KB, with TLS 60 KB: no more than would take a gigabyte.
CONNECTIONS_MAX = 16_000

# Of one IPv4 address or IPv6 network: mobile providers put hundreds of people behind one.
CONNECTIONS_PER_ADDRESS_MAX = 500

# Open files that no client's connection takes: 512 connections to other servers, databases, blobs.
FILES_RESERVED = 768

# A flood of connections must not fill the log too.
REFUSALS_LOG_SECONDS = 60

# How long requests under way have to end once the server is told to stop: service managers kill after 10 to 90 seconds,
# and the rest has to end too.
DRAIN_SECONDS = 6

# The kernel's queue of connections that wait to be accepted, for the moment when every client comes back at once.
LISTEN_BACKLOG = 1024

# Waiting syncs are requests: this many tasks are about 100 MB. Beyond it the answer is 503, never a slow death.
REQUESTS_AT_ONCE_MAX = 10_000

# Of them, those of one user that wait for news: one for each device, and a few for those whose connection was lost.
WAITING_PER_USER_MAX = 200
# When a client whose request was refused for that may try again: the others run out after some 30 seconds.
WAITING_RETRY_MS = 10_000
