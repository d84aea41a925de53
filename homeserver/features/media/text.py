"""Text that others wrote, cut for display. The separate process uses it too, so it imports nothing of the server."""

from __future__ import annotations


def clean(text: str | None, characters_max: int) -> str:
    """Returns the text on one line, without control characters, cut to the limit."""
    if not text:
        return ""
    text = text[: 20 * characters_max]  # white space included
    text = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return text if len(text) <= characters_max else text[: characters_max - 1].rstrip() + "…"
