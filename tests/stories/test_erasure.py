"""Nothing remains of a user who was erased but what `docs/erasure.md` lists, each with its reason.

Every table is looked through, whatever is in it: so a new table has to be thought of.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pytest
import trio

from homeserver import limits
from homeserver.config import AtRest, Email
from homeserver.database import Transaction
from homeserver.database.compression import CorruptData, decompress
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.users.inventory import INVENTORY
from homeserver.users.notice_rooms import get_notice_room
from homeserver.users.oauth.cross_signing import note_reset_approved
from homeserver.users.oauth.device_grants import approve_device_grant, open_device_grant
from homeserver.users.passkeys import NewPasskey, create_passkey
from homeserver.users.presence import find_presence
from homeserver.users.single_sign_on import Goal, create_attempt, insert_external_id, set_confirming
from homeserver.users.status import store_heartbeats
from homeserver.users.threepids import EMAIL, store_binding, store_threepid
from tests.support.browser import Browser
from tests.support.engine import ENGINE, list_tables
from tests.support.federation import Federation, join, until
from tests.support.homeservers import PASSWORD, Client, Server
from tests.support.keys import CrossSigning, Device
from tests.support.oauth import DEVICE, post_form, register_app, scope_of
from tests.support.sliding import slide, window

PAGE = (Path(__file__).parents[2] / "docs" / "erasure.md").read_text()
KEPT = {match[1] for match in re.finditer(r"^\| `(\w+\.[\w*]+)` \|", PAGE, re.MULTILINE)}
WITHOUT_USERS = {
    name
    for line in re.findall(r"^\| (`\w+`(?:, `\w+`)*) \|", PAGE, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", line)
}
SECRETS = ("alice", "Al of Wonderland", "out to lunch", "org.example.secret", "My telephone", "holiday.png")
"""What only this user has said, is called, or comes from."""


def list_columns(tx: Transaction, table: str) -> list[str]:
    if ENGINE == "sqlite":
        return [row[1] for row in tx.all(f"PRAGMA table_info({table})")]
    return tx.values(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'public' AND table_name = ?"
        " ORDER BY ordinal_position",
        table,
    )


def find_traces(tx: Transaction, user_id: str, tables: list[str]) -> set[str]:
    """Each `table.column` in which something says the user's number, id, or one of the secrets."""
    nids = {tx.find(value) for value in (user_id, *SECRETS)} - {None}
    found = set()
    for table in tables:
        columns = list_columns(tx, table)
        for row in tx.all(f"SELECT {', '.join(columns)} FROM {table}"):
            found |= {
                f"{table}.{column}"
                for column, value in zip(columns, row, strict=True)
                if (column.endswith("_nid") and value in nids) or _tells(value)
            }
    return found


def _tells(value: object) -> bool:
    if isinstance(value, bytes | memoryview):
        data = bytes(value)
        try:
            data += decompress(data, 1 << 20)
        except CorruptData:
            pass  # it is not compressed
        return any(secret.encode() in data for secret in SECRETS)
    return isinstance(value, str) and any(secret in value for secret in SECRETS)


def is_listed(column: str) -> bool:
    return column in KEPT or f"{column.partition('.')[0]}.*" in KEPT


def columns_listed() -> set[str]:
    """The columns by which the inventory finds rows of a user, and those of events, which are exported apart."""
    return {f"{each.table}.{each.column}" for each in INVENTORY} | {
        "events.sender_nid", "events.state_key_nid", "account_data.type_nid",
    }  # fmt: skip


async def leave_traces(server: Server, bob: Client, federation: Federation) -> Client:
    """A user who has used everything that there is."""
    phone = {"initial_device_display_name": "My telephone", "device_id": "PHONE"}
    flows = await server.anonymous.post("register", json={"username": "alice"})
    in_session = {"type": "m.login.dummy", "session": flows.json()["session"]}
    alice = await server.register("alice", auth=in_session, **phone)
    own = quote(alice.user_id)
    room_id = await server.make_room(alice, bob)
    room = f"rooms/{quote(room_id)}"
    message = {"msgtype": "m.text", "body": "org.example.secret"}
    sent = await alice.ok("PUT", f"{room}/send/m.room.message/1", json=message)
    related = {"m.relates_to": {"rel_type": "m.thread", "event_id": sent["event_id"]}}
    await alice.ok("PUT", f"{room}/send/m.room.message/2", json={**message, **related})
    thread = f"rooms/{quote(room_id)}/thread/{quote(sent['event_id'])}/subscription"
    await alice.ok("PUT", f"/_matrix/client/unstable/io.element.msc4306/{thread}", json={})
    for path, body in {
        f"profile/{own}/displayname": {"displayname": "Al of Wonderland"},
        f"presence/{own}/status": {"presence": "online", "status_msg": "out to lunch"},
        f"user/{own}/account_data/org.example.secret": {"a": 1},
        f"user/{own}/{room}/account_data/org.example.secret": {"a": 1},
        f"user/{own}/{room}/tags/org.example.secret": {"order": 0.5},
        f"{room}/typing/{own}": {"typing": True, "timeout": 30_000},
        f"directory/room/{quote('#tea:' + server.name)}": {"room_id": room_id},
        "pushrules/global/content/org.example.secret": {"pattern": "alice", "actions": ["notify"]},
    }.items():
        assert (await alice.put(path, json=body)).status_code == 200, path
    secret = {"*": {"text": "org.example.secret"}}
    recipients = {alice.user_id: secret, bob.user_id: secret, "@carol:gone.example": secret}
    await alice.ok("PUT", "sendToDevice/org.example.secret/1", json={"messages": recipients})
    await alice.ok("POST", f"user/{own}/filter", json={"event_fields": ["org.example.secret"]})
    await alice.ok("POST", f"{room}/receipt/m.read/{quote(sent['event_id'])}", json={})
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}, "refresh_token": True}
    await server.anonymous.ok("POST", "login", json={**login, "password": "correct horse battery staple"})
    for path in (f"{room}/report", f"{room}/report/{quote(sent['event_id'])}", f"users/{quote(bob.user_id)}/report"):
        await alice.ok("POST", path, json={"reason": "org.example.secret"})
    await bob.ok("POST", f"users/{own}/report", json={"reason": "loud"})
    await alice.ok("PUT", f"{room}/send/m.room.message/later?org.matrix.msc4140.delay=9000000", json=message)
    await server.write(leave_sign_on, alice.user_id)
    await leave_keys(alice, bob)
    await leave_notifications(alice, bob, room_id)
    await alice.post("/_matrix/media/v3/upload?filename=holiday.png", content=b"x" * 100)
    await alice.post("/_matrix/media/v1/create")
    await alice.post(
        "/_homeserver/client/v1/uploads",
        headers={
            "tus-resumable": "1.0.0",
            "upload-length": "9",
            "upload-metadata": "filename b3JnLmV4YW1wbGUuc2VjcmV0",
        },
    )
    await alice.post("account/password", json={"new_password": "another long password"})  # begins a session
    await back_up_keys(alice, room_id)
    await alice.ok("POST", f"user/{own}/openid/request_token", json={})
    await leave_addresses(server, alice)
    await Browser(server.app, server.name).log_in("alice", PASSWORD)
    await server.write(create_passkey, alice.user_id, NewPasskey(b"id", b"key", 0), SECRETS[4])
    await leave_oauth(server, alice)
    await alice.get("sync?timeout=0")
    await server.write(store_heartbeats)
    await bob.ok("PUT", f"{room}/send/m.room.message/delivered", json={"msgtype": "m.text", "body": "tea?"})
    token = (await alice.ok("GET", "sync?timeout=0"))["next_batch"]
    await alice.ok("GET", f"sync?timeout=0&since={token}")
    await trio.sleep(limits.users.DELIVERED_INTERVAL_S + 0.1)
    await leave_friends(alice, bob, federation)
    await slide(alice, conn_id="org.example.secret", lists={"all": window(state=[["org.example.secret", ""]])})
    return alice


async def leave_friends(alice: Client, bob: Client, federation: Federation) -> None:
    """A friend, and a request to a person whose server is away."""
    federation.network.cut("a.example", "away.example")
    for client, other in ((alice, bob.user_id), (bob, alice.user_id), (alice, "@dave:away.example")):
        body = {"message": SECRETS[3]}
        await client.ok("PUT", f"/_homeserver/client/v1/friends/{quote(other)}", json=body)


async def leave_notifications(alice: Client, bob: Client, room_id: str) -> None:
    """A pusher whose gateway is away, with something in its queue, and mentions in both directions."""
    data = {"url": "https://gone.example/_matrix/push/v1/notify", "secret": SECRETS[3]}
    names = {"app_display_name": SECRETS[3], "device_display_name": SECRETS[4], "lang": "en"}
    pusher = {"kind": "http", "app_id": SECRETS[3], "pushkey": SECRETS[3], "data": data, **names}
    await alice.ok("POST", "pushers/set", json=pusher)
    for client, other in ((alice, bob), (bob, alice)):
        content = {"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": [other.user_id]}}
        await client.ok("PUT", f"rooms/{quote(room_id)}/send/m.room.message/mention", json=content)
    await trio.sleep(25)  # until she is counted as active


async def leave_addresses(server: Server, alice: Client) -> None:
    """An email address of the account, which is bound, and another one that is being validated."""
    await server.write(store_threepid, alice.user_id, EMAIL, "alice@mail.example", 1)
    await server.write(get_notice_room, alice.user_id)
    await server.write(store_binding, alice.user_id, EMAIL, "alice@mail.example", ServerName("identity.example"))
    body = {"client_secret": "secret", "email": "alice@work.example", "send_attempt": 1}
    await alice.ok("POST", "account/3pid/email/requestToken", json=body)


async def leave_oauth(server: Server, alice: Client) -> None:
    """A client that is logged in, and two that have not exchanged their codes."""
    app = await register_app(server)
    await app.log_in(alice.user_id)
    await app.get_code(alice.user_id)
    codes = (await post_form(server, DEVICE, client_id=app.client_id, scope=scope_of("TELEVISION"))).json()
    grant = await open_device_grant(server.hs, alice.user_id, codes["user_code"])
    await server.write(approve_device_grant, grant, alice.user_id)
    await server.write(note_reset_approved, alice.user_id)


async def back_up_keys(alice: Client, room_id: str) -> None:
    """Two versions of a backup, of which one is gone already."""
    algorithm = "m.megolm_backup.v1.curve25519-aes-sha2"
    key = {"first_message_index": 0, "forwarded_count": 0, "is_verified": True, "session_data": {"a": SECRETS[3]}}
    for version in "12":
        await alice.ok("POST", "room_keys/version", json={"algorithm": algorithm, "auth_data": {"a": SECRETS[3]}})
        await alice.ok("PUT", f"room_keys/keys/{quote(room_id)}/{SECRETS[3]}?version={version}", json=key)
    await alice.ok("DELETE", "room_keys/version/1")


def leave_sign_on(tx: Transaction, user_id: UserID) -> None:
    """A provider knows the user, and a log-in with it is under way."""
    insert_external_id(tx, user_id, "example", "alice")
    set_confirming(tx, create_attempt(tx, "example", Goal.CLIENT, "https://client.example/", "browser"), user_id)


async def leave_keys(alice: Client, bob: Client) -> None:
    """Keys of a device, one of them issued, cross-signing keys, and signatures on and by those of another user."""
    device = Device(alice.user_id, alice.device_id)
    body = {"device_keys": device.keys(), "one_time_keys": device.one_time_keys(2)}
    await alice.ok("POST", "keys/upload", json={**body, "fallback_keys": device.fallback_key("F")})
    claim = {"one_time_keys": {alice.user_id: {alice.device_id: "signed_curve25519"}}}
    assert (await bob.ok("POST", "keys/claim", json=claim))["one_time_keys"]
    body = {"device_id": "DRIED", "device_keys": Device(alice.user_id, "DRIED").keys()}
    path = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"
    await alice.ok("PUT", path, json={**body, "device_data": {"algorithm": SECRETS[3]}})
    people = [(client, CrossSigning(client.user_id)) for client in (alice, bob)]
    for client, keys in people:
        await client.ok("POST", "keys/device_signing/upload", json=keys.body())
    for (client, keys), (other, others) in zip(people, reversed(people), strict=True):
        signed = {other.user_id: {others.master.public: keys.by_user_signing(others.master_key())}}
        assert await client.ok("POST", "keys/signatures/upload", json=signed) == {"failures": {}}


async def test_erasure_leaves_only_documented_data(federation: Federation) -> None:
    nowhere = Email(smtp_host="127.0.0.1", smtp_port=9, from_address="noreply@a.example")
    open_rows = AtRest(events=False, media=False, archive=False)  # a seal would hide what is searched for
    server = await federation.start("a.example", email=nowhere, at_rest=open_rows)
    other = await federation.start("b.example")
    bob, carol = await server.register("bob"), await other.register("carol")
    elsewhere = await other.make_room(carol)
    alice = await leave_traces(server, bob, federation)
    await join(alice, elsewhere, other.name)
    tables = await server.read(list_tables)
    traces = await server.read(find_traces, alice.user_id, tables)
    before = {column.partition(".")[0] for column in traces}
    listed = {each.table for each in INVENTORY}
    assert before - listed == {"strings", "events"}, "tables with data of the user: list them in users/inventory.py"
    assert {column for column in traces if column.endswith("_nid")} - columns_listed() == set()
    assert listed - set(tables) == set()
    unused = set(tables) - before - WITHOUT_USERS
    unused -= {name.partition(".")[0] for name in KEPT} | {
        "departures",
        "profile_updates",
        "profile_renames",
        "account_flags",
    }
    assert not unused, "tables that hold nothing of this user: fill them above, or list them in docs/erasure.md"

    await alice.ok("POST", "account/deactivate", json={"erase": True, "auth": alice.password_auth()})

    async def is_done() -> bool:
        return not await server.read(lambda tx: tx.all("SELECT user_nid FROM departures"))

    async def backups_are_gone() -> bool:
        return not await server.read(lambda tx: tx.all("SELECT store FROM key_backup_deletions"))

    await until(is_done)
    await until(backups_are_gone)
    after = await server.read(find_traces, alice.user_id, tables)
    assert {column for column in after if not is_listed(column)} == set()
    presence = await server.read(find_presence, alice.user_id)
    assert (presence.status_msg, presence.last_active_ms) == (None, 0)
    assert not server.hs.token_cache.last_seen(alice.user_id, alice.device_id)
    assert not [key for key in server.hs.rate_limits._buckets if alice.user_id in key]


@pytest.mark.parametrize("kind", ["invite", "knock"])
@pytest.mark.parametrize("away", [False, True])
async def test_erasure_ends_invites_and_knocks_on_other_servers(federation: Federation, kind: str, away: bool) -> None:
    """Also if that server is away at that moment, and this one is killed before it is back."""
    server, other = await federation.start("a.example"), await federation.start("b.example")
    alice, carol = await server.register("alice"), await other.register("carol")
    rules = {"type": "m.room.join_rules", "state_key": "", "content": {"join_rule": "knock"}}
    body = {"preset": "private_chat", "initial_state": [rules]}
    room_id = (await carol.ok("POST", "createRoom", json=body))["room_id"]
    if kind == "invite":
        await carol.ok("POST", f"rooms/{quote(room_id)}/invite", json={"user_id": alice.user_id})
    else:
        await alice.ok("POST", f"knock/{quote(room_id)}?via={other.name}", json={})
    if away:
        federation.network.cut("a.example", "b.example")
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    if away:
        await federation.kill("a.example")
        federation.network.heal()
        await federation.start("a.example")

    async def has_left() -> bool:
        path = f"rooms/{quote(room_id)}/state/m.room.member/{quote(alice.user_id)}"
        return bool((await carol.get(path)).json().get("membership") == "leave")

    await until(has_left)
