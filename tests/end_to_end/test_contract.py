"""The contract's own walk through both APIs: every operation that this server has to have answers, and answers validly.

`contract_check.py coverage` of the shared specification folder plays a client, and a second server that signs its
requests. Where the folder is not at hand the test has nothing to hold the server to, and passes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.programs import Homeserver, make_place
from tests.support.contract import contract_check

pytestmark = [pytest.mark.sockets, pytest.mark.timeout(300)]

CLIENT_MODULES = {
    "accounts and devices": (
        "register", "checkUsernameAvailability", "login", "getLoginFlows", "logout", "logout_all", "refresh",
        "getTokenOwner", "changePassword", "deactivateAccount", "getDevices", "getDevice", "updateDevice",
        "deleteDevice", "deleteDevices", "getVersions", "getCapabilities", "getWellknown", "getAuthMetadata",
    ),
    "rooms and membership": (
        "createRoom", "joinRoom", "joinRoomById", "inviteUser", "leaveRoom", "kick", "ban", "unban", "knockRoom",
        "forgetRoom", "getJoinedRooms",
    ),
    "events": (
        "sendMessage", "redactEvent", "setRoomStateWithKey", "getRoomState", "getRoomStateWithKey", "getMembersByRoom",
        "getJoinedMembersByRoom", "getRoomEvents", "getEventContext", "getOneRoomEvent",
    ),
    "directory": (
        "setRoomAlias", "getRoomIdByAlias", "deleteRoomAlias", "getLocalAliases", "getPublicRooms", "queryPublicRooms",
        "getRoomVisibilityOnDirectory", "setRoomVisibilityOnDirectory",
    ),
    "sync": ("sync", "defineFilter", "getFilter"),
    "encryption": ("sendToDevice",),
    "administration": ("getWellknownSupport", "getWellknownPolicy"),
    "ephemeral": ("postReceipt", "setReadMarker", "setTyping", "getPresence", "setPresence"),
    "users' data": (
        "getUserProfile", "getProfileField", "setProfileField", "deleteProfileField", "setAccountData",
        "getAccountData", "setAccountDataPerRoom", "getAccountDataPerRoom", "getRoomTags", "setRoomTag",
        "deleteRoomTag",
    ),
    "media": (
        "createContent", "uploadContent", "uploadContentToMXC", "getContent", "getContentAuthed",
        "getContentThumbnailAuthed", "getConfigAuthed", "getContentOverrideNameAuthed",
    ),
}  # fmt: skip
SERVER_OPERATIONS = (
    "getServerKey", "perspectivesKeyQuery", "bulkPerspectivesKeyQuery", "sendTransaction", "sendInviteV1",
    "sendInviteV2", "makeJoin", "sendJoinV2", "makeLeave", "sendLeaveV2", "makeKnock", "sendKnock",
    "backfillRoom", "getMissingPreviousEvents", "getRoomState", "getRoomStateIds", "getEventAuth", "getEvent",
    "queryProfile", "queryRoomDirectory", "queryInfo", "getContent", "getContentThumbnail", "getPublicRooms",
    "queryPublicRooms", "getVersion", "getWellKnown", "onBindThirdPartyIdentifier", "exchangeThirdPartyInvite",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """A server that accepts the tool's self-signed certificate."""
    place = make_place(tmp_path_factory.mktemp("contract"))
    server = place.organisation(
        "checked",
        {
            "federation": {"verify_tls": False, "allow_private_addresses": True},
            "registration": {"guests": True},
            "public": {"support_email": "help@example.org", "policy_server_key": "A" * 43},
        },
    )
    try:
        server.start()
        yield server
        assert server.stop() == 0
    finally:
        server.kill()


# Headings of the report under which nothing may stand.
COMPLAINTS = (
    "Control probes failed", "Invalid successful", "Malformed error", "Server errors", "Events in successful",
    "Responses without Access-Control", "Signed operations that did not refuse",
)  # fmt: skip


# Without a relay for calls there is nothing to tell about one, and clients take an empty object for that. The schema
# cannot say so, and the walk counts it as invalid.
NO_RELAY = "/_matrix/client/v3/voip/turnServer"
NO_RELAY_IS_INVALID = rf"^Invalid successful responses \(1\):\n +GET +{NO_RELAY} -> 200: .*is a required property\n"


def walk(tmp_path: Path, api: str, *arguments: str) -> dict[str, Any] | None:
    """Returns the findings about each operation, None if the contract tool is not installed."""
    module = contract_check()
    if module is None:
        return None
    found = tmp_path / f"{api}.json"
    command = [sys.executable, str(module.__file__), "coverage", "--api", api, "--json", str(found), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stdout + result.stderr
    report = re.sub(NO_RELAY_IS_INVALID, "", result.stdout, flags=re.MULTILINE)
    assert not [line for line in report.splitlines() if line.startswith(COMPLAINTS)], result.stdout
    assert " 0 schema errors" in result.stdout
    operations: dict[str, Any] = json.loads(found.read_text())
    return operations


def assert_valid(operations: dict[str, Any], wanted: tuple[str, ...]) -> None:
    """No answer breaks its schema, no 5xx, and what is wanted is there."""
    bad = {
        f"{name} {result['status']} {result['target'][:80]}": result["errors"] or result["body"]
        for name, operation in operations.items()
        for result in operation["results"]
        if result["class"] == "recognised"
        and (result["errors"] or 500 <= result["status"] != 501)
        and not (result["target"].endswith(NO_RELAY) and result["status"] == 200)
    }
    assert not bad
    unknown = [name for name in wanted if name not in operations]
    assert not unknown, "the contract has no such operations"
    missing = [name for name in wanted if operations[name]["class"] != "recognised"]
    assert not missing


def test_every_client_operation_answers_as_specified(server: Homeserver, tmp_path: Path) -> None:
    operations = walk(tmp_path, "client-server", "--base-url", server.url)
    if operations is not None:
        assert_valid(operations, tuple(name for names in CLIENT_MODULES.values() for name in names))


def test_every_server_operation_answers_as_specified(server: Homeserver, tmp_path: Path) -> None:
    operations = walk(
        tmp_path, "server-server",
        "--base-url", f"https://localhost:{server.federation_port}", "--client-url", server.url,
        "--server-name", server.server_name, "--origin-host", "127.0.0.1",
    )  # fmt: skip
    if operations is not None:
        assert_valid(operations, SERVER_OPERATIONS)
