// Building the page: elements are made here and nowhere else. Text becomes text nodes, never markup, so nothing
// that other people write can become a part of the page. The server's Content-Security-Policy enforces the same
// (`require-trusted-types-for 'script'`): a browser refuses every assignment of a string to `innerHTML`.

import { ICONS } from "./icons.js";

const PROPERTIES = new Set(["value", "checked", "disabled", "hidden", "indeterminate", "src", "open"]);
const SVG = "http://www.w3.org/2000/svg";

// Returns an element. `attributes`: `on` holds event listeners, `style` custom properties and lengths; null, undefined
// and false leave an attribute out. Children are nodes, strings, arrays of these, or nothing.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") {
      for (const [type, listener] of Object.entries(value)) element.addEventListener(type, listener);
    } else if (name === "style") {
      for (const [property, length] of Object.entries(value)) element.style.setProperty(property, length);
    } else if (PROPERTIES.has(name)) {
      element[name] = value;
    } else if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : String(value));
    }
  }
  append(element, children);
  return element;
}

function append(parent, children) {
  for (const child of children) {
    if (Array.isArray(child)) append(parent, child);
    else if (child !== null && child !== undefined && child !== false) parent.append(child);
  }
}

// Replaces the children of an element.
export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
}

// Returns one of the icons of icons.js. It is decoration: what it stands for is said by the label of its button.
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `icon icon-${name}`);
  for (const line of ICONS[name]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", line);
    svg.append(path);
  }
  return svg;
}

// Returns a button that shows an icon only. `label` is what screen readers say and what the pointer shows.
export function iconButton(name, label, listener, attributes = {}) {
  const { class: extra = "", ...others } = attributes;
  return h(
    "button",
    { type: "button", class: `icon-button ${extra}`, "aria-label": label, title: label, on: { click: listener }, ...others },
    icon(name),
  );
}

// Makes the children of `parent` those of `items`, in this order, and touches only what has changed, so focus,
// selection and pictures stay. `keyOf` names an item for ever, `signatureOf` changes when it looks different.
export class KeyedList {
  #parent;
  #shown = new Map();

  constructor(parent) {
    this.#parent = parent;
  }

  update(items, keyOf, signatureOf, make) {
    const next = new Map();
    let place = this.#parent.firstChild;
    for (const item of items) {
      const key = keyOf(item);
      const signature = signatureOf(item);
      let entry = this.#shown.get(key);
      if (!entry || entry.signature !== signature) {
        const node = make(item);
        if (entry) {
          if (place === entry.node) place = entry.node.nextSibling;
          const focused = entry.node.contains(document.activeElement);
          entry.node.replaceWith(node);
          if (focused) (node.matches("[tabindex],button,a") ? node : node.querySelector("[tabindex],button,a"))?.focus();
        }
        if (!entry) this.#parent.insertBefore(node, place);
        else if (node.nextSibling !== place) this.#parent.insertBefore(node, place);
        entry = { node, signature };
      } else if (entry.node === place) {
        place = place.nextSibling;
      } else {
        this.#parent.insertBefore(entry.node, place);
      }
      next.set(key, entry);
    }
    for (const [key, entry] of this.#shown) {
      if (!next.has(key)) entry.node.remove();
    }
    this.#shown = next;
  }

  get(key) {
    return this.#shown.get(key)?.node;
  }
}

const announcer = () => document.getElementById("announcer");

// Has screen readers say something, after what they are saying.
export function announce(text) {
  const line = h("p", {}, text);
  announcer().append(line);
  setTimeout(() => line.remove(), 5000);
}
