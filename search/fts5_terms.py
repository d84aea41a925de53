"""What FTS5 is told and asked: tokens of documents, and expressions in its query language."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from homeserver.search.query import STEM_MARK, Query, Term

TOKENIZER = "ascii tokenchars '~@#'"
"""All characters beyond ASCII belong to tokens, and of ASCII letters, digits, and the marks of stems and authors."""


def tokens_of(terms: Iterable[str], group: int, author: int) -> str:
    """Returns what FTS5 indexes of a document: its terms, its group and its author."""
    return " ".join((*terms, group_token(group), author_token(author)))


def group_token(group: int) -> str:
    """Returns the token that all documents of a group have."""
    return f"@{group}"


def author_token(author: int) -> str:
    """Returns the token that all documents of an author have."""
    return f"#{author}"


def any_of(tokens: Sequence[str]) -> str:
    """Returns an expression for documents with at least one of the tokens; without tokens, for none."""
    return " OR ".join(f'"{token}"' for token in tokens) or '"@"'


def expression_of(query: Query) -> str:
    """Returns an expression for the documents that may match a query."""
    return " AND ".join(
        f"({' OR '.join(f'({expression_of_sequence(each)})' for each in unit)})" for unit in query.units
    )


def expression_of_sequence(sequence: Sequence[Term]) -> str:
    """Returns an expression for documents with all terms of a sequence, in any order."""
    return " AND ".join(f'"{term.text}" *' if term.is_prefix else f'"{term.text}"' for term in sequence)


def frequency_of(sequence: Sequence[Term], repeated: dict[str, int]) -> float:
    """Returns how often a document that has a sequence has it at most."""
    weight = 0.5 if sequence[0].text.startswith(STEM_MARK) else 1.0
    return weight * min(1 if term.is_prefix else repeated.get(term.text, 1) for term in sequence)
