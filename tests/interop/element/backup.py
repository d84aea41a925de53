"""Losing a device and reading old messages on a new one, with Element: python backup.py PLAN"""

from __future__ import annotations

from person import Person
from stage import play


class Story:
    """Both talk in an encrypted room, then Alice loses her device."""

    def __init__(self) -> None:
        self._security_key = ""

    def back_up(self, alice: Person, bob: Person) -> None:
        """Alice stores her keys on her server, and logs out."""
        for person in (alice, bob):
            person.log_in()
        alice.create_room("Kitchen")
        alice.invite(bob)
        bob.accept("Kitchen")
        alice.say("The kettle is on.")
        bob.read("The kettle is on.")
        bob.say("Two sugars, please.")
        alice.read("Two sugars, please.")
        self._security_key = alice.set_up_backup()
        alice.log_out()

    def restore(self, alice: Person, bob: Person) -> None:
        """Alice logs in with a new device, reads what was said before, and goes on."""
        alice.log_in_again(self._security_key)
        alice.open("Kitchen")
        alice.read("The kettle is on.")
        alice.read("Two sugars, please.")
        alice.say("I am back.")
        bob.read("I am back.")
        bob.say("Your tea is cold.")
        alice.read("Your tea is cold.")


if __name__ == "__main__":
    story = Story()
    play(story.back_up, story.restore)
