// Menus, dialogs, and the choice of an emoji. All of them take the focus and give it back.

import { fill, h, icon, iconButton } from "./dom.js";

const GAP = 6;

// Opens a menu beside an element. entries: [{label, icon, action, isDanger}].
export function openMenu(anchor, label, entries) {
  const buttons = entries.map((entry) =>
    h(
      "button",
      {
        type: "button",
        role: "menuitem",
        class: entry.isDanger ? "danger" : null,
        tabindex: -1,
        on: {
          click: () => {
            menu.hidePopover();
            entry.action();
          },
        },
      },
      icon(entry.icon),
      entry.label,
    ),
  );
  const menu = h("div", { role: "menu", class: "menu", popover: "auto", "aria-label": label }, buttons);
  menu.addEventListener("keydown", (event) => moveFocus(event, buttons, 1));
  show(menu, anchor);
  buttons[0]?.focus();
  return menu;
}

export const QUICK_EMOJI = ["👍", "❤️", "😂", "😮", "😢", "🙏"];
const EMOJI = [
  ...QUICK_EMOJI,
  ..."😀 😊 😉 😍 🥰 😘 😎 🤔 🙄 😴 🥳 😇 🤗 🤩 😋 😜 😅 😬 😔 😭 😡 🤯 😱 🤒 👎 👌 ✌️ 🤞 👏 🙌 💪 👋 🤝 🖤 💛 💚 💙 💔 🔥 ✨ ⭐ 🎉 🎂 🎁 🌹 🌞 🌙 ☕ 🍵 🍕 🍷 🐱 🐶 🚀 ✅ ❌ ❓ ❗".split(" "),
];
const COLUMNS = 8;

// Opens the choice of an emoji beside an element.
export function openEmoji(anchor, onPick) {
  const buttons = EMOJI.map((emoji) =>
    h("button", { type: "button", tabindex: -1, on: { click: () => (panel.hidePopover(), onPick(emoji)) } }, emoji),
  );
  const panel = h("div", { class: "emoji-panel", role: "group", popover: "auto", "aria-label": "Emoji" }, buttons);
  panel.addEventListener("keydown", (event) => moveFocus(event, buttons, COLUMNS));
  show(panel, anchor);
  buttons[0].focus();
}

function moveFocus(event, buttons, columns) {
  const steps = { ArrowDown: columns, ArrowUp: -columns, Home: -buttons.length, End: buttons.length };
  if (columns > 1) Object.assign(steps, { ArrowRight: 1, ArrowLeft: -1 });
  if (!(event.key in steps)) return;
  event.preventDefault();
  event.stopPropagation();
  const now = buttons.indexOf(document.activeElement);
  const next = now + steps[event.key];
  const isRing = columns === 1 && Math.abs(steps[event.key]) === 1;
  const place = isRing ? (next + buttons.length) % buttons.length : Math.max(0, Math.min(buttons.length - 1, next));
  buttons[place].focus();
}

function show(panel, anchor) {
  const before = document.activeElement;
  document.body.append(panel);
  panel.addEventListener("toggle", (event) => {
    if (event.newState !== "closed") return;
    const hadFocus = panel.contains(document.activeElement) || document.activeElement === document.body;
    panel.remove();
    if (hadFocus && before?.isConnected) before.focus();
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Tab") panel.hidePopover();
    if (event.key === "Escape") {
      event.stopPropagation();
      panel.hidePopover();
    }
  });
  panel.showPopover();
  const box = anchor.getBoundingClientRect();
  const own = panel.getBoundingClientRect();
  const isBelow = box.bottom + GAP + own.height <= innerHeight;
  const top = isBelow ? box.bottom + GAP : Math.max(GAP, box.top - own.height - GAP);
  const left = Math.max(GAP, Math.min(box.right - own.width, innerWidth - own.width - GAP));
  panel.style.setProperty("top", `${top}px`);
  panel.style.setProperty("left", `${left}px`);
}

// Opens a dialog with a title. `build` gets the function that closes it, and returns its content.
export function openDialog(title, build, attributes = {}) {
  const close = () => dialog.close();
  const heading = h("h2", { id: `dialog-${Math.random().toString(36).slice(2)}` }, title);
  const dialog = h(
    "dialog",
    { "aria-labelledby": heading.id, class: `dialog ${attributes.class ?? ""}` },
    h("header", {}, heading, iconButton("close", "Close", close)),
  );
  dialog.append(h("div", { class: "dialog-body" }, build(close)));
  dialog.addEventListener("close", () => dialog.remove());
  dialog.addEventListener("click", (event) => event.target === dialog && close());
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

// Opens a dialog with a form. `submit` may raise an Error, which is shown; otherwise the dialog closes.
export function openForm(title, fields, action, submit, attributes = {}) {
  return openDialog(
    title,
    (close) => {
      const problem = h("p", { class: "problem", role: "alert" });
      const button = h("button", { class: attributes.isDanger ? "primary danger" : "primary" }, action);
      const onSubmit = async (event) => {
        event.preventDefault();
        fill(problem);
        button.disabled = true;
        try {
          await submit(new FormData(event.target));
          close();
        } catch (error) {
          fill(problem, error.message);
        } finally {
          button.disabled = false;
        }
      };
      const cancel = h("button", { type: "button", on: { click: close } }, "Cancel");
      return h("form", { on: { submit: onSubmit } }, fields, problem, h("div", { class: "buttons" }, cancel, button));
    },
    attributes,
  );
}

// Asks whether something should really happen.
export function confirm(title, text, action, submit) {
  openForm(title, h("p", {}, text), action, submit, { isDanger: true });
}

// Returns a labelled input.
export function field(label, attributes, hint) {
  return h("label", { class: "field" }, h("span", {}, label), h("input", attributes), hint ? h("small", {}, hint) : null);
}
