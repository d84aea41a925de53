"""Tools of administrators for other servers work with ours: synadm as it is, and the calls of Ketesa's data provider.

Ketesa (the successor of synapse-admin) runs in a browser; what it asks for is in its `src/providers/data`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.interop.clients import Client, wait_until
from tests.interop.servers import Server
from tests.interop.setup import synadm_venv

Sides = tuple[Server, Server]
V1, V2, V3 = "/_synapse/admin/v1", "/_synapse/admin/v2", "/_synapse/admin/v3"


@pytest.fixture
def boss(organisations: Sides) -> Client:
    """An administrator of the first server."""
    here, _ = organisations
    client = Client(here, "boss")
    program = [sys.executable, "-m", "homeserver", "user", "admin", client.localpart]
    subprocess.run([*program, "--config", str(here.folder / "homeserver.toml")], check=True, capture_output=True)
    return client


@pytest.fixture
def synadm(boss: Client, tmp_path: Path) -> Callable[..., Any]:
    """Runs synadm and returns the last JSON object that it prints, or its text if there is none."""
    config = tmp_path / "synadm.yaml"
    token = boss.http.headers["Authorization"].removeprefix("Bearer ")
    config.write_text(
        f"user: {boss.localpart}\ntoken: {token}\nbase_url: {boss.server.url}\nadmin_path: /_synapse/admin\n"
        "matrix_path: /_matrix\nformat: json\ntimeout: 30\nserver_discovery: well-known\n"
        f'homeserver: "{boss.server.server_name}"\nssl_verify: false\n'
    )

    def run(*words: str) -> Any:
        program = [str(synadm_venv() / "bin" / "synadm"), "--batch", "-c", str(config), "-o", "json", *words]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        print(f"synadm {' '.join(words)}: {done.stdout[:200]}")
        _, brace, rest = done.stdout.rpartition("\n{") if "\n{" in done.stdout else done.stdout.partition("{")
        return json.JSONDecoder().raw_decode("{" + rest)[0] if brace else done.stdout

    return run


def test_synadm_manages_users(organisations: Sides, synadm: Callable[..., Any]) -> None:
    here, _ = organisations
    alice = Client(here, "alice")
    assert alice.user_id in [each["name"] for each in synadm("user", "list")["users"]]
    assert synadm("user", "details", alice.user_id)["name"] == alice.user_id
    assert alice.user_id in json.dumps(synadm("user", "search", alice.localpart))
    synadm("user", "modify", alice.user_id, "-n", "Al")
    assert synadm("user", "details", alice.user_id)["displayname"] == "Al"
    assert alice.device_id in synadm("user", "whois", alice.user_id)["devices"]
    assert synadm("user", "membership", alice.user_id)["total"] == 0
    synadm("user", "shadow-ban", alice.user_id)
    assert synadm("user", "details", alice.user_id)["shadow_banned"]
    synadm("user", "shadow-ban", "--unban", alice.user_id)
    synadm("user", "suspend", alice.user_id)
    assert synadm("user", "details", alice.user_id)["suspended"]
    synadm("user", "suspend", "--unsuspend", alice.user_id)
    assert synadm("user", "media", alice.user_id)["total"] == 0
    assert "access_token" in json.dumps(synadm("user", "login", "--expire-never", alice.user_id))
    synadm("user", "prune-devices", "-i", alice.device_id, alice.user_id)
    synadm("user", "password", "-p", "another password", alice.user_id)
    synadm("notice", "send", alice.user_id, "Maintenance at noon.")
    synadm("user", "deactivate", alice.user_id)
    assert synadm("user", "details", alice.user_id)["deactivated"]


def test_synadm_manages_rooms(organisations: Sides, boss: Client, synadm: Callable[..., Any]) -> None:
    here, _ = organisations
    alice, bob = Client(here, "alice"), Client(here, "bob")
    room_id = alice.create_room("11", preset="public_chat", name="Tea of synadm")
    assert room_id in [each["room_id"] for each in synadm("room", "list", "-n", "Tea of synadm")["rooms"]]
    assert synadm("room", "details", room_id)["name"] == "Tea of synadm"
    assert synadm("room", "join", room_id, bob.user_id)["room_id"] == room_id
    assert synadm("room", "members", room_id)["total"] == 2
    assert synadm("room", "state", room_id)["state"]
    synadm("room", "make-admin", "-u", bob.user_id, room_id)
    synadm("room", "power-levels", "-i", room_id)
    synadm("room", "block", "-b", room_id)
    assert synadm("room", "block-status", room_id)["block"]
    synadm("room", "block", "-u", room_id)
    synadm("history", "purge", "--before-days", "1", room_id)
    assert "redact_id" in synadm("user", "redact", "-r", room_id, alice.user_id)
    deletion = synadm("room", "delete", room_id)
    path = f"{V2}/rooms/delete_status/{deletion['delete_id']}"
    wait_until("the room is deleted", lambda: boss.call("GET", path)["status"] == "complete")
    assert room_id not in [each["room_id"] for each in synadm("room", "list")["rooms"]]


def test_synadm_manages_tokens_and_media(organisations: Sides, boss: Client, synadm: Callable[..., Any]) -> None:
    token = synadm("regtok", "new", "-u", "2")["token"]
    assert synadm("regtok", "details", token)["uses_allowed"] == 2
    synadm("regtok", "update", "-u", "5", token)
    assert token in [each["token"] for each in synadm("regtok", "list")["registration_tokens"]]
    synadm("regtok", "delete", token)
    assert "homeserver" in synadm("version")["server_version"]
    uri = boss.http.post("/_matrix/media/v3/upload", content=b"x", headers={"content-type": "text/plain"}).json()
    media_id = uri["content_uri"].rpartition("/")[2]
    assert synadm("media", "list", "-u", boss.user_id)["total"] == 1
    synadm("media", "protect", media_id)
    synadm("media", "quarantine", "-i", media_id)
    synadm("media", "purge", "--before-days", "1")
    synadm("media", "delete", "-i", media_id)


def test_requests_of_ketesa_are_answered(organisations: Sides, boss: Client) -> None:
    here, there = organisations
    alice, bob = Client(here, "alice"), Client(there, "bob")
    room_id = alice.create_room("11", preset="public_chat", name="Ketesa")
    bob.join(room_id, via=here)
    event_id = alice.send(room_id, "hello")
    user, room = quote(alice.user_id, safe=""), quote(room_id, safe="")
    page = "from=0&limit=10&dir=f"
    for path, key in (
        (f"{V3}/users?{page}&order_by=name&guests=false&deactivated=false&locked=false", "users"),
        (f"{V2}/users/{user}", "name"),
        (f"{V1}/rooms?{page}&order_by=name", "rooms"),
        (f"{V1}/rooms/{room}", "room_id"),
        (f"{V1}/event_reports?{page}", "event_reports"),
        (f"{V1}/user_reports?{page}", "user_reports"),
        (f"{V2}/users/{user}/devices?{page}", "devices"),
        (f"{V1}/whois/{user}", "devices"),
        (f"{V1}/rooms/{room}/members?{page}", "members"),
        (f"{V1}/room/{room}/media?{page}", "local"),
        (f"{V1}/rooms/{room}/state?{page}", "state"),
        (f"{V1}/users/{user}/pushers?{page}", "pushers"),
        (f"{V1}/users/{user}/joined_rooms?{page}", "joined_rooms"),
        (f"{V1}/users/{user}/memberships?{page}", "memberships"),
        (f"{V1}/users/{user}/media?{page}&order_by=media_id", "media"),
        (f"{V1}/statistics/database/rooms", "rooms"),
        (f"{V1}/statistics/users/media?{page}&order_by=media_length", "users"),
        (f"{V1}/rooms/{room}/forward_extremities?{page}", "results"),
        (f"{V1}/federation/destinations?{page}&order_by=destination", "destinations"),
        (f"{V1}/federation/destinations/{there.server_name}/rooms?{page}", "rooms"),
        (f"{V1}/scheduled_tasks", "scheduled_tasks"),
        (f"{V1}/registration_tokens?{page}", "registration_tokens"),
        (f"{V1}/experimental_features/{user}", "features"),
        (f"{V1}/users/{user}/sent_invite_count?from_ts=0", "invite_count"),
        (f"{V1}/users/{user}/cumulative_joined_room_count?from_ts=0", "cumulative_joined_room_count"),
        (f"{V1}/users/{user}/accountdata", "account_data"),
        (f"{V1}/username_available?username=new{int(time.time())}", "available"),
        (f"{V1}/rooms/{room}/block", "block"),
        (f"{V1}/rooms/{room}/timestamp_to_event?ts=1&dir=f", "event_id"),
        (f"{V1}/rooms/{room}/context/{quote(event_id)}?limit=5", "event"),
        (f"{V1}/rooms/{room}/messages?from=&limit=5&dir=b", "chunk"),
        (f"{V1}/fetch_event/{quote(event_id)}", "event"),
        (f"{V1}/server_version", "server_version"),
    ):
        assert key in boss.call("GET", path), path
    assert boss.call("GET", f"{V1}/users/{user}/override_ratelimit") == {}
    for method, path, body in (
        ("POST", f"{V1}/users/{user}/override_ratelimit", {"messages_per_second": 5, "burst_count": 5}),
        ("DELETE", f"{V1}/users/{user}/override_ratelimit", None),
        ("PUT", f"{V2}/users/{user}", {"displayname": "Al", "admin": False, "threepids": []}),
        ("PUT", f"{V1}/rooms/{room}/block", {"block": False}),
        ("POST", f"{V1}/rooms/{room}/make_room_admin", {"user_id": alice.user_id}),
        ("POST", f"{V1}/media/delete?before_ts=1&size_gt=0&keep_profiles=true", None),
        ("POST", f"{V1}/purge_media_cache?before_ts=1", None),
        ("POST", f"{V1}/room/{room}/media/quarantine", {}),
        ("POST", f"{V1}/user/{user}/media/quarantine", {}),
        ("POST", f"{V1}/purge_history/{room}", {"purge_up_to_ts": 1, "delete_local_events": False}),
        ("POST", f"{V1}/user/{user}/redact", {"rooms": []}),
        ("POST", f"{V1}/send_server_notice", {"user_id": alice.user_id, "content": {"msgtype": "m.text", "body": "x"}}),
        ("POST", f"{V2}/users/{user}/delete_devices", {"devices": []}),
        ("POST", f"{V1}/reset_password/{user}", {"new_password": "another password", "logout_devices": False}),
        ("PUT", f"{V1}/suspend/{user}", {"suspend": True}),
        ("DELETE", f"{V2}/rooms/{room}", {"block": False, "purge": True, "force_purge": False}),
        ("POST", f"{V1}/deactivate/{user}", {"erase": True}),
    ):
        boss.call(method, path, body)
