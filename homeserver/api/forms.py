"""Pages with one question, for people who have opened a link in an email. They load nothing and run no scripts."""

from __future__ import annotations

from html import escape

from homeserver.api.routes import Response

_HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ font: 17px/1.6 system-ui, sans-serif; max-width: 34rem; margin: 15vh auto 0; padding: 0 1.25rem; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }}
p {{ overflow-wrap: anywhere; }}
button {{ font: inherit; font-weight: 600; padding: .6rem 1.4rem; border: 0; border-radius: 10px; }}
button {{ color: #fff; background: #0b7a5e; }}
button:focus-visible {{ outline: 3px solid currentColor; outline-offset: 3px; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p>{text}</p>
{form}</main>
</body>
</html>
"""


def make_page(title: str, text: str, button: str = "", *, status: int = 200) -> Response:
    """Returns a page. With a button it is a form, which is sent by POST to the address of the page."""
    form = f'<form method="post"><button>{escape(button)}</button></form>\n' if button else ""
    page = _PAGE.format(title=escape(title), text=escape(text), form=form)
    return Response(status, page.encode(), _HEADERS)
