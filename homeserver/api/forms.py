"""Pages with one question, for people who have followed a link or were sent here. They load nothing from elsewhere."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from html import escape
from typing import Literal
from urllib.parse import parse_qsl

import msgspec

from homeserver import limits
from homeserver.api.routes import Response
from homeserver.errors import bad_json

_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
_POLICY = {
    "default-src": "'none'",
    "style-src": "'unsafe-inline'",
    "form-action": "'self'",
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{
  --paper: #f6f7f5; --ink: #16201c; --soft: #5a6762; --line: #c8d1cc; --accent: #0b7a5e; --on: #fff; --bad: #a3261b;
}}
@media (prefers-color-scheme: dark) {{
  :root {{
    --paper: #101513; --ink: #e8efeb; --soft: #9aa8a2; --line: #3a4742; --accent: #4fd1a5; --on: #101513;
    --bad: #ff9d92;
  }}
}}
body {{ font: 17px/1.6 system-ui, sans-serif; background: var(--paper); color: var(--ink); margin: 0; }}
main {{ max-width: 34rem; margin: 0 auto; padding: clamp(2rem, 15vh, 9rem) 1.25rem 2rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }}
p {{ overflow-wrap: anywhere; }}
form, .links {{ margin-top: 1.6rem; }}
label {{ display: block; font-weight: 600; }}
.hint {{ color: var(--soft); margin: .2rem 0 .4rem; }}
.error {{ color: var(--bad); font-weight: 600; }}
input {{ font: inherit; width: 100%; box-sizing: border-box; padding: .55rem .7rem; margin: .2rem 0 1.2rem; }}
input {{ color: inherit; background: transparent; border: 1px solid var(--line); border-radius: 10px; }}
button, .links a {{ font: inherit; font-weight: 600; padding: .6rem 1.4rem; border: 0; border-radius: 10px; }}
button, .links a {{ color: var(--on); background: var(--accent); text-decoration: none; display: inline-block; }}
.links a {{ margin: 0 .6rem .6rem 0; }}
a {{ color: var(--accent); }}
input:focus-visible, button:focus-visible, a:focus-visible {{ outline: 3px solid currentColor; outline-offset: 3px; }}
</style>
{head}</head>
<body>
<main>
<h1>{title}</h1>
{body}</main>
</body>
</html>
"""


class TextField(msgspec.Struct, frozen=True):
    """A text that is asked for. hint: how it must look, "" for nothing."""

    name: str
    label: str
    value: str = ""
    hint: str = ""
    kind: Literal["text", "password"] = "text"


class PageExtras(msgspec.Struct, frozen=True):
    """What few pages need: fields of the form, links as buttons, what was wrong, and a script.

    links: texts by URL. head: more of the head, such as a script's element; body: more of the form. Both are HTML.
    policy: directives of the Content-Security-Policy that replace the usual ones. cookie: a Set-Cookie header.
    """

    fields: Sequence[TextField] = ()
    links: Mapping[str, str] = msgspec.field(default_factory=dict)
    error: str = ""
    script: str = ""
    head: str = ""
    body: str = ""
    policy: Mapping[str, str] = msgspec.field(default_factory=dict)
    cookie: str = ""


_PLAIN = PageExtras()


def make_page(
    title: str, text: str | Sequence[str], button: str = "", extras: PageExtras = _PLAIN, *, status: int = 200
) -> Response:
    """Returns a page. With a button it is a form, which is sent by POST to the address of the page."""
    paragraphs = [text] if isinstance(text, str) else text
    body = "".join(f"<p>{escape(each)}</p>\n" for each in paragraphs)
    if extras.error:
        body += f'<p class="error" role="alert">{escape(extras.error)}</p>\n'
    if extras.links:
        links = "\n".join(f'<a href="{escape(url)}">{escape(label)}</a>' for url, label in extras.links.items())
        body += f'<div class="links">\n{links}\n</div>\n'
    if button:
        fields = "".join(map(_input, extras.fields))
        body += f'<form method="post">\n{fields}{extras.body}<button>{escape(button)}</button>\n</form>\n'
    policy, head = {**_POLICY, **extras.policy}, extras.head
    if extras.script:
        digest = b64encode(sha256(extras.script.encode()).digest()).decode()
        policy["script-src"] = f"{extras.policy.get('script-src', '')} 'sha256-{digest}'".strip()
        body += f"<script>{extras.script}</script>\n"
    headers = {**_HEADERS, "content-security-policy": "; ".join(f"{key} {value}" for key, value in policy.items())}
    if extras.cookie:
        headers["set-cookie"] = extras.cookie
    page = _PAGE.format(title=escape(title), head=head, body=body)
    return Response(status, page.encode(), headers)


def _input(given: TextField) -> str:
    name, hint = escape(given.name), ""
    if given.hint:
        hint = f'<p class="hint" id="{name}-hint">{escape(given.hint)}</p>\n'
    complete = "current-password" if given.kind == "password" else "off"
    described = f' aria-describedby="{name}-hint"' if hint else ""
    return (
        f'<label for="{name}">{escape(given.label)}</label>\n{hint}<input id="{name}" name="{name}" type="{given.kind}"'
        f' value="{escape(given.value)}" autocomplete="{complete}" autocapitalize="none" spellcheck="false"{described}'
        " required>\n"
    )


# Spec: client-server-api/#fallback has these lines.
_DONE_SCRIPT = """
if (window.onAuthDone) {
    window.onAuthDone();
} else if (window.opener && window.opener.postMessage) {
    window.opener.postMessage("authDone", "*");
}
"""


def done_page(cookie: str = "") -> Response:
    """Returns the page at the end of a stage of user-interactive authentication, which tells the client about it."""
    extras = PageExtras(script=_DONE_SCRIPT, cookie=cookie)
    return make_page("Thank you", "You can close this page and go back to your app.", extras=extras)


def decode_form(data: bytes) -> dict[str, str]:
    """Returns the fields of a form that was sent by POST, the last value of each. Raises M_BAD_JSON."""
    try:
        text = data.decode("ascii")
        pairs = parse_qsl(text, True, errors="strict", max_num_fields=limits.http.QUERY_PARAMETERS_MAX)
    except ValueError as error:
        raise bad_json("The form is not valid, or has too many fields.") from error
    return dict(pairs)


def redirect(url: str, cookie: str = "") -> Response:
    """Returns an answer that sends a browser to another URL, with GET."""
    headers = {"location": url, "cache-control": "no-store", "referrer-policy": "no-referrer"}
    return Response(302, b"", {**headers, "set-cookie": cookie} if cookie else headers)
