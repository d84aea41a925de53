"""The page with which apps log in that do not know how, in a web view. Spec: client-server-api/#login-fallback

Its script does what a client does: `POST /login` with the password, or with the token that a provider of single
sign-on leads back to this page with. It gives the answer to the function that the app has put into the page. Without
that function it logs nobody in: nobody would get the access token, and a link could not log in anything either.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

import msgspec

from homeserver.api.forms import PageExtras, TextField, make_page
from homeserver.api.routes import Response, Routes
from homeserver.feature import Feature
from homeserver.resources import Resources

PATH = "/_matrix/static/client/login/"

routes = Routes()


class FallbackQuery(msgspec.Struct, frozen=True):
    """Parameters of the log-in that the page passes on. The script reads them, and the token of single sign-on."""

    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: str | None = None


@routes.get(PATH, rate_limit="login")
async def show_login_fallback(hs: Resources, query: FallbackQuery) -> Response:
    given = {name: value for name, value in msgspec.structs.asdict(query).items() if value is not None}
    here = f"{hs.config.public.base_url}{PATH}" + (f"?{urlencode(given)}" if given else "")
    target = urlencode({"redirectUrl": here})
    links = {
        f"/_matrix/client/v3/login/sso/redirect/{quote(each.id, safe='')}?{target}": each.name for each in hs.config.sso
    }
    fields = [TextField("username", "Username"), TextField("password", "Password", kind="password")]
    extras = PageExtras(
        fields=fields,
        links=links,
        script=_SCRIPT,
        body='<p class="error" role="alert" id="said"></p>\n<noscript><p>This page needs JavaScript.</p></noscript>\n',
        policy={"connect-src": "'self'"},
    )
    return make_page(f"Log in to {hs.server_name}", "An app asks you to log in to your account.", "Log in", extras)


_SCRIPT = """
"use strict";
const given = new URLSearchParams(location.search);
const form = document.querySelector("form");
const said = document.getElementById("said");
const button = form.querySelector("button");

async function logIn(proof) {
  const login = window.matrixLogin;
  if (!login || typeof login.onLogin !== "function") {
    said.textContent = "This page only works inside an app that has opened it.";
    return;
  }
  const body = { ...proof };
  for (const name of ["device_id", "initial_device_display_name"]) {
    if (given.has(name)) body[name] = given.get(name);
  }
  if (given.get("refresh_token") === "true") body.refresh_token = true;
  button.disabled = true;
  said.textContent = "";
  try {
    const answer = await fetch("../../../client/v3/login", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    });
    const told = await answer.json();
    if (answer.ok) login.onLogin(told);
    else said.textContent = told.error || "The server refused the log-in.";
  } catch {
    said.textContent = "The server could not be reached. Try again.";
  }
  button.disabled = false;
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  logIn({
    type: "m.login.password",
    identifier: { type: "m.id.user", user: form.username.value.trim() },
    password: form.password.value,
  });
});

const token = given.get("loginToken");
if (token) {
  given.delete("loginToken");
  history.replaceState(null, "", given.size ? `?${given}` : location.pathname);
  logIn({ type: "m.login.token", token });
}
"""

FEATURE = Feature(name="login_fallback", spec="client-server-api/#login-fallback", routes=routes)
