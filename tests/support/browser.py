"""A browser without a screen: cookies, links and forms of the account pages, and what every page must keep to.

    page = await browser.open("/_homeserver/account/login")
    page = await browser.send(page, username="alice", password="…")

Each page that it is shown is examined: headers, policy, and what people who use a keyboard or a screen reader need.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
from lxml import html

ACCOUNT = "/_homeserver/account/"
LINK = re.compile(r"/(?!/)|#|data:image/svg|https://")


@dataclass(slots=True)
class PageShown:
    """A page, as the browser shows it."""

    response: httpx.Response
    tree: Any

    @property
    def path(self) -> str:
        return self.response.request.url.raw_path.decode()

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def text(self) -> str:
        """What a person reads."""
        return " ".join(self.tree.find(".//body").text_content().split())

    @property
    def title(self) -> str:
        return str(self.tree.findtext(".//title"))

    @property
    def heading(self) -> str:
        return " ".join(self.tree.find(".//h1").text_content().split())

    @property
    def problems(self) -> list[str]:
        """What the summary of errors says."""
        return [" ".join(each.text_content().split()) for each in self.tree.xpath("//*[@class='summary']//li")]

    def links(self) -> list[str]:
        return [each.get("href") for each in self.tree.iter("a")]

    def form(self, action: str = "") -> Any:
        """The form that is sent to an address below ACCOUNT; the only one that needs no script if none is named."""
        forms = [
            each
            for each in self.tree.iter("form")
            if (each.get("action").partition("?")[0] == ACCOUNT + action if action else each.get("hidden") is None)
        ]
        assert len(forms) == 1, f"{len(forms)} forms on {self.path}: {self.text}"
        return forms[0]


@dataclass(slots=True)
class Browser:
    """Keeps cookies like a browser. `app` is the server, an ASGI application."""

    app: Any
    server_name: str
    address: str = "192.0.2.7"
    http: httpx.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        transport = httpx.ASGITransport(self.app, client=(self.address, 4711))
        headers = {"user-agent": "Mozilla/5.0 (test)"}
        self.http = httpx.AsyncClient(transport=transport, base_url=f"https://{self.server_name}", headers=headers)

    async def open(self, path: str) -> PageShown:
        """Follows a link, and the redirects after it."""
        return await self.shown(await self.http.get(path))

    async def send(self, page: PageShown, action: str = "", **fields: str | None) -> PageShown:
        """Fills in a form of the page, sends it, and follows the redirects after it. None unchecks a box."""
        return await self.shown(await self.post(page, action, **fields))

    async def post(self, page: PageShown, action: str = "", **fields: str | None) -> httpx.Response:
        """Fills in a form of the page and sends it. Returns the answer itself."""
        form = page.form(action)
        values = dict(form.form_values())
        unknown = fields.keys() - {each.get("name") for each in form.xpath(".//input|.//button")}
        assert not unknown, f"no such fields: {unknown}"
        values.update({key: value for key, value in fields.items() if value is not None})
        data = {key: value for key, value in values.items() if fields.get(key, "") is not None}
        return await self.http.post(urljoin(page.path, form.get("action")), data=data, headers=self.own_headers())

    def own_headers(self) -> dict[str, str]:
        return {"sec-fetch-site": "same-origin", "origin": f"https://{self.server_name}"}

    async def shown(self, response: httpx.Response) -> PageShown:
        """The page at the end of the redirects, examined."""
        for _ in range(5):
            if response.status_code != 303:
                break
            assert urlsplit(response.headers["location"]).netloc in ("", self.server_name), response.headers["location"]
            response = await self.http.get(response.headers["location"])
        page = PageShown(response, html.document_fromstring(response.text))
        examine(page)
        return page

    async def log_in(self, name: str, password: str) -> PageShown:
        """Logs in on the log-in page."""
        page = await self.open(f"{ACCOUNT}login")
        return await self.send(page, username=name, password=password)


def examine(page: PageShown) -> None:
    """Asserts what holds for every page, whatever it is about."""
    examine_headers(page.response)
    tree, where = page.tree, page.path
    assert not tree.xpath("//script[not(@src)]|//style|//@style|//@*[starts-with(name(), 'on')]"), where
    assert not [each for each in tree.xpath("//@href|//@src|//@action") if not LINK.match(each)], where
    assert tree.get("lang") == "en" and page.title, where
    assert len(tree.findall(".//h1")) == 1 and len(tree.findall(".//main")) == 1, where
    loaded = [each.get("src") or each.get("href") for each in tree.xpath("//script|//img|//link|//iframe")]
    assert all(each.startswith(("data:", "/_homeserver/account/")) for each in loaded), loaded
    ids = [each.get("id") for each in tree.xpath("//*[@id]")]
    assert len(ids) == len(set(ids)), where
    for each in tree.xpath("//input|//select|//textarea"):
        if each.get("type") == "hidden" or each.get("hidden") is not None:
            continue
        assert tree.xpath(f"//label[@for='{each.get('id')}']"), f"{where}: no label for {each.get('name')}"
        assert each.get("type") in ("checkbox", "radio", "file") or each.get("autocomplete"), where
        for described in (each.get("aria-describedby") or "").split():
            assert described in ids, f"{where}: {described}"
    for each in tree.xpath("//button|//a"):
        assert each.text_content().strip() or each.get("aria-label"), where
    for form in tree.iter("form"):
        assert form.get("method") == "post", where
        assert form.xpath(".//input[@name='form_token']"), f"{where}: a form without its token"


def examine_headers(response: httpx.Response) -> None:
    """Asserts the headers that protect every page."""
    headers = response.headers
    policy = dict(part.partition(" ")[::2] for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == "'none'"
    assert policy["frame-ancestors"] == "'none'" and headers["x-frame-options"] == "DENY"
    assert policy["style-src"] == "'self'" and policy.get("script-src", "'self'") == "'self'"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
