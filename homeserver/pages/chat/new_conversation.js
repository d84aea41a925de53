// The dialogs that begin something: asking a person to be a friend, making a group, inviting.

import { h } from "./dom.js";
import { field, openForm } from "./menu.js";
import { asUserId } from "./people.js";

// Opens the dialog with both ways to begin a conversation.
export function openNewConversation(app) {
  const { store, people, api } = app;
  const friends = store.friendsServed;
  const suggestions = h("datalist", { id: "known-people" });
  let timer;
  const suggest = (event) => {
    clearTimeout(timer);
    const text = event.target.value.trim();
    if (text.length < 2) return;
    timer = setTimeout(async () => {
      const found = await people.find(text).catch(() => []); // suggestions are a help, the ID can always be typed
      suggestions.replaceChildren(...found.map((person) => h("option", { value: person.userId }, person.name)));
    }, 250);
  };
  openForm(
    "New conversation",
    [
      field("Matrix ID", { name: "user", required: true, autofocus: true, placeholder: "@juliet:example.org", autocomplete: "off", list: "known-people", spellcheck: "false", on: { input: suggest } }),
      suggestions,
      friends ? field("A word to say who you are (optional)", { name: "message", maxlength: 300, autocomplete: "off" }) : null,
      h(
        "p",
        { class: "hint" },
        friends
          ? "They get a friend request. Once they accept, you can write to one another. People on other Matrix servers work, too."
          : "A conversation with this person begins, and they are invited to it.",
      ),
      h("p", { class: "hint" }, "More than one person? ", groupButton(app)),
    ],
    friends ? "Send request" : "Begin",
    async (form) => {
      const userId = asUserId(form.get("user"), api.userId);
      const roomId = await people.add(userId, form.get("message")?.trim());
      if (roomId) app.open(roomId);
      else app.say(`${userId} has been asked.`);
    },
  );
}

function groupButton(app) {
  const open = (event) => {
    event.target.closest("dialog").close();
    openNewGroup(app);
  };
  return h("button", { type: "button", class: "link", on: { click: open } }, "Begin a group");
}

// Opens the dialog that makes a group.
export function openNewGroup(app) {
  const { store, api, people } = app;
  openForm(
    "New group",
    [field("Name", { name: "name", required: true, autofocus: true, maxlength: 100, autocomplete: "off" }), peopleChoice(store.friendsWho("friend"))],
    "Create",
    async (form) => {
      app.open(await people.createGroup(form.get("name").trim(), chosen(form, api.userId)));
    },
  );
}

// Opens the dialog that invites people to a group.
export function openInvite(app, room) {
  const friends = app.store.friendsWho("friend").filter((entry) => room.state("m.room.member", entry.user_id).membership !== "join");
  openForm(`Invite to ${room.name}`, peopleChoice(friends), "Invite", async (form) => {
    for (const userId of chosen(form, app.api.userId)) {
      await app.api.call("invite_user", [room.id], { body: { user_id: userId } });
    }
  });
}

function peopleChoice(friends) {
  return [
    friends.length
      ? h(
          "fieldset",
          { class: "choice" },
          h("legend", {}, "Friends"),
          friends.map((entry) => h("label", {}, h("input", { type: "checkbox", name: "friend", value: entry.user_id }), entry.display_name || entry.user_id)),
        )
      : null,
    field("Others, by Matrix ID", { name: "others", autocomplete: "off", spellcheck: "false", placeholder: "@nurse:example.org @tybalt:example.net" }),
  ];
}

function chosen(form, ownId) {
  const typed = form.get("others").split(/[\s,]+/).filter(Boolean);
  return [...new Set([...form.getAll("friend"), ...typed.map((text) => asUserId(text, ownId))])];
}
