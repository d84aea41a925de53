// The settings: name, appearance, notifications, who may see and ask what, who is blocked, log out.

import { fill, h, icon } from "./dom.js";
import { openDialog, openForm } from "./menu.js";
import { CHOICES } from "./store.js";

const THEMES = { system: "As the system", light: "Light", dark: "Dark" };
const PRIVACY = [
  ["status", "Who sees when I am online", ["everyone", "friends", "nobody"]],
  ["delivery", "Who sees that messages reached me", ["everyone", "friends", "nobody"]],
  ["friend_requests", "Who may ask to be my friend", ["everyone", "shared_room", "nobody"]],
  ["invites", "Who may invite me to groups", ["everyone", "shared_room", "friends", "nobody"]],
];
const AUDIENCES = { everyone: "Everyone", friends: "My friends", shared_room: "People I share a group with", nobody: "Nobody" };
const SHORTCUTS = [
  ["Ctrl K", "Search"],
  ["Alt ↑  Alt ↓", "Previous or next conversation"],
  ["↑ in an empty field", "Edit your last message"],
  ["Shift Tab from the field", "Go to the messages; ↑ and ↓ move between them"],
  ["R, E, + on a message", "Reply, edit, react"],
  ["Enter on a message", "Everything that can be done with it"],
  ["Esc", "Close what is open"],
];

// Opens the settings.
export function openSettings(app) {
  openDialog("Settings", () => [nameForm(app), appearance(app), notifications(app), privacy(app), blocked(app), shortcuts(), session(app)], { class: "settings" });
}

function nameForm(app) {
  const { api, store } = app;
  const submit = async (event) => {
    event.preventDefault();
    const name = new FormData(event.target).get("name").trim();
    await app.attempt(async () => {
      await api.call("set_profile_field", [api.userId, "displayname"], { body: { displayname: name } });
      app.say("Your name has been changed.");
    });
  };
  return h(
    "section",
    {},
    h("h3", {}, "You"),
    h("p", { class: "hint" }, api.userId),
    h(
      "form",
      { class: "inline", on: { submit } },
      h("input", { name: "name", value: store.nameOf(api.userId), "aria-label": "Your name", maxlength: 100, autocomplete: "off" }),
      h("button", {}, "Save"),
    ),
  );
}

function appearance(app) {
  const options = Object.entries(THEMES).map(([value, label]) =>
    h("label", {}, h("input", { type: "radio", name: "theme", value, checked: app.settings.theme === value, on: { change: () => app.change({ theme: value }) } }), label),
  );
  return h("section", {}, h("fieldset", { class: "choice row-of" }, h("legend", {}, "Appearance"), options));
}

function notifications(app) {
  const box = h("input", { type: "checkbox", checked: app.notifications.isOn, disabled: !app.notifications.isPossible });
  const hint = h("small", { role: "status" }, app.notifications.isPossible ? "" : "This browser shows notifications on secure (https) addresses only.");
  box.addEventListener("change", async () => {
    const wanted = box.checked;
    box.checked = await app.notifications.set(wanted);
    fill(hint, wanted && !box.checked ? "The browser does not allow notifications of this page. Its settings can change that." : "");
  });
  return h("section", {}, h("h3", {}, "Notifications"), h("label", { class: "check" }, box, "Notify me of messages while I look elsewhere"), hint);
}

function privacy(app) {
  const section = h("section", { hidden: true }, h("h3", {}, "Privacy"));
  app.api.call("get_privacy").then(
    (current) => {
      section.hidden = false;
      for (const [key, label, audiences] of PRIVACY) {
        const change = (event) =>
          app.attempt(async () => {
            current = { ...current, [key]: event.target.value };
            await app.api.call("put_privacy", [], { body: current });
          });
        const options = audiences.map((value) => h("option", { value }, AUDIENCES[value]));
        const select = h("select", { on: { change } }, options);
        select.value = current[key];
        section.append(h("label", { class: "field" }, h("span", {}, label), select));
      }
      section.append(receipts(app));
    },
    () => section.remove(), // a server without these settings
  );
  return section;
}

function receipts(app) {
  const change = (event) =>
    app.attempt(async () => {
      const body = { private_receipts: !event.target.checked };
      await app.api.call("set_account_data", [app.api.userId, CHOICES], { body });
    });
  const box = h("input", { type: "checkbox", checked: !app.store.readsPrivately, on: { change } });
  return h("label", { class: "check" }, box, "Tell others what I have read");
}

function blocked(app) {
  const section = h("section", { hidden: true }, h("h3", {}, "Blocked people"));
  if (app.store.friendsServed) {
    app.people.blocked().then(
      (people) => {
        section.hidden = people.length === 0;
        for (const userId of people) {
          const row = h("p", { class: "inline" }, h("span", {}, userId), h("button", { type: "button", on: { click: () => app.attempt(() => unblock()) } }, "Unblock"));
          const unblock = async () => {
            await app.people.setBlocked(userId, false);
            row.remove();
          };
          section.append(row);
        }
      },
      () => section.remove(), // nothing to show
    );
  }
  return section;
}

function shortcuts() {
  return h(
    "details",
    {},
    h("summary", {}, "Keyboard"),
    h("dl", {}, SHORTCUTS.map(([keys, text]) => [h("dt", {}, h("kbd", {}, keys)), h("dd", {}, text)])),
  );
}

function session(app) {
  const logOut = () =>
    openForm("Log out?", h("p", {}, "This browser forgets your conversations. They stay on the server."), "Log out", () => {
      for (const dialog of document.querySelectorAll("dialog.settings")) dialog.close();
      return app.onLogOut();
    });
  return h("section", {}, h("button", { type: "button", class: "with-icon", on: { click: logOut } }, icon("logout"), "Log out"));
}
