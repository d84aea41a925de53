"""JSON for tables, digests and answers. What is signed is encoded by `federation.canonical_json`."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import orjson


def to_json(value: Any, *, sort_keys: bool = False) -> bytes:
    """JSON of anything that was decoded from JSON, and of Structs, however nested.

    Integers beyond 64 bits, which events of room versions below 6 may hold, keep their digits.
    """
    try:
        return orjson.dumps(value, msgspec.to_builtins, orjson.OPT_SORT_KEYS if sort_keys else 0)
    except TypeError:
        return json.dumps(
            value, default=msgspec.to_builtins, ensure_ascii=False, separators=(",", ":"), sort_keys=sort_keys
        ).encode()
