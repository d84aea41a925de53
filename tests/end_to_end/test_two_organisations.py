"""Two organisations, their people, one conversation: everything that two homeservers are for, seen by matrix-nio."""

from __future__ import annotations

import hashlib
import random

import nio
import pytest

from tests.end_to_end.conftest import Newcomer
from tests.end_to_end.people import Person, Refused
from tests.end_to_end.programs import Homeserver

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def romeo(newcomer: Newcomer, montague: Homeserver, request: pytest.FixtureRequest) -> Person:
    return newcomer(montague, f"romeo-{name_of(request)}")


@pytest.fixture
def juliet(newcomer: Newcomer, capulet: Homeserver, request: pytest.FixtureRequest) -> Person:
    return newcomer(capulet, f"juliet-{name_of(request)}")


def name_of(request: pytest.FixtureRequest) -> str:
    """Something that the names of people of other tests do not have in them."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:8]


def room_of(romeo: Person, juliet: Person, **options: object) -> str:
    """A room that romeo made and both are in."""
    room_id = romeo.create_room(juliet, **options)
    juliet.wait_invited(room_id)
    juliet.join(room_id)
    romeo.wait_joined(room_id, juliet)
    juliet.wait_joined(room_id, romeo)
    return room_id


def test_a_registered_user_can_log_in_on_another_device(romeo: Person) -> None:
    phone = romeo.another_device()
    phone.log_in()
    assert phone.nio.device_id != romeo.nio.device_id
    assert {device.id for device in phone.ask(phone.nio.devices()).devices} == {
        phone.nio.device_id, romeo.nio.device_id
    }  # fmt: skip
    assert phone.ask(phone.nio.whoami()).user_id == romeo.user_id
    phone.go()
    assert {device.id for device in romeo.ask(romeo.nio.devices()).devices} == {romeo.nio.device_id}


def test_a_wrong_password_and_a_taken_name_are_refused(romeo: Person) -> None:
    phone = romeo.another_device()
    with pytest.raises(Refused) as refused:
        phone.log_in("wherefore art thou")
    assert refused.value.errcode == "M_FORBIDDEN"
    with pytest.raises(Refused) as refused:
        phone.register()
    assert refused.value.errcode == "M_USER_IN_USE"
    phone.go()


def test_an_invitation_shows_the_room_and_the_inviter_before_it_is_accepted(romeo: Person, juliet: Person) -> None:
    romeo.ask(romeo.nio.set_displayname("Romeo M."))
    room_id = romeo.create_room(juliet, name="The balcony")
    invited = juliet.wait_invited(room_id)
    assert (invited.name, invited.inviter) == ("The balcony", romeo.user_id)
    assert juliet.join(room_id) == room_id
    juliet.wait_joined(room_id, romeo)
    room = juliet.nio.rooms[room_id]
    assert (room.name, room.user_name(romeo.user_id)) == ("The balcony", "Romeo M.")
    romeo.wait_joined(room_id, juliet)


def test_an_invitation_can_be_declined(romeo: Person, juliet: Person) -> None:
    room_id = romeo.create_room(juliet)
    juliet.wait_invited(room_id)
    juliet.leave(room_id)
    juliet.wait("the invitation to go", lambda: room_id not in juliet.nio.invited_rooms or room_id in juliet.left)
    romeo.wait_gone(room_id, juliet)
    with pytest.raises(Refused):
        juliet.join(room_id)


def test_messages_arrive_once_and_in_order_on_both_servers(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    said = []
    for number in range(20):
        speaker, listener = (romeo, juliet) if number % 3 else (juliet, romeo)
        event_id = speaker.say(room_id, f"line {number}")
        listener.wait_event(room_id, event_id)
        said.append(event_id)
    for person in (romeo, juliet):
        person.wait_event(room_id, said[-1])
        assert [event.event_id for event in person.timelines[room_id] if event.event_id in set(said)] == said
        assert person.texts(room_id) == [f"line {number}" for number in range(20)]


def test_a_waiting_sync_returns_when_the_other_server_sends_something(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    juliet.sync()
    romeo.say(room_id, "soft!")
    answer = juliet.sync(timeout_ms=30_000)
    while room_id not in answer.rooms.join or not answer.rooms.join[room_id].timeline.events:
        answer = juliet.sync(timeout_ms=30_000)
    assert [event.body for event in answer.rooms.join[room_id].timeline.events] == ["soft!"]


def test_history_is_the_same_in_pages_of_any_size_on_both_servers(romeo: Person, juliet: Person) -> None:
    room_id = romeo.create_room(juliet)
    for number in range(30):
        romeo.say(room_id, f"before {number}")
    juliet.wait_invited(room_id)
    juliet.join(room_id)
    romeo.wait_joined(room_id, juliet)
    last = juliet.say(room_id, "after")
    romeo.wait_event(room_id, last)
    histories = []
    for person in (romeo, juliet):
        for limit in (7, 100):
            pages = person.pages(room_id, limit)
            assert all(len(page) <= limit for page in pages)
            histories.append([event.event_id for page in pages for event in page])
    assert len(histories[0]) == len(set(histories[0]))
    assert histories == [histories[0]] * 4
    assert romeo.texts(room_id) == [*(f"before {number}" for number in range(30)), "after"]


def test_a_file_uploaded_on_one_server_can_be_downloaded_from_the_other(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    data = random.Random(1597).randbytes(300_000)
    uri = romeo.upload(data, "application/pdf", "a rose.pdf")
    event_id = romeo.send(room_id, {"msgtype": "m.file", "body": "a rose.pdf", "url": uri})
    event = juliet.wait_event(room_id, event_id)
    assert isinstance(event, nio.RoomMessageFile)
    file = juliet.download(event.url)
    assert (file.body, file.content_type, file.filename) == (data, "application/pdf", "a rose.pdf")
    with pytest.raises(Refused):
        juliet.download(f"mxc://{romeo.server.server_name}/no-such-file")


def test_read_receipts_reach_the_other_server(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    event_id = romeo.say(room_id, "read me")
    juliet.wait_event(room_id, event_id)
    juliet.mark_read(room_id, event_id)
    romeo.wait("the receipt", lambda: romeo.read.get((room_id, juliet.user_id)) == event_id)


def test_typing_is_visible_on_the_other_server(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    romeo.type(room_id, True)
    juliet.wait("romeo to type", lambda: romeo.user_id in juliet.nio.rooms[room_id].typing_users)
    romeo.type(room_id, False)
    juliet.wait("romeo to stop", lambda: romeo.user_id not in juliet.nio.rooms[room_id].typing_users)


def test_a_redaction_removes_the_content_on_both_servers(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    event_id = juliet.say(room_id, "a rash word")
    romeo.wait_event(room_id, event_id)
    juliet.redact(room_id, event_id, "too like the lightning")
    for person in (romeo, juliet):

        def redacted(person: Person = person) -> bool:
            return isinstance(person.ask(person.nio.room_get_event(room_id, event_id)).event, nio.RedactedEvent)

        person.wait("the redaction", redacted)
        event = person.ask(person.nio.room_get_event(room_id, event_id)).event
        assert (event.redacter, event.reason) == (juliet.user_id, "too like the lightning")
        assert person.texts(room_id) == []


def test_state_set_on_one_server_applies_on_the_other(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet, power_level_override={"events": {"m.room.topic": 0}})
    juliet.set_state(room_id, "m.room.topic", {"topic": "names"})
    romeo.wait("the topic", lambda: romeo.nio.rooms[room_id].topic == "names")
    with pytest.raises(Refused) as refused:
        juliet.set_state(room_id, "m.room.name", {"name": "mine"})
    assert refused.value.errcode == "M_FORBIDDEN"


def test_a_leaving_member_is_gone_on_both_servers_and_gets_no_more_events(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    juliet.leave(room_id)
    romeo.wait_gone(room_id, juliet)
    juliet.wait("to be out", lambda: room_id in juliet.left)
    unheard = romeo.say(room_id, "gone already?")
    romeo.wait_event(room_id, unheard)
    juliet.sync()
    assert juliet.heard(room_id, unheard) is None
    with pytest.raises(Refused) as refused:
        juliet.say(room_id, "good night")
    assert refused.value.errcode == "M_FORBIDDEN"


def test_a_kicked_member_cannot_return_without_an_invitation(romeo: Person, juliet: Person) -> None:
    alias = f"#{romeo.localpart}:{romeo.server.server_name}"
    room_id = room_of(romeo, juliet, alias=romeo.localpart)
    romeo.ask(romeo.nio.room_ban(room_id, juliet.user_id, "banished"))
    juliet.wait("to be out", lambda: room_id in juliet.left)
    with pytest.raises(Refused) as refused:
        juliet.join(alias)
    assert refused.value.errcode == "M_FORBIDDEN"
    romeo.ask(romeo.nio.room_unban(room_id, juliet.user_id))
    romeo.ask(romeo.nio.room_invite(room_id, juliet.user_id))
    juliet.wait_invited(room_id)
    juliet.join(room_id)
    romeo.wait_joined(room_id, juliet)


def test_a_public_room_is_found_and_joined_by_its_alias(romeo: Person, juliet: Person) -> None:
    name = romeo.localpart
    room_id = romeo.create_room(alias=name, preset=nio.RoomPreset.public_chat, visibility=nio.RoomVisibility.public)
    romeo.say(room_id, "before she came")
    alias = f"#{name}:{romeo.server.server_name}"
    resolved = juliet.ask(juliet.nio.room_resolve_alias(alias))
    assert resolved.room_id == room_id
    listed = juliet.ask(juliet.nio.list_public_rooms(server=romeo.server.server_name)).public_rooms
    assert room_id in {room.room_id for room in listed}
    assert juliet.join(alias) == room_id
    romeo.wait_joined(room_id, juliet)
    assert "before she came" in juliet.texts(room_id)


def test_profiles_can_be_looked_up_on_the_other_server(romeo: Person, juliet: Person) -> None:
    juliet.ask(juliet.nio.set_displayname("Juliet C."))
    profile = romeo.ask(romeo.nio.get_profile(juliet.user_id))
    assert profile.displayname == "Juliet C."
    with pytest.raises(Refused) as refused:
        romeo.ask(romeo.nio.get_profile(f"@nobody:{juliet.server.server_name}"))
    assert refused.value.errcode == "M_NOT_FOUND"


def test_presence_is_visible_on_the_other_server(romeo: Person, juliet: Person) -> None:
    room_id = room_of(romeo, juliet)
    juliet.ask(juliet.nio.set_presence("online", "on the balcony"))

    def told() -> bool:
        user = romeo.nio.rooms[room_id].users[juliet.user_id]
        return (user.presence, user.status_msg) == ("online", "on the balcony")

    romeo.wait("her presence", told)


def test_with_several_members_per_server_everyone_gets_every_message(
    newcomer: Newcomer, montague: Homeserver, capulet: Homeserver
) -> None:
    names = ("tybalt", "nurse", "paris")
    ours = [newcomer(montague, f"crowd-{name}") for name in names]
    theirs = [newcomer(capulet, f"crowd-{name}") for name in names]
    host, *guests = [*ours, *theirs]
    room_id = host.create_room(*guests)
    for guest in guests:
        guest.wait_invited(room_id)
        guest.join(room_id)
    for person in (host, *guests):
        for other in (host, *guests):
            person.wait_joined(room_id, other)
    said = {person.user_id: person.say(room_id, "a plague on both your houses") for person in (host, *guests)}
    for person in (host, *guests):
        for event_id in said.values():
            person.wait_event(room_id, event_id)
        heard = [event.event_id for event in person.timelines[room_id] if event.event_id in set(said.values())]
        assert sorted(heard) == sorted(said.values())
