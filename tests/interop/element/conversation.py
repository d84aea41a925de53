"""An encrypted conversation between people of two servers, both with Element: python conversation.py PLAN"""

from __future__ import annotations

from person import Person
from stage import play


def meet(alice: Person, bob: Person) -> None:
    """Both get into an encrypted room."""
    for person in (alice, bob):
        person.log_in()
    alice.create_room("Kitchen")
    alice.invite(bob)
    bob.accept("Kitchen")
    print("both are in the room")


def talk(alice: Person, bob: Person) -> None:
    """Each reads what the other says."""
    alice.say("The kettle is on.")
    bob.read("The kettle is on.")
    bob.say("Two sugars, please.")
    alice.read("Two sugars, please.")
    for person in (alice, bob):
        person.screenshot("talk")
    print("both have read what the other said")


def story(alice: Person, bob: Person) -> None:
    meet(alice, bob)
    talk(alice, bob)


if __name__ == "__main__":
    play(story)
