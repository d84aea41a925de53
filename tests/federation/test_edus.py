"""EDUs. Spec: server-server-api/#edus"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.edus import (
    CONTENT_TYPES,
    DeviceListUpdateContent,
    DirectToDeviceContent,
    InvalidEdu,
    PresenceContent,
    PresenceUpdate,
    ReceiptData,
    RoomReceipts,
    SigningKeyUpdateContent,
    TypingContent,
    UserReceipt,
    build_edu,
    parse_edu,
)

# The examples of the spec, in its order.
TYPING = {"room_id": "!somewhere:matrix.org", "user_id": "@john:matrix.org", "typing": True}
PRESENCE = {
    "push": [
        {
            "user_id": "@john:matrix.org",
            "presence": "online",
            "status_msg": "Making cupcakes",
            "last_active_ago": 5000,
            "currently_active": True,
        }
    ]
}
RECEIPT = {
    "!some_room:example.org": {
        "m.read": {
            "@john:matrix.org": {"event_ids": ["$read_this_event:matrix.org"], "data": {"ts": 1533358089009}},
        }
    }
}
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
EXAMPLES = [
    ("m.typing", TYPING),
    ("m.presence", PRESENCE),
    ("m.receipt", RECEIPT),
    ("m.device_list_update", DEVICE_LIST_UPDATE),
    ("m.signing_key_update", SIGNING_KEY_UPDATE),
    ("m.direct_to_device", DIRECT_TO_DEVICE),
]


def edu(edu_type: str, content: object) -> dict[str, object]:
    return {"edu_type": edu_type, "content": content}


@pytest.mark.parametrize(("edu_type", "content"), EXAMPLES)
def test_examples_of_the_spec_round_trip(edu_type: str, content: dict[str, object]) -> None:
    parsed_type, parsed = parse_edu(edu(edu_type, content))
    assert parsed_type == edu_type
    assert build_edu(edu_type, parsed) == edu(edu_type, content)


def test_examples_cover_every_known_type() -> None:
    assert {edu_type for edu_type, _ in EXAMPLES} == set(CONTENT_TYPES)


def test_contents_are_typed() -> None:
    assert parse_edu(edu("m.typing", TYPING))[1] == TypingContent(
        room_id="!somewhere:matrix.org", user_id="@john:matrix.org", typing=True
    )
    assert parse_edu(edu("m.receipt", RECEIPT))[1] == {
        "!some_room:example.org": RoomReceipts(
            read={
                "@john:matrix.org": UserReceipt(
                    event_ids=["$read_this_event:matrix.org"], data=ReceiptData(ts=1533358089009)
                )
            }
        )
    }
    assert isinstance(parse_edu(edu("m.direct_to_device", DIRECT_TO_DEVICE))[1], DirectToDeviceContent)
    assert isinstance(parse_edu(edu("m.signing_key_update", SIGNING_KEY_UPDATE))[1], SigningKeyUpdateContent)


def test_unknown_types_pass_through() -> None:
    assert parse_edu(edu("org.example.shrug", {"anything": [1.5]})) == ("org.example.shrug", {"anything": [1.5]})


def test_optional_fields_may_be_missing() -> None:
    minimal = {"user_id": "@a:b", "device_id": "D", "stream_id": 1}
    assert parse_edu(edu("m.device_list_update", minimal))[1] == DeviceListUpdateContent(
        user_id="@a:b", device_id="D", stream_id=1
    )
    assert parse_edu(edu("m.receipt", {"!r:b": {}}))[1] == {"!r:b": RoomReceipts()}
    assert parse_edu(edu("m.signing_key_update", {"user_id": "@a:b"}))[1] == SigningKeyUpdateContent(user_id="@a:b")


def test_receipts_of_other_kinds_are_not_read() -> None:
    content = {"!r:b": {"m.read.private": {"@a:b": {"event_ids": ["$e"], "data": {"ts": 1}}}, "org.example": 1}}
    assert parse_edu(edu("m.receipt", content))[1] == {"!r:b": RoomReceipts()}


def test_a_threaded_receipt_keeps_its_thread() -> None:
    content = {"!r:b": {"m.read": {"@a:b": {"event_ids": ["$e"], "data": {"ts": 1, "thread_id": "main"}}}}}
    _, parsed = parse_edu(edu("m.receipt", content))
    assert build_edu("m.receipt", parsed)["content"] == content


def test_senseless_presence_updates_are_left_out_alone() -> None:
    updates = [
        {"user_id": "@a:b", "presence": "busy", "last_active_ago": 1},
        {"user_id": "nobody", "presence": "online"},
        "online",
        {"user_id": "@b:b", "presence": "offline"},
    ]
    assert parse_edu(edu("m.presence", {"push": updates}))[1] == PresenceContent(
        push=[PresenceUpdate(user_id="@b:b", presence="offline")]
    )


@pytest.mark.parametrize(
    ("edu_type", "content"),
    [
        ("m.typing", {}),
        ("m.typing", TYPING | {"typing": 1}),
        ("m.typing", TYPING | {"user_id": "john"}),
        ("m.typing", TYPING | {"room_id": "#alias:b"}),
        ("m.typing", TYPING | {"user_id": "@" + "a" * 255 + ":b"}),
        ("m.presence", {}),
        ("m.presence", {"push": {}}),
        ("m.receipt", {"room": {}}),
        ("m.receipt", {"!r:b": []}),
        ("m.receipt", {"!r:b": {"m.read": {"john": {"event_ids": ["$e"], "data": {"ts": 1}}}}}),
        ("m.receipt", {"!r:b": {"m.read": {"@a:b": {"event_ids": [], "data": {"ts": 1}}}}}),
        ("m.receipt", {"!r:b": {"m.read": {"@a:b": {"event_ids": ["$e", "$f"], "data": {"ts": 1}}}}}),
        ("m.receipt", {"!r:b": {"m.read": {"@a:b": {"event_ids": ["e"], "data": {"ts": 1}}}}}),
        ("m.receipt", {"!r:b": {"m.read": {"@a:b": {"event_ids": ["$e"], "data": {"ts": -1}}}}}),
        ("m.receipt", {"!r:b": {"m.read": {"@a:b": {"event_ids": ["$e"], "data": {"ts": 2**53}}}}}),
        ("m.device_list_update", DEVICE_LIST_UPDATE | {"stream_id": "6"}),
        ("m.device_list_update", DEVICE_LIST_UPDATE | {"user_id": ""}),
        ("m.device_list_update", DEVICE_LIST_UPDATE | {"device_id": "D" * 256}),
        ("m.device_list_update", DEVICE_LIST_UPDATE | {"prev_id": list(range(1001))}),
        ("m.direct_to_device", DIRECT_TO_DEVICE | {"sender": 1}),
        ("m.direct_to_device", DIRECT_TO_DEVICE | {"messages": {"alice": {}}}),
        ("m.direct_to_device", DIRECT_TO_DEVICE | {"messages": {"@a:b": {"D" * 256: {}}}}),
        ("m.direct_to_device", DIRECT_TO_DEVICE | {"messages": {"@a:b": {"D": "text"}}}),
        ("m.direct_to_device", DIRECT_TO_DEVICE | {"message_id": "m" * 256}),
        ("m.signing_key_update", {}),
        ("m.signing_key_update", {"user_id": "@a"}),
        ("m.typing", []),
        (5, {}),
        ("t" * 256, {}),
    ],
)
def test_malformed_edus_are_refused(edu_type: object, content: object) -> None:
    with pytest.raises(InvalidEdu):
        parse_edu({"edu_type": edu_type, "content": content})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.sampled_from([*CONTENT_TYPES, "other"]), JSON)
def test_whatever_comes_raises_nothing_else(edu_type: str, content: object) -> None:
    try:
        parse_edu(edu(edu_type, content))
    except InvalidEdu:
        pass


@given(JSON)
def test_whatever_is_no_edu_raises_nothing_else(value: object) -> None:
    try:
        parse_edu(value)
    except InvalidEdu:
        pass
