"""Two people of two servers talk on the chat page: python conversation.py PLAN"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

from person import Person
from playwright.sync_api import expect
from stage import Stage, play, png

MANY = 90
SCRIPT = "<img src=x onerror='window.ran=1'><script>window.ran=1</script><b style='position:fixed'>bold</b>"


def meet(stage: Stage, alice: Person, bob: Person) -> None:
    """One asks to be friends and says who they are; the other accepts and is seen to be online."""
    alice.page.goto(alice.page.url)
    alice.log_in()
    bob.log_in()
    alice.ask_friend(bob, "We met at the ball.")
    expect(bob.page.get_by_text("“We met at the ball.”")).to_be_visible()
    stage.check(bob, "friend request")
    bob.accept(alice)
    alice.open(bob.name)
    expect(alice.page.locator(".conversation").get_by_text("Online", exact=True)).to_be_visible()
    alice.page.get_by_role("button", name="Friends").click()
    expect(alice.page.get_by_role("navigation").get_by_text("Online", exact=True)).to_be_visible()
    stage.check(alice, "list of friends")
    alice.page.get_by_role("button", name="Chats").click()


def talk(stage: Stage, alice: Person, bob: Person) -> None:
    """Each reads what the other says, sees that the other is writing, and gets to know what was read."""
    alice.say("But soft, what light through yonder window breaks?")
    bob.read("what light through yonder window")
    alice.expect_status("But soft", "Read")
    bob.composer.press_sequentially("Wherefore")
    expect(alice.page.locator(".typing-line")).to_contain_text("is typing…")
    bob.composer.press_sequentially(" art thou?")
    bob.page.keyboard.press("Enter")
    alice.read("Wherefore art thou?")
    expect(alice.page.locator(".typing-line")).to_have_text("")
    alice.choose("But soft", "Who has read this")
    expect(alice.page.get_by_role("row", name=bob.name).get_by_role("cell").last).to_contain_text(":")
    stage.check(alice, "who has read this")
    alice.page.keyboard.press("Escape")


def wait(stage: Stage, alice: Person, bob: Person) -> None:
    """A message to a person who is offline is sent; it is delivered and read once they are there and look."""
    bob.page.goto("about:blank")
    alice.say("Art thou there?")
    alice.expect_status("Art thou there?", "Sent")
    bob.page.go_back()
    alice.expect_status("Art thou there?", "Read")
    bob.read("Art thou there?")


def show(stage: Stage, alice: Person, bob: Person) -> None:
    """A picture with a caption and files get to the other one, who opens the one and saves the others."""
    alice.attach("evening.png", "image/png", png())
    stage.check(alice, "attached picture")
    alice.say("The view from below")
    picture = bob.read("The view from below").get_by_role("button", name="Open the picture evening.png")
    expect(picture.get_by_role("img")).not_to_have_js_property("naturalWidth", 0)
    picture.click()
    expect(bob.page.get_by_role("dialog", name="evening.png").get_by_role("img")).to_be_visible()
    stage.check(bob, "picture")
    bob.page.keyboard.press("Escape")
    bob.attach("notes.txt", "text/plain", b"A rose by any other name.")
    bob.page.get_by_role("button", name="Send", exact=True).click()
    with alice.page.expect_download() as download:
        alice.read("notes.txt").get_by_role("button", name="Save notes.txt").click()
    assert Path(download.value.path()).read_bytes() == b"A rose by any other name."
    large = bytes(range(256)) * (9 * 4096)  # more than two pieces of a resumable upload
    bob.attach("film.bin", "application/octet-stream", large)
    bob.page.get_by_role("button", name="Send", exact=True).click()
    with alice.page.expect_download() as download:
        alice.read("film.bin").get_by_role("button", name="Save film.bin").click()
    assert Path(download.value.path()).read_bytes() == large


def change(stage: Stage, alice: Person, bob: Person) -> None:
    """Replies, reacts, edits and deletes; the other sees it."""
    alice.act("Wherefore art thou?", "Reply")
    alice.say("Here, below thy balcony.")
    expect(bob.read("Here, below thy balcony.").locator(".answered")).to_contain_text("Wherefore art thou?")
    bob.react("Here, below thy balcony.", "❤️")
    expect(alice.page.get_by_role("button", name=f"❤️, from {bob.name}")).to_be_visible()
    alice.page.get_by_role("button", name=f"❤️, from {bob.name}").click()
    expect(
        bob.page.get_by_role("button", name=re.compile(f"❤️, from (you, {alice.name}|{alice.name}, you)"))
    ).to_be_visible()
    alice.choose("Here, below thy balcony.", "Edit")
    alice.say("Here, below the balcony.")
    expect(bob.read("Here, below the balcony.")).to_contain_text("edited")
    alice.say("A slip of the tongue")
    bob.read("A slip of the tongue")
    alice.choose("A slip of the tongue", "Delete")
    alice.page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(bob.message("Deleted message")).to_be_visible()
    expect(bob.message("A slip of the tongue")).to_have_count(0)


def attack(stage: Stage, alice: Person, bob: Person) -> None:
    """Markup, scripts and files of a hostile client are shown as text, or not at all."""
    html = {"format": "org.matrix.custom.html", "formatted_body": f"formatted {SCRIPT}"}
    alice.send_raw({"msgtype": "m.text", "body": SCRIPT, **html})
    expect(bob.read("formatted bold").locator("b")).to_have_text("bold")
    assert bob.message("formatted bold").locator("b").get_attribute("style") is None
    alice.send_raw({"msgtype": "m.text", "body": f"plain {SCRIPT}"})
    bob.read("plain <img src=x")
    alice.attach("page.svg", "image/svg+xml", f"<svg xmlns='http://www.w3.org/2000/svg'>{SCRIPT}</svg>".encode())
    alice.page.get_by_role("button", name="Send", exact=True).click()
    expect(bob.read("page.svg").locator("img")).to_have_count(0)
    for wrong in ({"msgtype": ["x"], "body": 7}, {"msgtype": "m.image", "body": "x", "url": "javascript:alert(1)"}, {}):
        alice.send_raw({**wrong, "info": {"w": "evil", "h": -1, "blurhash": 5}})
    alice.say("That was all.")
    bob.read("That was all.")
    for person in (alice, bob):
        assert person.page.evaluate("window.ran") is None


def remember(stage: Stage, alice: Person, bob: Person) -> None:
    """A long history is read back to its beginning; a search finds a message of it and goes there."""
    first = alice.message("But soft").get_attribute("data-key")
    for number in range(MANY):
        alice.send_raw({"msgtype": "m.text", "body": f"Line {number}"})
    bob.read(f"Line {MANY - 1}")
    late = {"m.relates_to": {"rel_type": "m.annotation", "event_id": first, "key": "🌙"}}
    alice.call("PUT", f"rooms/{quote(alice.room_id)}/send/m.reaction/late", late)
    found = bob.search("yonder window")
    expect(found).to_have_count(1)
    stage.check(bob, "search")
    bob.page.reload()
    bob.read(f"Line {MANY - 1}")
    bob.search("yonder window").click()
    expect(bob.read("what light through yonder window")).to_be_in_viewport()
    expect(bob.page.get_by_role("button", name=f"🌙, from {alice.name}")).to_be_visible()
    bob.page.get_by_role("searchbox").press("Escape")
    bob.page.get_by_role("button", name="Go to the newest message").click()
    expect(bob.read(f"Line {MANY - 1}")).to_be_in_viewport()
    for _ in range(60):
        bob.page.locator(".timeline").evaluate("element => { element.scrollTop = 0; }")
        if bob.page.get_by_text("This is the beginning.").is_visible():
            break
        bob.page.wait_for_timeout(200)
    expect(bob.page.locator("article").first).to_contain_text("But soft")


def notice(stage: Stage, alice: Person, bob: Person) -> None:
    """New messages elsewhere are counted and notified; opening the conversation shows where they begin."""
    bob.page.locator(".me").click()
    bob.page.get_by_label("Notify me of messages").check()
    stage.check(bob, "settings")
    bob.page.keyboard.press("Escape")
    bob.page.goto(bob.page.url.partition("#")[0] + "#/")
    expect(bob.page.get_by_text("Choose a conversation")).to_be_visible()
    alice.say("Did my heart love till now?")
    expect(bob.page.locator(".badge")).to_have_text("1")
    expect(bob.page).to_have_title(re.compile(r"^\(1\) "))
    bob.page.wait_for_function("window.noted.length === 1")
    assert bob.page.evaluate("window.noted[0]") == f"{alice.name}: Did my heart love till now?"
    stage.check(bob, "unread")
    bob.open(alice.name)
    expect(bob.page.get_by_text("New messages", exact=True)).to_be_visible()
    bob.page.get_by_role("button", name="Go to the newest message").or_(bob.composer).first.click()
    expect(bob.page.locator(".badge")).to_have_count(0)
    expect(bob.page).not_to_have_title(re.compile(r"^\("))
    bob.screenshot("new-messages")


def gather(stage: Stage, alice: Person, bob: Person) -> None:
    """A group is begun; the other one is invited, joins, and is told apart by name."""
    alice.begin_group("The balcony", bob)
    bob.page.get_by_role("button", name=f"Accept: {alice.name}").click()
    expect(bob.page.get_by_role("heading", name="The balcony")).to_be_visible()
    alice.say("A plague o’ both your houses!")
    expect(bob.read("A plague").locator(".sender")).to_have_text(alice.name)
    alice.expect_status("A plague", "Read")
    stage.check(bob, "group")
    alice.open(bob.name)
    bob.open(alice.name)


def keep_secrets(stage: Stage, alice: Person, bob: Person) -> None:
    """An end-to-end encrypted conversation has a lock, and the page says where to open it instead of pretending."""
    encryption = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
    room = {"name": "Secrets", "preset": "private_chat", "initial_state": [encryption]}
    room_id = alice.call("POST", "createRoom", room)["room_id"]
    ciphertext = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgAEnACgAk", "session_id": "s", "device_id": "D"}
    alice.call("PUT", f"rooms/{quote(room_id)}/send/m.room.encrypted/secret", ciphertext)
    alice.page.get_by_role("button", name="Secrets, end-to-end encrypted, Encrypted message").click()
    expect(alice.page.get_by_text("open it in a client that encrypts, such as Element")).to_be_visible()
    expect(alice.message("Encrypted.")).to_be_visible()
    expect(alice.composer).to_be_hidden()
    stage.check(alice, "encrypted conversation")
    alice.open(bob.name)


def use_keys(stage: Stage, alice: Person, bob: Person) -> None:
    """Everything can be done with the keyboard alone."""
    page = alice.page
    alice.composer.focus()
    page.keyboard.type("By keyboard")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("in two lines")
    page.keyboard.press("Enter")
    bob.read("By keyboard")
    page.keyboard.press("ArrowUp")
    expect(alice.composer).to_have_value("By keyboard\nin two lines")
    page.keyboard.press("Control+a")
    page.keyboard.type("By keyboard, edited")
    page.keyboard.press("Enter")
    bob.read("By keyboard, edited")
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.tagName") == "ARTICLE":
            break
    expect(page.locator("article:focus")).to_contain_text("By keyboard, edited")
    page.keyboard.press("Enter")
    expect(page.get_by_role("menuitem", name="Reply")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("article:focus")).to_contain_text("By keyboard, edited")
    page.keyboard.press("ArrowUp")
    expect(page.locator("article:focus")).to_contain_text("Did my heart love")
    page.keyboard.press("+")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(bob.page.get_by_role("button", name=f"❤️, from {alice.name}").last).to_be_visible()
    page.locator("article:focus").or_(page.locator("article").last).first.focus()
    page.keyboard.press("r")
    expect(alice.composer).to_be_focused()
    expect(page.locator(".about")).to_contain_text("Answer to")
    page.keyboard.press("Escape")
    expect(page.locator(".about")).to_be_hidden()
    page.keyboard.press("Control+k")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.press("Escape")
    page.keyboard.press("Alt+ArrowDown")
    expect(page.get_by_role("heading", name=re.compile("^(The balcony|Secrets)"))).to_be_visible()
    page.keyboard.press("Alt+ArrowUp")
    expect(page.get_by_role("heading", name=bob.name)).to_be_visible()


def lose_connection(stage: Stage, alice: Person, bob: Person) -> None:
    """Without a network a message waits, and is sent once when the network is back."""
    alice.context.set_offline(True)
    alice.page.wait_for_timeout(200)
    alice.say("Through a dead line")
    expect(alice.message("Through a dead line").locator(".ticks")).to_have_attribute("aria-label", "Sending")
    alice.context.set_offline(False)
    bob.read("Through a dead line")
    alice.expect_status("Through a dead line", "Read")
    expect(bob.message("Through a dead line")).to_have_count(1)


def look(stage: Stage, alice: Person, bob: Person) -> None:
    """It is as good in the dark and on a phone."""
    alice.page.emulate_media(color_scheme="dark")
    stage.check(alice, "dark")
    alice.page.locator(".me").click()
    stage.check(alice, "dark settings")
    alice.page.get_by_role("radio", name="Light").check()
    expect(alice.page.locator("html")).to_have_attribute("data-theme", "light")
    alice.page.keyboard.press("Escape")
    phone = Person(stage.browser, stage.plan["people"][1], Path(stage.plan["screenshots"]), phone=True)
    phone.page.goto(bob.page.url.partition("#")[0])
    stage.check(phone, "phone log in")
    phone.log_in()
    expect(phone.page.locator(".conversation")).to_be_hidden()
    phone.page.get_by_role("navigation").get_by_role("button", name=re.compile(f"^{alice.name},")).wait_for()
    stage.check(phone, "phone list")
    phone.open(alice.name)
    expect(phone.page.get_by_role("navigation")).to_be_hidden()
    phone.say("From my phone")
    alice.read("From my phone")
    stage.check(phone, "phone conversation")
    assert phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.page.get_by_role("button", name="Back to the conversations").click()
    expect(phone.page.get_by_role("navigation")).to_be_visible()
    phone.log_out()
    stage.complaints += phone.complaints


def part(stage: Stage, alice: Person, bob: Person) -> None:
    """A person who blocks another one gets nothing more of them; logging out leaves nothing in the browser."""
    bob.page.get_by_role("button", name="About this conversation").click()
    bob.page.get_by_role("menuitem", name="Block").click()
    bob.page.get_by_role("dialog").get_by_role("button", name="Block").click()
    alice.say("Are you there?")
    alice.expect_status("Are you there?", "Sent")
    expect(bob.message("Are you there?")).to_have_count(0)
    for person in (alice, bob):
        person.log_out()
        assert person.page.evaluate("localStorage.getItem('homeserver.chat.session')") is None
    stage.check(alice, "log in")


TALKING = (meet, talk, wait, show, change, attack, remember, notice, gather, keep_secrets)
USING = (use_keys, lose_connection, look, part)

if __name__ == "__main__":
    play(*TALKING, *USING)
