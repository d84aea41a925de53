"""Redaction: the parts of an event that its room version protects. Spec: rooms/v12/#redactions and earlier versions"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from homeserver.federation.room_versions import RoomVersion


def redact(pdu: Mapping[str, Any], version: RoomVersion) -> dict[str, Any]:
    """Returns a new PDU with only the parts that the version protects. It shares values with the old PDU."""
    top_level = version.redaction_top_level_keys
    redacted = {key: value for key, value in pdu.items() if key in top_level}
    redacted["content"] = _redact_content(pdu.get("type"), pdu.get("content"), version)
    return redacted


def _redact_content(event_type: object, content: object, version: RoomVersion) -> dict[str, Any]:
    if not isinstance(event_type, str) or not isinstance(content, dict):
        return {}
    if event_type not in version.redaction_content_keys:
        return {}
    kept = version.redaction_content_keys[event_type]
    if kept is None:
        return content
    redacted = {key: value for key, value in content.items() if key in kept}
    for key, inner in version.redaction_nested_content_keys.get(event_type, {}).items():
        value = content.get(key)
        if isinstance(value, dict):  # kept even if empty afterwards, because the event ID may depend on it
            redacted[key] = {name: value[name] for name in inner if name in value}
    return redacted
