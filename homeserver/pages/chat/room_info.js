// What a conversation is, who is in it, and who has read a message.

import { avatar } from "./avatar.js";
import { ServerError } from "./api.js";
import { fill, h } from "./dom.js";
import { confirm, field, openDialog, openForm, openMenu } from "./menu.js";
import { openInvite } from "./new_conversation.js";
import { fullTime, statusText } from "./words.js";

// Opens the menu of a conversation.
export function openRoomMenu(app, room, anchor) {
  const friend = room.partner ? app.store.friends.get(room.partner) : null;
  const canName = !room.partner && room.may("m.room.name");
  const entries = [
    { label: "Search here", icon: "search", action: () => app.sidebar.searchIn(room) },
    { label: room.partner ? "About this person" : "People", icon: "people", action: () => openPeople(app, room) },
    !room.partner && room.may("invite") && { label: "Invite people", icon: "add", action: () => openInvite(app, room) },
    canName && { label: "Change the name", icon: "edit", action: () => rename(app, room) },
    friend?.state === "friend" && { label: "End friendship", icon: "person", isDanger: true, action: () => endFriendship(app, room) },
    room.partner && app.store.friendsServed && { label: "Block", icon: "alert", isDanger: true, action: () => block(app, room) },
    !friend && { label: "Leave", icon: "logout", isDanger: true, action: () => leave(app, room) },
  ];
  openMenu(anchor, "This conversation", entries.filter(Boolean));
}

function openPeople(app, room) {
  const userIds = room.members().sort((one, other) => room.nameOf(one).localeCompare(room.nameOf(other)));
  const row = (userId) => {
    const presence = app.store.presenceOf(userId);
    return h(
      "li",
      { class: "row" },
      avatar(app.media, { id: userId, name: room.nameOf(userId), url: room.avatarOf(userId), presence }),
      h("span", { class: "name" }, room.nameOf(userId), userId === room.ownId ? " (you)" : ""),
      h("span", { class: "said" }, userId, userId === room.ownId || !presence ? "" : ` · ${statusText(presence)}`),
    );
  };
  openDialog(room.name, () => h("ul", { class: "rows people", "aria-label": "People" }, userIds.map(row)));
}

function rename(app, room) {
  const { name = "" } = room.state("m.room.name");
  openForm("Change the name", field("Name", { name: "name", value: name, required: true, maxlength: 100, autofocus: true }), "Save", (form) =>
    app.api.call("set_room_state_with_key", [room.id, "m.room.name", ""], { body: { name: form.get("name").trim() } }),
  );
}

function endFriendship(app, room) {
  const text = `${room.name} is no longer your friend. What was written stays for both of you.`;
  confirm("End the friendship?", text, "End friendship", () => app.people.remove(room.partner));
}

function block(app, room) {
  const text = `Nothing of ${room.name} reaches you any more. They are not told.`;
  confirm("Block this person?", text, "Block", () => app.people.setBlocked(room.partner, true));
}

function leave(app, room) {
  confirm("Leave this conversation?", "You get no more messages of it.", "Leave", async () => {
    await app.api.call("leave_room", [room.id], { body: {} });
    app.open(null);
  });
}

// Opens the table of who has got and read an own message, and when.
export function openDetails(app, room, item) {
  const table = h("div", {}, "Loading…");
  openDialog("Who has read this", () => table);
  app.api.call("get_message_status", [room.id, item.eventId]).then(
    (status) => fill(table, rowsOf(room, status.recipients)),
    (error) => {
      const isUnknown = error instanceof ServerError && error.errcode === "M_UNRECOGNIZED";
      fill(table, isUnknown ? "This server does not keep who has read a message." : error.message);
    },
  );
}

function rowsOf(room, recipients) {
  const time = (ts) => (ts ? fullTime(ts) : "–");
  const rows = Object.entries(recipients).map(([userId, each]) =>
    h("tr", {}, h("th", { scope: "row" }, room.nameOf(userId)), h("td", {}, time(each.delivered_ts)), h("td", {}, time(each.read_ts))),
  );
  const head = ["Person", "Delivered", "Read"].map((text) => h("th", { scope: "col" }, text));
  return h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, rows));
}
