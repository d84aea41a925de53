"""EDUs and the contents of those that the spec defines. Spec: server-server-api/#edus"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.edus import (
    DeviceListUpdateContent,
    DirectToDeviceContent,
    InvalidEdu,
    PresenceUpdate,
    Receipt,
    SigningKeyUpdateContent,
    TypingContent,
    parse_edu,
    parse_presence,
    parse_receipts,
)

# The examples of the spec, in its order.
TYPING = {"room_id": "!somewhere:matrix.org", "user_id": "@john:matrix.org", "typing": True}
UPDATE = {
    "user_id": "@john:matrix.org",
    "presence": "online",
    "status_msg": "Making cupcakes",
    "last_active_ago": 5000,
    "currently_active": True,
}
READ = {"event_ids": ["$read_this_event:matrix.org"], "data": {"ts": 1533358089009}}
RECEIPT = {"!some_room:example.org": {"m.read": {"@john:matrix.org": READ}}}
DEVICE_LIST_UPDATE = {
    "user_id": "@john:example.com",
    "device_id": "QBUAZIFURK",
    "device_display_name": "Mobile",
    "stream_id": 6,
    "prev_id": [5],
    "deleted": True,
    "keys": {"algorithms": []},
}
SIGNING_KEY_UPDATE = {
    "user_id": "@alice:example.com",
    "master_key": {"user_id": "@alice:example.com", "usage": ["master"], "keys": {"ed25519:base64": "base64"}},
    "self_signing_key": {"user_id": "@alice:example.com", "usage": ["self_signing"], "keys": {"ed25519:x": "x"}},
}
DIRECT_TO_DEVICE = {
    "sender": "@john:example.com",
    "type": "m.room_key_request",
    "message_id": "hiezohf6Hoo7kaev",
    "messages": {"@alice:example.org": {"IWHQUZUIAH": {"algorithm": "m.megolm.v1.aes-sha2"}, "*": {}}},
}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (TYPING, TypingContent),
        (UPDATE, PresenceUpdate),
        (DEVICE_LIST_UPDATE, DeviceListUpdateContent),
        (SIGNING_KEY_UPDATE, SigningKeyUpdateContent),
        (DIRECT_TO_DEVICE, DirectToDeviceContent),
    ],
)
def test_examples_of_the_spec_round_trip(content: dict[str, Any], kind: type) -> None:
    assert msgspec.to_builtins(msgspec.convert(content, kind)) == content


def test_optional_fields_may_be_missing() -> None:
    minimal = {"user_id": "@a:b", "device_id": "D", "stream_id": 1}
    update = DeviceListUpdateContent(user_id="@a:b", device_id="D", stream_id=1)
    assert msgspec.convert(minimal, DeviceListUpdateContent) == update
    assert msgspec.convert({"user_id": "@a:b"}, SigningKeyUpdateContent) == SigningKeyUpdateContent(user_id="@a:b")


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (TypingContent, {}),
        (TypingContent, []),
        (TypingContent, TYPING | {"typing": 1}),
        (TypingContent, TYPING | {"user_id": "john"}),
        (TypingContent, TYPING | {"room_id": "#alias:b"}),
        (TypingContent, TYPING | {"user_id": "@" + "a" * 255 + ":b"}),
        (DeviceListUpdateContent, DEVICE_LIST_UPDATE | {"stream_id": "6"}),
        (DeviceListUpdateContent, DEVICE_LIST_UPDATE | {"user_id": ""}),
        (DeviceListUpdateContent, DEVICE_LIST_UPDATE | {"device_id": "D" * 256}),
        (DeviceListUpdateContent, DEVICE_LIST_UPDATE | {"prev_id": list(range(1001))}),
        (DirectToDeviceContent, DIRECT_TO_DEVICE | {"sender": 1}),
        (DirectToDeviceContent, DIRECT_TO_DEVICE | {"messages": {"alice": {}}}),
        (DirectToDeviceContent, DIRECT_TO_DEVICE | {"messages": {"@a:b": {"D" * 256: {}}}}),
        (DirectToDeviceContent, DIRECT_TO_DEVICE | {"messages": {"@a:b": {"D": "text"}}}),
        (DirectToDeviceContent, DIRECT_TO_DEVICE | {"message_id": "m" * 256}),
        (SigningKeyUpdateContent, {}),
        (SigningKeyUpdateContent, {"user_id": "@a"}),
    ],
)
def test_malformed_contents_are_refused(kind: type, content: object) -> None:
    with pytest.raises(ValueError):
        msgspec.convert(content, kind)


# Receipts


def test_a_receipt_names_room_user_event_and_thread() -> None:
    john = Receipt(
        room_id="!some_room:example.org",
        user_id="@john:matrix.org",
        event_id="$read_this_event:matrix.org",
        ts=1533358089009,
    )
    assert list(parse_receipts(RECEIPT)) == [john]
    threaded = {"event_ids": ["$e"], "data": {"ts": 1, "thread_id": "main"}}
    (receipt,) = parse_receipts({"!r:b": {"m.read": {"@a:b": threaded}}})
    assert receipt == Receipt(room_id="!r:b", user_id="@a:b", event_id="$e", ts=1, thread_id="main")


def test_receipts_of_other_kinds_are_not_read() -> None:
    content = {"!r:b": {"m.read.private": {"@a:b": {"event_ids": ["$e"], "data": {"ts": 1}}}, "org.example": 1}}
    assert list(parse_receipts(content)) == []


@pytest.mark.parametrize(
    "malformed",
    [
        {"room": {"m.read": {"@a:b": READ}}},
        {"!r:b": []},
        {"!r:b": {}},
        {"!r:b": {"m.read": []}},
        {"!r:b": {"m.read": {"john": READ}}},
        {"!r:b": {"m.read": {"@a:b": "$e"}}},
        {"!r:b": {"m.read": {"@a:b": READ | {"event_ids": []}}}},
        {"!r:b": {"m.read": {"@a:b": READ | {"event_ids": ["$e", "$f"]}}}},
        {"!r:b": {"m.read": {"@a:b": READ | {"event_ids": ["e"]}}}},
        {"!r:b": {"m.read": {"@a:b": READ | {"data": {"ts": -1}}}}},
        {"!r:b": {"m.read": {"@a:b": READ | {"data": {"ts": 2**53}}}}},
        {"!r:b": {"m.read": {"@a:b": READ | {"data": {"ts": 1, "thread_id": 5}}}}},
    ],
)
def test_malformed_receipts_do_not_affect_others(malformed: dict[str, Any]) -> None:
    assert [receipt.user_id for receipt in parse_receipts({**malformed, **RECEIPT})] == ["@john:matrix.org"]


# Presence


def test_malformed_presence_updates_do_not_affect_others() -> None:
    updates = [
        {"user_id": "@a:b", "presence": "busy", "last_active_ago": 1},
        {"user_id": "nobody", "presence": "online"},
        "online",
        {"user_id": "@b:b", "presence": "offline"},
    ]
    assert list(parse_presence({"push": updates})) == [PresenceUpdate(user_id="@b:b", presence="offline")]


@pytest.mark.parametrize("content", [{}, {"push": {}}, {"push": None}])
def test_presence_without_a_list_of_updates_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(InvalidEdu):
        list(parse_presence(content))


# Anything at all

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


def test_an_edu_has_a_type_and_a_content_of_any_kind() -> None:
    edu = {"edu_type": "org.example.shrug", "content": {"anything": [1.5]}, "more": 1}
    assert parse_edu(edu) == ("org.example.shrug", {"anything": [1.5]})


@pytest.mark.parametrize(
    "edu",
    [
        {},
        {"edu_type": "m.typing"},
        {"edu_type": "m.typing", "content": []},
        {"edu_type": 5, "content": {}},
        {"edu_type": "t" * 256, "content": {}},
        {"edu_type": "m.typing", "content": {"a": float("nan")}},
    ],
)
def test_malformed_edus_are_refused(edu: object) -> None:
    with pytest.raises(InvalidEdu):
        parse_edu(edu)


@given(JSON)
def test_parsing_an_edu_raises_only_invalid_edu(value: object) -> None:
    try:
        parse_edu(value)
    except InvalidEdu:
        pass


@given(st.dictionaries(st.text() | st.sampled_from(["push", "!r:b"]), JSON))
def test_parsing_parts_raises_only_invalid_edu(content: dict[str, Any]) -> None:
    list(parse_receipts(content))
    try:
        list(parse_presence(content))
    except InvalidEdu:
        pass
