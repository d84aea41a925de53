// A browser without a screen: it keeps cookies, follows redirects of the server, and sends forms.

import { check } from "../js_sdk/people.mjs";

const unescape = (text) => text.replaceAll("&#34;", '"').replaceAll("&#39;", "'").replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">").replaceAll("&amp;", "&");
const attribute = (tag, name) => unescape(tag.match(new RegExp(`\\b${name}="([^"]*)"`))?.[1] ?? "");

export class Browser {
    #cookies = new Map();

    /** @param home: the address of the server. Pages of other servers are not loaded. */
    constructor(home) {
        this.home = home;
    }

    /** Opens an address, and those to which the server redirects. Returns where that ends. */
    async open(address, options = {}) {
        this.url = new URL(address, this.url ?? this.home);
        if (this.url.origin !== new URL(this.home).origin) return this.url;
        const cookie = [...this.#cookies].map(([name, value]) => `${name}=${value}`).join("; ");
        const headers = { cookie, origin: this.url.origin, ...options.headers };
        const answer = await fetch(this.url, { ...options, headers, redirect: "manual" });
        for (const line of answer.headers.getSetCookie()) {
            const [, name, value] = line.match(/^([^=]+)=([^;]*)/);
            this.#cookies.set(name, value);
        }
        if (answer.status >= 300 && answer.status < 400) return this.open(answer.headers.get("location"));
        this.text = await answer.text();
        check(`${this.url.pathname} is a page`, answer.status === 200);
        return this.url;
    }

    /** Fills in the form of this page that has all these fields and no others that are visible, and sends it. */
    async send(fields) {
        for (const [form] of this.text.matchAll(/<form\b[^]*?<\/form>/g)) {
            const inputs = [...form.matchAll(/<(?:input|button)\b[^>]*>/g)].map(([tag]) => tag);
            const names = new Set(inputs.map((tag) => attribute(tag, "name")));
            if (!Object.keys(fields).every((name) => names.has(name))) continue;
            const hidden = inputs.filter((tag) => attribute(tag, "type") === "hidden");
            const body = new URLSearchParams(hidden.map((tag) => [attribute(tag, "name"), attribute(tag, "value")]));
            for (const [name, value] of Object.entries(fields)) body.set(name, value);
            return this.open(attribute(form, "action"), { method: "POST", body });
        }
        throw new Error(`no form of ${this.url} has ${Object.keys(fields)}: ${this.text}`);
    }
}
