"""Email addresses of accounts, and what they are for: passwords, log-ins, registration.

Spec: client-server-api/#adding-account-administrative-contact-information, #password-management
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from homeserver import limits
from homeserver.config import RateLimitsSection, Registration
from tests.support.clock import let_days_pass
from tests.support.federation import until
from tests.support.homeservers import Client, Homeservers, Server
from tests.support.mail_server import MailServer, link_in, text_of
from tests.support.rows import row

ADDRESS = "alice@example.org"


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture
async def server(homeservers: Homeservers, mail: MailServer) -> Server:
    return await homeservers.start(email=mail.settings(), registration=Registration(enabled=True))


async def ask(client: Client, of: str = "account/3pid", **changes: Any) -> dict[str, Any]:
    """Asks for an email, and returns what a client keeps: the ID of the validation and the secret."""
    body = {"client_secret": "secret", "email": ADDRESS, "send_attempt": 1, **changes}
    answer = await client.ok("POST", f"{of}/email/requestToken", json=body)
    return {"sid": answer["sid"], "client_secret": body["client_secret"]}


async def receive(mail: MailServer, address: str = ADDRESS, number: int = 1) -> tuple[str, dict[str, str]]:
    """Waits for an email, and returns its link."""

    async def is_there() -> bool:
        return len(mail.to(address)) >= number

    await until(is_there, f"an email to {address}", seconds=48 * 3600)
    return link_in(mail.to(address)[number - 1])


async def press(server: Server, link: tuple[str, dict[str, str]]) -> int:
    path, query = link
    return (await server.http.post(path, params=query)).status_code


async def add(client: Client, creds: dict[str, Any]) -> Any:
    return await client.post("account/3pid/add", json={**creds, "auth": client.password_auth()})


async def add_address(mail: MailServer, client: Client, address: str = ADDRESS) -> None:
    creds = await ask(client, email=address)
    await press(client.server, await receive(mail, address))
    assert (await add(client, creds)).status_code == 200


async def addresses(client: Client) -> list[str]:
    return [each["address"] for each in (await client.ok("GET", "account/3pid"))["threepids"]]


# Adding and deleting


async def test_an_address_is_added_once_its_owner_has_pressed_the_button(server: Server, mail: MailServer) -> None:
    alice = await server.register("alice")
    creds = await ask(alice, email=" Alice@Example.org ")
    refused = await add(alice, creds)
    assert (refused.status_code, refused.json()["errcode"]) == (400, "M_THREEPID_AUTH_FAILED")
    link = await receive(mail)
    shown = await server.http.get(link[0], params=link[1])  # as a program does that looks for harmful links
    assert (shown.status_code, ADDRESS in shown.text, "<script" in shown.text) == (200, True, False)
    assert (await add(alice, creds)).status_code == 400
    assert await press(server, link) == 200
    assert (await add(alice, creds)).status_code == 200
    (known,) = (await alice.ok("GET", "account/3pid"))["threepids"]
    assert (known["medium"], known["address"]) == ("email", ADDRESS)
    assert 0 < known["validated_at"] <= known["added_at"]
    assert (await add(alice, creds)).status_code == 400  # it can be used once
    assert await press(server, link) == 404
    deleted = await alice.ok("POST", "account/3pid/delete", json={"medium": "email", "address": "ALICE@example.org"})
    assert deleted == {"id_server_unbind_result": "no-support"}
    assert await addresses(alice) == []


async def test_adding_an_address_needs_the_password(server: Server, mail: MailServer) -> None:
    alice = await server.register("alice")
    creds = await ask(alice)
    await press(server, await receive(mail))
    assert (await alice.post("account/3pid/add", json=creds)).status_code == 401


async def test_the_email_says_what_it_is_about_and_comes_once(server: Server, mail: MailServer) -> None:
    alice = await server.register("alice")
    first = await ask(alice)
    await receive(mail)
    assert await ask(alice) == first
    await trio.sleep(60)
    (message,) = mail.to(ADDRESS)
    assert (message["From"], message["To"]) == ("Example <noreply@example.org>", ADDRESS)
    assert message["Auto-Submitted"] == "auto-generated"
    assert alice.user_id in text_of(message)
    assert await ask(alice, send_attempt=2) == first
    assert await receive(mail, number=2) == link_in(message)


async def test_an_address_belongs_to_one_account(server: Server, mail: MailServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    early = await ask(bob, client_secret="bobs")
    await press(server, await receive(mail))
    creds = await ask(alice)
    await press(server, await receive(mail, number=2))
    assert (await add(alice, creds)).status_code == 200
    late = await add(bob, early)
    assert (late.status_code, late.json()["errcode"]) == (400, "M_THREEPID_IN_USE")
    body = {"client_secret": "s", "email": ADDRESS, "send_attempt": 1}
    for path in ("account/3pid", "register"):
        assert await bob.refused("POST", f"{path}/email/requestToken", json=body) == (400, "M_THREEPID_IN_USE")
    await bob.ok("POST", "account/3pid/delete", json={"medium": "email", "address": ADDRESS})
    assert await addresses(alice) == [ADDRESS]


async def test_a_validation_is_for_one_purpose_and_one_secret(server: Server, mail: MailServer) -> None:
    alice = await server.register("alice")
    creds = await ask(alice, "register")
    path, query = await receive(mail)
    assert await press(server, (path, {**query, "token": "x"})) == 404
    assert await press(server, (path, {**query, "client_secret": "x"})) == 404
    assert await press(server, (path, query)) == 200
    assert (await add(alice, creds)).status_code == 400
    own = await ask(alice)
    await press(server, await receive(mail, number=2))
    assert (await add(alice, {**own, "client_secret": "x"})).status_code == 400


async def test_links_end_after_a_day(server: Server, mail: MailServer) -> None:
    alice = await server.register("alice")
    creds = await ask(alice)
    link = await receive(mail)
    await press(server, link)
    await trio.sleep(limits.users.EMAIL_VALIDATION_LIFETIME_MS / 1000 + 1)
    assert await press(server, link) == 404
    assert (await add(alice, creds)).status_code == 400
    assert await ask(alice) != creds


NO_ADDRESSES = ("", "alice", "@example.org", "alice@", "a@b@c", "a b@example.org", "a\r\nBcc: x@example.org", "<a@b>")


@pytest.mark.parametrize(
    "address", [*NO_ADDRESSES, "a@b,c@d", "ä@example.org", "x" * 251 + "@b.c", "=?utf-8?q?a=40b?=@c.d"]
)
async def test_texts_that_are_not_addresses_get_no_email(server: Server, mail: MailServer, address: str) -> None:
    alice = await server.register("alice")
    body = {"client_secret": "secret", "email": address, "send_attempt": 1}
    assert await alice.refused("POST", "account/3pid/email/requestToken", json=body) == (400, "M_INVALID_EMAIL")
    await trio.sleep(60)
    assert mail.received == []


async def test_an_inbox_cannot_be_filled(homeservers: Homeservers, mail: MailServer) -> None:
    server = await homeservers.start(email=mail.settings(), rate_limits=RateLimitsSection(enabled=True))
    alice = await server.register("alice")
    body = {"client_secret": "secret", "email": ADDRESS}
    answers = [
        await alice.post("account/3pid/email/requestToken", json={**body, "send_attempt": n}) for n in range(1, 10)
    ]
    assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 6


async def test_addresses_are_forgotten_with_the_account(server: Server, mail: MailServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await add_address(mail, alice)
    await alice.ok("POST", "account/deactivate", json={"auth": alice.password_auth()})
    creds = await ask(bob, client_secret="bobs")
    await press(server, await receive(mail, number=2))
    assert (await add(bob, creds)).status_code == 200


async def test_an_address_is_added_to_no_other_account_than_the_email_says(server: Server, mail: MailServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    creds = await ask(alice)
    await press(server, await receive(mail))
    refused = await add(bob, creds)
    assert (refused.status_code, refused.json()["errcode"]) == (400, "M_THREEPID_AUTH_FAILED")
    assert (await add(alice, creds)).status_code == 200
    early = await ask(Client(server), client_secret="early", email="bob@example.org")  # without a token
    await press(server, await receive(mail, "bob@example.org"))
    assert "to an account on test.example" in text_of(mail.to("bob@example.org")[0])
    assert (await add(bob, early)).status_code == 200


async def test_numbers_that_cannot_be_stored_are_refused(server: Server) -> None:
    for attempt in [2**53, 2**63, -(2**63) - 1, 10**30]:
        with row(attempt):
            body = {"client_secret": "secret", "email": ADDRESS, "send_attempt": attempt}
            path = "account/password/email/requestToken"
            assert await Client(server).refused("POST", path, json=body) == (400, "M_INVALID_PARAM")


# Passwords, log-ins, registration


async def test_a_forgotten_password_is_replaced_by_email(server: Server, mail: MailServer) -> None:
    alice = await server.register("alice")
    await add_address(mail, alice)
    stranger = Client(server)
    creds = await ask(stranger, "account/password")
    auth = {"type": "m.login.email.identity", "threepid_creds": creds, "threepidCreds": creds}
    body = {"new_password": "a new password"}
    begun = await stranger.post("account/password", json=body)
    assert (begun.status_code, begun.json()["flows"]) == (401, [{"stages": ["m.login.email.identity"]}])
    auth["session"] = begun.json()["session"]
    early = await stranger.post("account/password", json={**body, "auth": auth})
    assert (early.status_code, early.json()["errcode"]) == (401, "M_UNAUTHORIZED")
    await press(server, await receive(mail, number=2))
    assert (await stranger.post("account/password", json={**body, "auth": auth})).status_code == 200
    assert (await alice.get("account/whoami")).status_code == 401  # all devices are logged out
    login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
    assert (await stranger.post("login", json={**login, "password": "a new password"})).status_code == 200
    again = await stranger.post("account/password", json={"new_password": "another one", "auth": auth})
    assert again.status_code == 401


async def test_an_email_about_one_account_sets_no_password_of_another(server: Server, mail: MailServer) -> None:
    alice, bob = await server.register("alice"), await server.register("bob")
    await add_address(mail, alice)
    stranger = Client(server)
    creds = await ask(stranger, "account/password")
    await press(server, await receive(mail, number=2))
    await alice.ok("POST", "account/3pid/delete", json={"medium": "email", "address": ADDRESS})
    bobs = await ask(bob, client_secret="bobs")
    await press(server, await receive(mail, number=3))
    assert (await add(bob, bobs)).status_code == 200
    auth = {"type": "m.login.email.identity", "threepid_creds": creds}
    body = {"new_password": "a new password", "auth": auth}
    assert await stranger.refused("POST", "account/password", json=body) == (400, "M_THREEPID_AUTH_FAILED")
    assert (await bob.get("account/whoami")).status_code == 200
    again = await ask(stranger, "account/password", send_attempt=2)
    assert again != creds and bob.user_id in text_of(await last(mail))


async def last(mail: MailServer) -> EmailMessage:
    await receive(mail, number=4)
    return mail.to(ADDRESS)[-1]


async def test_nobody_gets_an_email_for_an_unknown_account(server: Server, mail: MailServer) -> None:
    body = {"client_secret": "secret", "email": ADDRESS, "send_attempt": 1}
    refused = await Client(server).refused("POST", "account/password/email/requestToken", json=body)
    assert refused == (400, "M_THREEPID_NOT_FOUND")
    await trio.sleep(60)
    assert mail.received == []


async def test_users_log_in_with_an_address(server: Server, mail: MailServer) -> None:
    alice = await server.register("alice")
    await add_address(mail, alice)
    identifier = {"type": "m.id.thirdparty", "medium": "email", "address": "Alice@example.org"}
    body = {"type": "m.login.password", "identifier": identifier, "password": alice.password_auth()["password"]}
    assert (await Client(server).ok("POST", "login", json=body))["user_id"] == alice.user_id
    old = {**body, "identifier": None, "medium": "email", "address": ADDRESS}
    assert (await Client(server).ok("POST", "login", json=old))["user_id"] == alice.user_id
    for wrong in ({"password": "wrong"}, {"identifier": {**identifier, "address": "bob@example.org"}}):
        assert await Client(server).refused("POST", "login", json={**body, **wrong}) == (403, "M_FORBIDDEN")


async def test_guesses_at_unknown_addresses_are_counted_like_those_at_known_ones(
    homeservers: Homeservers, mail: MailServer
) -> None:
    """An answer of another kind would tell which addresses have accounts."""
    server = await homeservers.start(email=mail.settings(), rate_limits=RateLimitsSection(enabled=True))
    statuses: set[int] = set()
    for number in range(20):
        identifier = {"type": "m.id.thirdparty", "medium": "email", "address": f"unknown{number}@example.org"}
        body = {"type": "m.login.password", "identifier": identifier, "password": "wrong"}
        statuses.add((await Client(server).post("login", json=body)).status_code)
        await trio.sleep(6)
    assert statuses == {403}


async def test_users_register_with_an_address(server: Server, mail: MailServer) -> None:
    stranger = Client(server)
    body = {"username": "carol", "password": "a good password"}
    begun = (await stranger.post("register", json=body)).json()
    assert begun["flows"] == [{"stages": ["m.login.dummy"]}, {"stages": ["m.login.email.identity"]}]
    creds = await ask(stranger, "register")
    await press(server, await receive(mail))
    auth = {"type": "m.login.email.identity", "threepid_creds": creds, "session": begun["session"]}
    made = await stranger.ok("POST", "register", json={**body, "auth": auth})
    carol = server.with_token(made["access_token"])
    assert await addresses(carol) == [ADDRESS]


# Mail servers


async def test_phones_are_not_supported(server: Server) -> None:
    for of in ("account/3pid", "register", "account/password"):
        refused = await Client(server).refused("POST", f"{of}/msisdn/requestToken", json={})
        assert refused == (400, "M_THREEPID_MEDIUM_NOT_SUPPORTED")


async def test_without_a_mail_server_nothing_is_offered(homeserver: Server) -> None:
    alice = await homeserver.register("alice")
    body = {"client_secret": "secret", "email": ADDRESS, "send_attempt": 1}
    assert await alice.refused("POST", "account/3pid/email/requestToken", json=body) == (403, "M_THREEPID_DENIED")
    capabilities = (await alice.ok("GET", "capabilities"))["capabilities"]
    assert capabilities["m.3pid_changes"] == {"enabled": False}
    refused = await Client(homeserver).refused("POST", "account/password", json={"new_password": "a new password"})
    assert refused == (401, "M_MISSING_TOKEN")


async def test_email_waits_for_a_mail_server_that_is_broken(
    server: Server, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    mail.silent = True
    await ask(Client(server), "register")
    await trio.sleep(10 * 60)
    assert mail.received == []
    assert any(record.message == "email not sent" for record in caplog.records)
    assert not [
        record for record in caplog.records if record.levelno >= logging.ERROR or ADDRESS in record.getMessage()
    ]
    mail.silent = False
    await receive(mail)
    await let_days_pass(2)
    assert len(mail.received) == 1


async def test_email_that_is_refused_stops_no_other(server: Server, mail: MailServer) -> None:
    mail.answers = {"gone@example.org": "550 no such user", "full@example.org": "452 try later"}
    for address in ("gone@example.org", "full@example.org", ADDRESS):
        await ask(Client(server), "register", email=address)
    await receive(mail)
    mail.answers = {}
    await receive(mail, "full@example.org")
    await let_days_pass(2)
    assert mail.to("gone@example.org") == []


async def test_an_email_that_ends_the_connection_holds_up_no_other(server: Server, mail: MailServer) -> None:
    mail.answers = {"poison@example.org": "421 go away"}
    for address in ("poison@example.org", ADDRESS):
        await ask(Client(server), "register", email=address)
    await trio.sleep(60)
    assert len(mail.to(ADDRESS)) == 1


async def test_email_that_nobody_takes_is_dropped_after_a_day(server: Server, mail: MailServer) -> None:
    mail.silent = True
    await ask(Client(server), "register")
    await trio.sleep(5)
    age = limits.users.MAIL_AGE_MS
    assert await server.write(lambda tx: tx.run("UPDATE outgoing_mail SET queued_ms = queued_ms - ?", age)) == 1
    await trio.sleep(2 * limits.users.MAIL_RETRY_MS / 1000)
    assert await server.read(lambda tx: tx.all("SELECT 1 FROM outgoing_mail")) == []


async def test_the_mail_server_may_ask_for_a_password(homeservers: Homeservers, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("smtp password\n")
    with MailServer(password="smtp password") as mail:
        settings = mail.settings(smtp_user="us", smtp_password_file=str(tmp_path / "password"))
        server = await homeservers.start(email=settings)
        await ask(Client(server), "register")
        await receive(mail)


async def test_email_is_sent_through_tls_that_is_verified(
    homeservers: Homeservers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    (tmp_path / "server.pem").write_bytes(ca.issue_cert("localhost").private_key_and_cert_chain_pem.bytes())
    with MailServer(certificate=tmp_path / "server.pem") as mail:
        server = await homeservers.start(email=mail.settings(smtp_tls="starttls"))
        await ask(Client(server), "register")
        await trio.sleep(60)
        assert mail.received == []  # the certificate is of an authority that nobody knows
        ca.cert_pem.write_to_path(tmp_path / "ca.pem")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        await receive(mail)
