// The round picture of a person or a group: theirs, or else the first letter on a colour of their own.

import { h } from "./dom.js";

const HUES = [155, 190, 220, 255, 290, 325, 15, 45];

// Returns an avatar. presence: {online} puts a dot on it. It is decoration: the name always stands beside it.
export function avatar(media, { id, name, url, presence, size = 44 }) {
  const letter = [...new Intl.Segmenter().segment(name.replace(/^[@#!\s]+/, ""))][0]?.segment.toUpperCase() ?? "?";
  const element = h("span", { class: "avatar", "aria-hidden": "true", style: { "--hue": String(hueOf(id)), "--size": `${size}px` } }, h("span", {}, letter));
  if (presence?.online) element.append(h("span", { class: "dot" }));
  if (url) {
    media.thumbnail(url, 96, 96, "crop").then(
      (address) => element.prepend(h("img", { src: address, alt: "" })),
      () => {}, // the letter stays
    );
  }
  return element;
}

function hueOf(id) {
  let sum = 0;
  for (const character of id) sum = (sum * 31 + character.codePointAt(0)) % 65_521;
  return HUES[sum % HUES.length];
}
