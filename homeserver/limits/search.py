"""The limits of search, each with its reason. Units are in the names. The engine has more, in `search/`."""

from __future__ import annotations

# Results of a page. Clients show 10 or 20.
SEARCH_RESULTS_MAX = 50
# Events before a result, and after it. With 50 results a page has 1,050 events, as many as a page of history.
SEARCH_CONTEXT_EVENTS_MAX = 10
# State events of an answer. In larger rooms only the members who sent something shown are included.
SEARCH_STATE_EVENTS_MAX = 10_000
# Proposals of the index that are checked at least, even if a page is shorter, so that the number of results is told
# exactly up to there: 3 ms.
SEARCH_CHECKED_MIN = 50
# Proposals that are checked in each further round, and rounds. What they did not reach is left to the next page: some
# 50 ms for those who search for what is hidden from them, or for phrases of common words.
SEARCH_CHECKED_PER_ROUND = 200
SEARCH_ROUNDS_MAX = 8
# Characters of proposed texts that are read in one request, most of them for phrases: half a second of reading words.
SEARCH_CHARACTERS_MAX = 200_000
# How long the index may look for each round. The worst queries find nothing in a million messages in that time.
SEARCH_SECONDS_MAX = 0.5
# How long a search waits until the index has what was sent before it. Starting its process takes half a second or more.
SEARCH_CATCH_UP_SECONDS_MAX = 5.0
# `next_batch` has some 100 characters, and a room ID or user ID.
SEARCH_TOKEN_CHARACTERS_MAX = 1_024

# Only the beginning of longer messages is searched. These are logs and source code rather than language.
INDEX_TEXT_CHARACTERS_MAX = 10_000
# Changes of the stream that are indexed at once, and their characters: 100 ms of another process, for which searches
# wait, or a second if the texts are long.
INDEX_SPAN = 500
INDEX_SPAN_CHARACTERS_MAX = 500_000
# Fewer changes wait for more, for a search, or for this long: starting the process for each message is not worth it.
INDEX_WAITING_MAX = 200
INDEX_DELAY_SECONDS = 300
# How often slices with deleted messages are rewritten, so that these leave the disk.
INDEX_PURGE_SECONDS = 3600
# A slice of 64,000 messages takes 10 s to merge, on a slow core that is busy a minute.
INDEX_MERGE_SECONDS_MAX = 300.0
# Python, the open slices and the merged terms; 50 MB are usual.
INDEX_MEMORY_BYTES_MAX = 512 << 20
