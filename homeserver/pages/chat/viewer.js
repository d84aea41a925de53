// A picture as large as the window.

import { fill, h, iconButton } from "./dom.js";

// Opens the picture of a message.
export function openPicture(app, content, name) {
  const stage = h("div", { class: "stage" }, h("p", { role: "status" }, "Loading…"));
  const close = () => dialog.close();
  const save = () => app.attempt(() => app.media.save(content.url, name));
  const dialog = h(
    "dialog",
    { class: "viewer", "aria-label": name, on: { click: (event) => event.target === stage && close() } },
    h("header", {}, h("span", {}, name), iconButton("download", "Save", save), iconButton("close", "Close", close)),
    stage,
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  app.media.picture(content.url).then(
    (address) => fill(stage, h("img", { src: address, alt: name })),
    () => fill(stage, h("p", { role: "alert" }, "The picture cannot be shown. It can be saved instead.")),
  );
}
