"""Public rooms, search, upgrades and spaces across two servers, with Element: python rooms.py PLAN"""

from __future__ import annotations

from person import Person
from playwright.sync_api import expect
from stage import play


def join(alice: Person, bob: Person) -> None:
    """Bob joins a room of the other server by its alias, and both talk."""
    for person in (alice, bob):
        person.log_in()
    alice.create_old_room("Library", f"library-{alice.name}")
    bob.join_alias(f"#library-{alice.name}:{alice.server_name}")
    alice.say("The book is about kettles.")
    bob.read("The book is about kettles.")
    bob.say("I prefer teapots.")
    alice.read("I prefer teapots.")


def search(alice: Person, bob: Person) -> None:
    """Both find a message of the other."""
    expect(bob.search("kettles")).to_contain_text("The book is about")
    expect(alice.search("teapots")).to_contain_text("I prefer")


def upgrade(alice: Person, bob: Person) -> None:
    """Alice upgrades the room, and both go on in the new one."""
    for person in (alice, bob):
        person.page.get_by_role("button", name="Cancel").click()
    alice.upgrade_room("11")
    for person in (bob, alice):
        person.follow_upgrade()
    alice.say("New shelves.")
    bob.read("New shelves.")


def group(alice: Person, bob: Person) -> None:
    """Alice makes a space, and Bob finds the rooms in it."""
    name = f"House-{alice.name}"
    alice.create_space(name)
    bob.join_alias(f"#{name.lower()}:{alice.server_name}")
    lobby = bob.page.locator(".mx_SpaceRoomView")
    for room in ("General", "Random"):
        expect(lobby.get_by_text(room)).to_be_visible()


if __name__ == "__main__":
    play(join, search, upgrade, group)
