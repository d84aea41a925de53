"""An encrypted conversation between people of two servers, both with Element: python conversation.py PLAN"""

from __future__ import annotations

import struct
import tempfile
import zlib
from pathlib import Path

from person import Person
from playwright.sync_api import expect
from stage import play

SIDE = 256


def png() -> bytes:
    """Returns a picture of SIDE × SIDE pixels, which go from black to red and green."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + b"".join(bytes((x, y, 0)) for x in range(SIDE)) for y in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def meet(alice: Person, bob: Person) -> None:
    """Both get into an encrypted room."""
    for person in (alice, bob):
        person.log_in()
    alice.create_room("Kitchen")
    alice.invite(bob)
    bob.accept("Kitchen")


def talk(alice: Person, bob: Person) -> None:
    """Each reads what the other says, and sees that the other is writing."""
    alice.say("The kettle is on.")
    bob.read("The kettle is on.")
    bob.say("Two sugars, please.")
    alice.read("Two sugars, please.")
    bob.composer.click()
    bob.page.keyboard.type("And")
    expect(alice.page.get_by_text("is typing")).to_be_visible()
    bob.page.keyboard.type(" milk.")
    bob.page.keyboard.press("Enter")
    alice.read("And milk.")


def change(alice: Person, bob: Person) -> None:
    """Edits, reacts, replies and removes; the other sees it."""
    alice.edit("The kettle is on.", "The kettle has boiled.")
    edited = bob.read("The kettle has boiled.")
    expect(edited.get_by_text("(edited)")).to_be_visible()
    bob.react("The kettle has boiled.", "👍")
    expect(alice.read("The kettle has boiled.").get_by_role("button", name="👍")).to_be_visible()
    alice.reply("And milk.", "There is none left.")
    expect(bob.read("There is none left.").locator(".mx_ReplyChain")).to_contain_text("And milk.")
    alice.say("Wrong room.")
    bob.read("Wrong room.")
    alice.remove("Wrong room.")
    bob.read("Message deleted")
    expect(bob.message("Wrong room.")).to_be_hidden()


def share(alice: Person, bob: Person) -> None:
    """Sends a picture, and talks about it in a thread."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sunset.png"
        path.write_bytes(png())
        alice.send_picture(path)
        for person in (alice, bob):
            person.see_picture()
    alice.start_thread("Two sugars, please.", "White or brown?")
    expect(bob.read("Two sugars, please.")).to_contain_text("White or brown?")
    bob.open_thread("Two sugars, please.")
    bob.read_in_thread("White or brown?")
    bob.say_in_thread("Brown.")
    alice.read_in_thread("Brown.")


if __name__ == "__main__":
    play(meet, talk, change, share)
