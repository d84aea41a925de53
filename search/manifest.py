"""The manifest of an index, and the file that names the current index: small files that say what there is.

They can be read without opening the index, and without importing what that takes.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from homeserver.search import fts5
from homeserver.search.fts5_database import DATABASE

FORMAT = 3
MANIFEST = "manifest.json"
CURRENT = "current"


def find_current(folder: Path) -> Path | None:
    """Returns the folder of the current index, None if there is none yet."""
    try:
        return folder / (folder / CURRENT).read_text().strip()
    except FileNotFoundError:
        return None


def find_status(folder: Path) -> dict[str, Any] | None:
    """Returns how large the current index is, None if there is none. Raises ValueError if its manifest is damaged."""
    current = find_current(folder)
    if current is not None and (current / DATABASE).exists():
        return fts5.find_status(current)
    try:
        return None if current is None else _status_of(parse_manifest((current / MANIFEST).read_text()))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError) as error:
        raise ValueError(f"the manifest is damaged: {error}") from None


def parse_manifest(text: str) -> dict[str, Any]:
    """Returns what `format_manifest` was given. Raises ValueError if it is damaged."""
    checksum, _, body = text.partition("\n")
    if int(checksum) != zlib.crc32(body.encode()):
        raise ValueError("the checksum is wrong")
    manifest: dict[str, Any] = json.loads(body)
    if manifest["format"] != FORMAT:
        raise ValueError(f"it has the format {manifest['format']}")
    return manifest


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """Returns the text of a manifest, with its checksum."""
    body = json.dumps({"format": FORMAT, **manifest})
    return f"{zlib.crc32(body.encode())}\n{body}"


def _status_of(manifest: Mapping[str, Any]) -> dict[str, Any]:
    slices = manifest["slices"]
    return {
        "position": manifest["position"],
        "since": manifest.get("since", 0),
        "documents": sum(each["documents"] - len(each["deleted"]) for each in slices),
        "deleted": sum(len(each["deleted"]) for each in slices),
        "slices": len(slices),
        "bytes": sum(each["bytes"] for each in slices),
    }
