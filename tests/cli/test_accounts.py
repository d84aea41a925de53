"""`user` and `token`: accounts and registration tokens are managed while the server is running."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from homeserver import __version__
from tests.cli.programs import log_in, run, run_apart, said, serving, write_config

PASSWORD = "a pass word"


def ran(config: str, *arguments: str, stdin: str = "") -> dict[str, Any]:
    """Runs a command and returns its JSON output."""
    result = run(*arguments, "--config", config, "--json", stdin=stdin)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    return answer


def add(config: str, name: str, *more: str) -> None:
    ran(config, "user", "add", name, "--password-stdin", *more, stdin=PASSWORD)


def whoami(url: str, token: str) -> int:
    headers = {"authorization": f"Bearer {token}"}
    return httpx.get(f"{url}/_matrix/client/v3/account/whoami", headers=headers).status_code


def await_refusal(url: str, token: str) -> None:
    """The running server is told, and looks at what it is told several times a second."""
    deadline = time.monotonic() + 30
    while whoami(url, token) == 200:
        assert time.monotonic() < deadline, "the token still works"
        time.sleep(0.05)
    assert whoami(url, token) == 401


def test_a_running_server_honours_a_new_password_at_once(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (_, url):
        token = log_in(url, "alice", PASSWORD).json()["access_token"]
        assert whoami(url, token) == 200
        ran(config, "user", "passwd", "alice", "--password-stdin", "--keep-devices", stdin="the second one")
        assert log_in(url, "alice", PASSWORD).status_code == 403
        assert whoami(url, token) == 200
        ran(config, "user", "passwd", "@alice:test.example", "--password-stdin", stdin="the third one")
        await_refusal(url, token)
        assert log_in(url, "alice", "the third one").status_code == 200


def test_a_running_server_honours_a_deactivation_at_once(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (_, url):
        token = log_in(url, "alice", PASSWORD).json()["access_token"]
        headers = {"authorization": f"Bearer {token}"}
        made = httpx.post(f"{url}/_matrix/client/v3/createRoom", headers=headers, json={})
        assert made.status_code == 200
        ran(config, "user", "deactivate", "alice")
        await_refusal(url, token)
        assert log_in(url, "alice", PASSWORD).status_code == 403
        assert ran(config, "user", "show", "alice")["deactivated"]
        assert "deactivated" in said(run("user", "admin", "alice", "--config", config))


def test_accounts_are_listed_and_shown(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    add(config, "bob", "--admin")
    assert [(each["user_id"], each["admin"]) for each in ran(config, "user", "list")["users"]] == [
        ("@alice:test.example", False), ("@bob:test.example", True),
    ]  # fmt: skip
    table = run("user", "list", "--config", config).stdout.splitlines()
    assert table[0].split() == ["user", "kind", "created", "name"]
    assert [line.split()[:2] for line in table[1:]] == [["@alice:test.example", "user"], ["@bob:test.example", "admin"]]
    shown = ran(config, "user", "show", "bob")
    assert (shown["admin"], shown["has_password"], shown["devices"]) == (True, True, [])
    assert "@bob:test.example: admin" in run("user", "show", "bob", "--config", config).stdout


def test_accounts_can_be_locked_and_suspended_but_not_those_of_administrators(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    add(config, "bob", "--admin")
    assert ran(config, "user", "lock", "alice") == {"user_id": "@alice:test.example", "locked": True}
    assert ran(config, "user", "suspend", "alice") == {"user_id": "@alice:test.example", "suspended": True}
    assert "@alice:test.example: locked suspended" in run("user", "show", "alice", "--config", config).stdout
    assert ran(config, "user", "lock", "alice", "--undo") == {"user_id": "@alice:test.example", "locked": False}
    assert "@alice:test.example: suspended" in run("user", "show", "alice", "--config", config).stdout
    assert "is an administrator" in said(run("user", "lock", "bob", "--config", config))


def test_administrator_rights_can_be_granted_and_revoked(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    assert ran(config, "user", "admin", "alice") == {"user_id": "@alice:test.example", "admin": True}
    assert ran(config, "user", "show", "alice")["admin"]
    assert ran(config, "user", "admin", "alice", "--revoke") == {"user_id": "@alice:test.example", "admin": False}
    assert not ran(config, "user", "show", "alice")["admin"]


@pytest.mark.parametrize("action", ["show", "deactivate", "admin"])
def test_an_unknown_account_is_reported_in_one_sentence(tmp_path: Path, action: str) -> None:
    config = write_config(tmp_path)
    assert "there is no account nobody" in said(run("user", action, "nobody", "--config", config))
    assert "is not a user of test.example" in said(run("user", action, "@a:other.example", "--config", config))


def test_tokens_can_be_created_listed_and_revoked(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    made = ran(config, "token", "create", "--uses", "2", "--expires", "7d")
    assert list(made) == ["token"]
    plain = run("token", "create", "--token", "come-in", "--config", config)
    assert plain.stdout == "come-in\n"
    first, second = ran(config, "token", "list")["tokens"]
    assert (first["token"], first["uses_allowed"], first["completed"]) == (made["token"], 2, 0)
    assert abs(first["expiry_time"] / 1000 - time.time() - 7 * 86400) < 120
    assert (second["token"], second["uses_allowed"], second["expiry_time"]) == ("come-in", None, None)
    assert "come-in" in run("token", "list", "--config", config).stdout
    assert ran(config, "token", "revoke", "come-in") == {"token": "come-in", "revoked": True}
    assert "there is no registration token" in said(run("token", "revoke", "come-in", "--config", config))
    assert "This token already exists" in said(run("token", "create", "--token", made["token"], "--config", config))


@pytest.mark.parametrize(
    ("option", "value"), [("--uses", "0"), ("--uses", "many"), ("--expires", "7"), ("--expires", "0d")]
)
def test_malformed_tokens_are_refused(tmp_path: Path, option: str, value: str) -> None:
    config = write_config(tmp_path)
    result = run("token", "create", option, value, "--config", config)
    assert result.returncode == 2
    assert repr(value) in result.stderr


def test_users_can_register_with_a_new_token_while_the_server_runs(tmp_path: Path) -> None:
    more = "[registration]\nenabled = true\nrequire_token = true\n"
    config = write_config(tmp_path, more)
    with serving(config) as (_, url):
        token = ran(config, "token", "create", "--uses", "1")["token"]
        path = f"{url}/_matrix/client/v1/register/m.login.registration_token/validity"
        assert httpx.get(path, params={"token": token}).json() == {"valid": True}
        ran(config, "token", "revoke", token)
        assert httpx.get(path, params={"token": token}).json() == {"valid": False}


def test_the_key_can_be_shown_and_replaced_while_no_server_runs(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    assert ran(config, "keys", "show") == {"verify_keys": {}, "old_verify_keys": {}}
    add(config, "alice")
    (before,) = ran(config, "keys", "show")["verify_keys"]
    with serving(config):
        assert "in use by another server process" in said(run("keys", "new", "--config", config))
    (tmp_path / "data" / "signing.key").unlink()
    lost = said(run_apart("serve", "--config", config))
    assert "signing.key" in lost and "homeserver keys new" in lost
    made = ran(config, "keys", "new")
    keys = ran(config, "keys", "show")
    assert list(keys["verify_keys"]) == [made["key_id"]]
    assert list(keys["old_verify_keys"]) == [before]
    with serving(config) as (_, url):
        assert list(httpx.get(f"{url}/_matrix/key/v2/server").json()["verify_keys"]) == [made["key_id"]]


def test_the_version_is_printed() -> None:
    assert run_apart("--version").stdout == f"homeserver {__version__}\n"


def test_only_the_owner_can_read_stored_files(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    add(config, "alice")
    with serving(config) as (_, url):
        token = log_in(url, "alice", PASSWORD).json()["access_token"]
        headers = {"authorization": f"Bearer {token}"}
        assert httpx.post(f"{url}/_matrix/media/v3/upload", headers=headers, content=b"private").status_code == 200
        paths = [tmp_path / "data", *(tmp_path / "data").rglob("*")]
        assert len(paths) > 5
        assert [path for path in paths if path.stat().st_mode & 0o077] == []
