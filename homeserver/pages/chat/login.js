// The page before logging in.

import { fill, h } from "./dom.js";
import { field } from "./menu.js";

// Shows the form. `said`: a sentence above it. Resolves once the person is logged in.
export function showLogin(root, api, said = "") {
  return new Promise((resolve) => {
    const problem = h("p", { class: "problem", role: "alert" }, said);
    const button = h("button", { class: "primary" }, "Log in");
    const submit = async (event) => {
      event.preventDefault();
      const form = new FormData(event.target);
      fill(problem);
      button.disabled = true;
      try {
        await api.logIn(form.get("user").trim(), form.get("password"), form.get("keep") === "on");
        resolve();
      } catch (error) {
        fill(problem, error.errcode === "M_FORBIDDEN" ? "The name or the password is wrong." : error.message);
        button.disabled = false;
        event.target.elements.password.focus();
      }
    };
    const serverName = document.documentElement.dataset.serverName;
    fill(
      root,
      h(
        "main",
        { class: "login" },
        h("p", { class: "brand" }, h("b", { "aria-hidden": "true" }, "[m]"), " Chat"),
        h("h1", {}, serverName),
        h(
          "form",
          { on: { submit } },
          field("Name", { name: "user", required: true, autofocus: true, autocomplete: "username", autocapitalize: "none", spellcheck: "false", placeholder: `juliet or @juliet:${serverName}` }),
          field("Password", { name: "password", type: "password", required: true, autocomplete: "current-password" }),
          h("label", { class: "check" }, h("input", { type: "checkbox", name: "keep", checked: true }), "Keep me logged in on this computer"),
          problem,
          button,
        ),
      ),
    );
  });
}
