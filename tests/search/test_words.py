"""Which words a text has, and what a person finds with which query."""

from __future__ import annotations

import pytest

from homeserver.search.query import (
    PREFIXES_MAX,
    QUERY_CHARACTERS_MAX,
    UNITS_MAX,
    InvalidQuery,
    index_terms_of,
    parse_query,
)
from homeserver.search.words import WORDS_MAX, Stemmers, normalize, words_of

STEMMERS = Stemmers()


def find(query: str, text: str) -> set[str] | None:
    return parse_query(query, STEMMERS).find(text, STEMMERS)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("kettle", "The KETTLE is on"),
        ("blue kettle", "a kettle, blue"),
        ('"blue kettle"', "the Blue Kettle"),
        ("kett*", "kettles"),
        # names, versions, addresses
        ("qwen", "qwen3.6 is out"),
        ("qwen3", "qwen3.6 is out"),
        ("qwen3.6", "we use Qwen 3.6"),
        ("qwen3.6", "qwen-3-6"),
        ("example", "see https://example.org/foo/bar-baz.html?x=1"),
        ("example.org", "see https://example.org/foo"),
        ("https://example.org/foo", "see https://example.org/foo/bar"),
        ("baz.html", "https://example.org/foo/bar-baz.html"),
        ("barbaz", "bar-baz"),
        ("bar-baz", "barbaz"),
        ("2024-11-30", "report_2024-11-30.pdf"),
        ("report", "report_2024-11-30.pdf"),
        ("pdf", "report_2024-11-30.pdf"),
        # identifiers
        ("user", "call getUserName()"),
        ("getusername", "call getUserName()"),
        ("getUserName", "call getusername()"),
        ("get_user_name", "call getUserName()"),
        ("user_name", "call get_user_name()"),
        ("iphone", "my iPhone15Pro"),
        ("iphone15", "my iPhone15Pro"),
        ("http", "HTTPServer"),
        ("dont", "I don't"),
        ("don’t", "I don't"),
        # forms
        ("run", "running"),
        ("running", "she runs"),
        ("houses", "a house"),
        ("Häuser", "das Haus"),
        ("Haus", "die Häuser"),
        # case and accents
        ("cafe", "Café"),
        ("CAFÉ", "cafe"),
        ("cafe\u0301", "café"),
        ("strasse", "Straße"),
        ("sorensen", "Sørensen"),
        ("ελενη", "Ελένη"),
        ("ёлка", "Елка"),
        ("fancy", "𝓕𝓪𝓷𝓬𝔂"),
        ("123", "１２３"),
        # scripts without spaces
        ("東京", "東京都"),
        ("京都", "東京都"),
        ("東京都", "これは東京都です"),
        ("都", "東京都"),
        ("京", "東京都"),
        ("カタ", "ｶﾀｶﾅ"),
        ("안녕", "안녕하세요"),
        ("สวัส", "สวัสดี"),
        ("tower東京", "tower 東京"),
        ("शर्मा", "प्रिया शर्मा"),
        ("محمد", "محمد علي"),
        ("🦊", "the 🦊."),
    ],
)
def test_queries_match_texts_that_a_person_would_expect(query: str, text: str) -> None:
    assert find(query, text)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("kettle coffee", "the kettle"),
        ('"kettle blue"', "the blue kettle"),
        ('"kettles"', "the kettle"),
        ("kettle", "kettledrum"),
        ("k*", "kettle"),
        ("qwen3.7", "qwen3.6"),
        ("京東", "東京都"),
        ("東都", "東京都"),
        ("ettle", "kettle"),
        ("~run", "ran"),
    ],
)
def test_queries_do_not_match_other_texts(query: str, text: str) -> None:
    assert find(query, text) is None


def test_matching_words_are_told_as_they_are_written() -> None:
    assert find("kettles café", "The Kettle in the CAFE") == {"Kettle", "CAFE"}
    assert find("getusername", "x.getUserName()") == {"getUserName"}


@pytest.mark.parametrize("query", ["", "  ", "!?", '""', "*", '"', "~", "\ud800", "\0"])
def test_a_query_without_words_has_no_units(query: str) -> None:
    assert parse_query(query, STEMMERS).units == []


def test_queries_that_are_too_long_are_refused() -> None:
    with pytest.raises(InvalidQuery, match=f"{QUERY_CHARACTERS_MAX} characters"):
        parse_query("a" * (QUERY_CHARACTERS_MAX + 1), STEMMERS)
    with pytest.raises(InvalidQuery, match=f"{UNITS_MAX} words"):
        parse_query(" ".join(f"w{number}" for number in range(UNITS_MAX + 1)), STEMMERS)
    with pytest.raises(InvalidQuery, match=f"{PREFIXES_MAX} beginnings"):
        parse_query("aa* bb* cc* dd*", STEMMERS)
    parse_query("kettle " * (UNITS_MAX + 1), STEMMERS)  # one unit


@pytest.mark.parametrize(
    "text", ["a" * 65_000, "aB" * 32_000, "東" * 20_000, "a-" * 32_000, "1a" * 32_000, "🦊" * 16_000, "é" * 30_000]
)
def test_the_longest_texts_have_a_bounded_number_of_words(text: str) -> None:
    assert len(words_of(normalize(text))) <= WORDS_MAX
    frequencies, length = index_terms_of(text, STEMMERS)
    assert length <= WORDS_MAX and all(len(term) <= 65 for term in frequencies)
