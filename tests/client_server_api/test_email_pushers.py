"""Emails about unread messages. Spec: client-server-api/#push-notifications"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pytest
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.federation.identifiers import EventID
from homeserver.rooms.storage import find_position
from homeserver.users.threepids import EMAIL, store_threepid
from tests.support.clock import let_days_pass
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.mail_server import MailServer, link_in, text_of
from tests.support.people import path_of, public_room, redact, say, send

ADDRESS = "bob@example.org"
DELAY_S = limits.users.EMAIL_DELAY_MS / 1000
PAUSE_S = limits.users.EMAIL_PAUSE_MS / 1000


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture
async def server(homeservers: Homeservers, mail: MailServer) -> Server:
    return await homeservers.start(email=mail.settings())


def pusher(address: str = ADDRESS, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "email",
        "app_id": "m.email",
        "pushkey": address,
        "app_display_name": "Email Notifications",
        "device_display_name": address,
        "lang": "en",
        "data": {"brand": "App"},
        **changes,
    }


async def two(server: Server) -> tuple[Client, Client, str]:
    """Alice and Bob in a room. Bob gets emails."""
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob, name="Kitchen")
    await server.write(store_threepid, bob.user_id, EMAIL, ADDRESS, 1)
    await bob.ok("POST", "pushers/set", json=pusher())
    return alice, bob, room_id


def news(mail: MailServer) -> list[EmailMessage]:
    return mail.to(ADDRESS)


async def test_one_email_tells_all_that_is_unread_after_a_while(server: Server, mail: MailServer) -> None:
    alice, bob, room_id = await two(server)
    await say(alice, room_id, "first", "second")
    await send(alice, room_id, {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x"}, kind="m.room.encrypted")
    other = await public_room(alice, bob, name="Garden")
    await say(alice, other, "third\r\nwith a line\u202e end")
    await trio.sleep(DELAY_S - 5)
    assert news(mail) == []
    await trio.sleep(10)
    (message,) = news(mail)
    assert message["Subject"] == "[test.example] 4 unread messages in 2 rooms"
    text = text_of(message)
    for line in ("Kitchen", "  alice: first", "  alice: second", "  alice: an encrypted message", "Garden"):
        assert line in text.splitlines()
    assert "  alice: third with a line end" in text.splitlines()
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"


async def test_messages_that_are_read_or_redacted_meanwhile_are_not_told(server: Server, mail: MailServer) -> None:
    alice, bob, room_id = await two(server)
    (read,) = await say(alice, room_id, "read")
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", read), json={})
    (gone,) = await say(alice, room_id, "redacted")
    await redact(alice, room_id, gone)
    await trio.sleep(2 * DELAY_S)
    assert news(mail) == []


async def test_emails_become_rarer_until_the_user_reads(server: Server, mail: MailServer) -> None:
    alice, bob, room_id = await two(server)
    sent: list[float] = []
    for number in range(60):
        if len(news(mail)) > len(sent):
            sent.append(trio.current_time())
        if number % 2 == 0:
            last = (await say(alice, room_id, f"{number}"))[0]
        await trio.sleep(DELAY_S * 2)
    pauses = [(after - before) / PAUSE_S for before, after in itertools.pairwise(sent)]
    assert pauses[0] < pauses[1] < pauses[2]
    assert pauses[0] == pytest.approx(1, abs=0.7)
    assert max(pauses) <= limits.users.EMAIL_PAUSE_MS_MAX / limits.users.EMAIL_PAUSE_MS + 1
    await bob.ok("POST", path_of(room_id, "receipt", "m.read", last), json={})
    await let_days_pass(1)
    before = len(news(mail))
    await say(alice, room_id, "a new one")
    await trio.sleep(DELAY_S + 60)
    assert len(news(mail)) == before + 1


async def test_a_link_and_a_button_of_mail_programs_end_the_emails(server: Server, mail: MailServer) -> None:
    alice, bob, room_id = await two(server)
    await say(alice, room_id, "hello")
    await trio.sleep(DELAY_S + 60)
    path, query = link_in(news(mail)[0])
    assert (await server.http.get(path, params=query)).status_code == 200
    for wrong in ({"token": "x"}, {"pusher": "1"}):
        assert (await server.http.post(path, params={**query, **wrong})).status_code == 404
    assert len((await bob.ok("GET", "pushers"))["pushers"]) == 1
    headers = {"content-type": "application/x-www-form-urlencoded"}
    body = b"List-Unsubscribe=One-Click"
    assert (await server.http.post(path, params=query, content=body, headers=headers)).status_code == 200
    assert (await bob.ok("GET", "pushers"))["pushers"] == []
    assert (await server.http.post(path, params=query)).status_code == 404


async def test_only_an_address_of_the_account_gets_emails(server: Server) -> None:
    alice, bob, _ = await two(server)
    assert await alice.refused("POST", "pushers/set", json=pusher()) == (400, "M_THREEPID_NOT_FOUND")
    for wrong in (
        pusher(app_id="org.example.app"),
        pusher(kind="http", data={"url": "https://a/_matrix/push/v1/notify"}),
    ):
        assert await bob.refused("POST", "pushers/set", json=wrong) == (400, "M_INVALID_PARAM")
    (known,) = (await bob.ok("GET", "pushers"))["pushers"]
    assert {**known, "append": False} == {**pusher(), "append": False}
    await bob.ok("POST", "account/3pid/delete", json={"medium": "email", "address": ADDRESS})
    assert (await bob.ok("GET", "pushers"))["pushers"] == []


async def test_emails_go_on_when_the_device_that_asked_is_logged_out(server: Server) -> None:
    _, bob, _ = await two(server)
    other = await server.log_in("bob")
    await bob.ok("POST", "logout", json={})
    assert len((await other.ok("GET", "pushers"))["pushers"]) == 1


async def test_without_a_mail_server_there_are_no_email_pushers(homeserver: Server) -> None:
    bob = await homeserver.register("bob")
    assert await bob.refused("POST", "pushers/set", json=pusher()) == (400, "M_INVALID_PARAM")


ODD_NAMES = (
    "=?utf-8?q?=0ABcc:_x@example.org?= " + "x" * 80,
    "\u0301" + "a" * 80 + "?=?=?= " + "a" * 80 + "=?x?b?zz?=\u0645\u0631\u062d\u0628\u0627",
    "\u00e9\U00028810," + '"=?x?b?zz?=,("\u6487',
)


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_the_subject_tells_the_name_of_a_room_whatever_it_is(server: Server, mail: MailServer, name: str) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    room_id = await public_room(alice, bob, name=name)
    await server.write(store_threepid, bob.user_id, EMAIL, ADDRESS, 1)
    await bob.ok("POST", "pushers/set", json=pusher())
    await say(alice, room_id, f"From {name}")
    await trio.sleep(DELAY_S + 60)
    (message,) = news(mail)
    assert str(message["Subject"]).endswith(name) and "Bcc" not in message
    assert f"  alice: From {name}" in text_of(message).splitlines()


async def test_an_event_that_cannot_be_read_keeps_no_other_from_being_told(server: Server, mail: MailServer) -> None:
    alice, bob, room_id = await two(server)
    other = await public_room(alice, bob, name="Garden")
    (damaged,) = await say(alice, room_id, "damaged")
    await say(alice, other, "whole")
    await server.write(_damage, damaged)
    await server.read(_empty_caches)
    await trio.sleep(2 * DELAY_S + 300)
    (message,) = news(mail)
    assert "  alice: whole" in text_of(message).splitlines() and "damaged" not in text_of(message)


def _damage(tx: Transaction, event_id: EventID) -> None:
    tx.run("UPDATE events SET content = ? WHERE position = ?", b"\x01" + b"\xff" * 40, find_position(tx, event_id))


def _empty_caches(tx: Transaction) -> None:
    tx._cache.caches._by_name.clear()
