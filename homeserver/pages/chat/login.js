// The page before logging in.

import { fill, h } from "./dom.js";
import { field } from "./menu.js";
import { beginSignOn } from "./session.js";

const LOG_IN = "Log in";
const REGISTER = "Create account";

// Shows the form. `said`: a sentence above its button. Resolves once the person is logged in.
export function showLogin(root, api, said = "") {
  const { serverName, registration } = document.documentElement.dataset;
  return new Promise((resolve) => {
    const problem = h("p", { class: "problem", role: "alert" });
    const form = h("form", {});
    const show = (isNew, sentence) => {
      fill(problem, sentence);
      fill(form, fields(isNew, serverName, registration), keep(), problem, h("button", { class: "primary" }, isNew ? REGISTER : LOG_IN));
      fill(other, otherWay(isNew, registration, () => show(!isNew, "")));
      form.onsubmit = (event) => submit(event, isNew);
      form.elements.user.focus();
    };
    const submit = async (event, isNew) => {
      event.preventDefault();
      const button = form.querySelector(".primary");
      const given = new FormData(form);
      const [user, password, token, isKept] = [given.get("user").trim(), given.get("password"), given.get("token")?.trim(), given.get("keep") === "on"];
      fill(problem);
      button.disabled = true;
      try {
        if (isNew) await api.register(user, password, token, isKept);
        else await api.logIn(user, password, isKept);
        resolve();
      } catch (error) {
        fill(problem, sentenceOf(error, isNew));
        button.disabled = false;
        form.elements[isNew ? "user" : "password"].focus();
      }
    };
    const other = h("p", { class: "other" });
    const providers = h("div", { class: "providers" });
    showProviders(providers, api, form);
    const brand = h("p", { class: "brand" }, h("b", { "aria-hidden": "true" }, "[m]"), " Chat");
    fill(root, h("main", { class: "login" }, brand, h("h1", {}, serverName), form, providers, other));
    show(false, said);
  });
}

function fields(isNew, serverName, registration) {
  const name = { name: "user", required: true, autocomplete: "username", autocapitalize: "none", spellcheck: "false" };
  const password = { name: "password", type: "password", required: true };
  if (!isNew) {
    return [
      field("Name", { ...name, placeholder: `juliet or @juliet:${serverName}` }),
      field("Password", { ...password, autocomplete: "current-password" }),
    ];
  }
  return [
    field("Name", { ...name, placeholder: "juliet" }, "Small letters, digits and . _ - can be used. It cannot be changed later."),
    field("Password", { ...password, autocomplete: "new-password" }),
    registration === "token" ? field("Registration token", { name: "token", required: true, autocomplete: "off" }, "You get one from the people who run this server.") : null,
  ];
}

// Offers the outside providers that the server has. Without an answer the form is enough.
async function showProviders(place, api, form) {
  const { flows } = await api.call("get_login_flows").catch(() => ({ flows: [] }));
  const known = flows.find((flow) => flow.type === "m.login.sso")?.identity_providers ?? [];
  const go = (provider) => {
    const back = new URL(location.pathname, location.origin);
    back.searchParams.set("sso", beginSignOn(form.elements.keep.checked));
    const path = api.address(`/_matrix/client/v3/login/sso/redirect/${encodeURIComponent(provider.id)}`);
    location.assign(`${path}?redirectUrl=${encodeURIComponent(back)}`);
  };
  fill(place, known.map((provider) => h("button", { type: "button", on: { click: () => go(provider) } }, `Continue with ${provider.name}`)));
}

function keep() {
  return h("label", { class: "check" }, h("input", { type: "checkbox", name: "keep", checked: true }), "Keep me logged in on this computer");
}

// Returns the way to the other form. Servers where nobody can register have none.
function otherWay(isNew, registration, go) {
  if (registration === "closed") return null;
  const link = h("button", { type: "button", class: "link", on: { click: go } }, isNew ? LOG_IN : REGISTER);
  return [isNew ? "Do you have an account? " : "Are you new here? ", link];
}

function sentenceOf(error, isNew) {
  if (!isNew && error.errcode === "M_FORBIDDEN") return "The name or the password is wrong.";
  if (isNew && error.status === 401) return "This registration token is not valid.";
  return error.message;
}
