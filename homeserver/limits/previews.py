"""Limits of URL previews: what a link in a message may cost this server. The addresses are limited by the guard."""

from __future__ import annotations

# Longer URLs hold data rather than a place; browsers and web servers refuse them too.
PREVIEW_URL_CHARACTERS_MAX = 2_048
# When the page must have arrived, then its oEmbed description, then its picture, from the beginning of the fetch. The
# requester sees the message without a preview meanwhile.
PREVIEW_PAGE_DEADLINE_S = 10.0
PREVIEW_OEMBED_DEADLINE_S = 14.0
PREVIEW_PICTURE_DEADLINE_S = 20.0
# How long one web server may be silent.
PREVIEW_SILENCE_S = 8.0
# How long a fetch waits for others to end, before its requesters are told to try again.
PREVIEW_QUEUE_S = 20.0
# Parallel previews. Each holds a page in memory, and a place that slow servers may keep for 20 s. One user
# gets at most half of them, by the rate limit.
PREVIEWS_AT_ONCE_MAX = 64
# What is read of a page. What describes it is at its beginning, at most behind some 600 KB of scripts.
PREVIEW_PAGE_BYTES_MAX = 1 << 20
# An oEmbed description is a JSON object of a few kilobytes.
PREVIEW_OEMBED_BYTES_MAX = 256 * 1024
# Pictures for previews are made for it, at 1200 × 630 pixels.
PREVIEW_PICTURE_BYTES_MAX = 8 << 20
# Pictures of a page that are tried one after the other, until one can be shown.
PREVIEW_PICTURES_TRIED_MAX = 3
# Reading a page of PREVIEW_PAGE_BYTES_MAX takes a tenth of a second. The separate process is killed after this long.
PREVIEW_READ_TIMEOUT_S = 3.0
# Elements of a page that are read: as many as the largest real documents have, some 50 ms.
PREVIEW_ELEMENTS_MAX = 100_000
# Characters of a title, of a description, and of any other property. Clients show two lines or three.
PREVIEW_TITLE_CHARACTERS_MAX = 300
PREVIEW_DESCRIPTION_CHARACTERS_MAX = 1_000
PREVIEW_PROPERTY_CHARACTERS_MAX = 2_048
# OpenGraph properties of a page. Real ones have a dozen.
PREVIEW_PROPERTIES_MAX = 40
# How long a preview is used, and for how long a page that could not be fetched is not tried again.
PREVIEW_LIFETIME_MS = 24 * 60 * 60 * 1000
PREVIEW_FAILURE_MS = 60 * 1000
# Rows of previews; the oldest make room for new ones. At most some 20 KB each, typically 500 bytes.
PREVIEWS_STORED_MAX = 20_000
# How long a picture is kept after it was last fetched: clients that keep the preview still show it. As long as the
# preview is stored too, its picture keeps its URI if it is fetched again and has not changed.
PREVIEW_PICTURE_LIFETIME_MS = 7 * 24 * 60 * 60 * 1000
