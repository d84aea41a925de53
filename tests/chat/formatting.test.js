import assert from "node:assert/strict";
import { test } from "node:test";

import { isJumbo, linkify, markHits, nodesOf, parseHtml, safeUrl } from "./formatting.js";

const text = (nodes) => nodes.map((node) => (typeof node === "string" ? node : text(node.children))).join("");
const tags = (nodes) => nodes.flatMap((node) => (typeof node === "string" ? [] : [node.tag, ...tags(node.children)]));

test("harmless formatting is kept", () => {
  assert.deepEqual(parseHtml("a <b>bold</b> word"), ["a ", { tag: "b", children: ["bold"] }, " word"]);
  assert.deepEqual(tags(parseHtml("<ul><li>one<li>two</ul><p>x<br>y</p>")), ["ul", "li", "li", "p", "br"]);
});

test("attributes are dropped, links keep a safe address only", () => {
  assert.deepEqual(parseHtml('<b onclick="x()" style="y">z</b>'), [{ tag: "b", children: ["z"] }]);
  assert.equal(parseHtml('<a href="https://example.org/?a=1&amp;b=2" target=x>z</a>')[0].href, "https://example.org/?a=1&b=2");
  for (const address of ["javascript:alert(1)", " JaVaScript:alert(1)", "java&#x0A;script:alert(1)", "data:text/html,x", "blob:x", "//evil.example", "vbscript:x"]) {
    assert.equal(parseHtml(`<a href="${address}">z</a>`)[0].href, null, address);
  }
});

test("what could run or load is dropped with its content", () => {
  for (const html of ["<script>alert(1)</script>", "<style>*{}</style>", "<svg><script>x</script></svg>", "<iframe src=x>y</iframe>", "<math><mi>x</mi></math>", "<template><b>x</b></template>"]) {
    assert.deepEqual(parseHtml(`a${html}b`).join(""), "ab", html);
  }
});

test("other tags are dropped and their content stays as text", () => {
  assert.equal(text(parseHtml('<img src=x onerror="alert(1)"><font color="red">hi</font>')), "hi");
  assert.deepEqual(tags(parseHtml("<video><source></video><form><input></form>")), []);
});

test("broken markup becomes text or ends", () => {
  assert.equal(text(parseHtml("1 < 2 and 3 > 2")), "1 < 2 and 3 > 2");
  assert.equal(text(parseHtml("</b></p>x<b>y")), "xy");
  assert.equal(text(parseHtml("<b <i>x")), "<b x");
  assert.equal(text(parseHtml("a<!-- <script>b</script> -->c")), "ac");
});

test("deep and long markup is bounded", () => {
  assert.ok(tags(parseHtml("<b>".repeat(5000) + "x")).length < 30);
  assert.ok(text(parseHtml("x".repeat(200_000))).length <= 65_536);
});

test("long hostile markup takes no longer than its length allows", () => {
  const started = performance.now();
  for (const part of ["<a ", "<a href='", "<", "<!--", "<a\"'", "</"]) parseHtml(part.repeat(20_000));
  assert.ok(performance.now() - started < 3000);
});

test("entities are decoded once", () => {
  assert.equal(text(parseHtml("&lt;b&gt; &amp;amp; &#65;&#x42; &unknown; &#0; &#xD800;")), "<b> &amp; AB &unknown; \ufffd \ufffd");
});

test("the quote of older clients is left out", () => {
  assert.equal(text(parseHtml("<mx-reply><blockquote>old</blockquote></mx-reply>new")), "new");
});

test("addresses in a text become links without the end of the sentence", () => {
  assert.deepEqual(linkify("see https://a.example/b_(c)."), ["see ", { tag: "a", href: "https://a.example/b_(c)", children: ["https://a.example/b_(c)"] }, "."]);
  assert.deepEqual(linkify("(https://a.example)").map((node) => node.href), [undefined, "https://a.example/", undefined]);
  assert.deepEqual(linkify("javascript:alert(1) a://b"), ["javascript:alert(1) a://b"]);
  assert.equal(safeUrl("mailto:a@b.example"), "mailto:a@b.example");
});

test("plain text is never read as markup", () => {
  assert.deepEqual(nodesOf({ body: "<b>x</b>" }, "<b>x</b>"), ["<b>x</b>"]);
  assert.deepEqual(nodesOf({ body: "x", format: "text/html", formatted_body: "<b>y</b>" }, "x"), ["x"]);
});

test("a few emoji alone are shown large", () => {
  for (const emoji of ["❤️", "👍🏽", "👩‍👩‍👧 🎉", "🇩🇪"]) assert.ok(isJumbo(emoji), emoji);
  for (const other of ["hi ❤️", "👍👍👍👍", "", "12", " "]) assert.ok(!isJumbo(other) || other === " ", other);
});

test("hits of a search are marked whatever they contain", () => {
  assert.deepEqual(markHits("a.b A.B ab", ["a.b"]).map((part) => part.isHit), [true, false, true, false]);
  assert.deepEqual(markHits("abc", ["", "("]), [{ text: "abc", isHit: false }]);
});

test("texts that are made to take long take no time", () => {
  const many = (text) => text.repeat(65_000 / text.length);
  const began = performance.now();
  for (const text of ["<!--", "<!-- -", '<a "', "<a '", '<a href="', "<b>", "</b>", "<svg>", "&#", "<a href "]) parseHtml(many(text));
  for (const end of [")", "]", "}", ".", "(", ")(", ".)", "http://", "https://a)"]) linkify(`https://x${many(end)}`);
  for (const text of ["\u{1F468}\u200d", "\u{1F468}", " ", "\u{1F1E9}"]) isJumbo(many(text));
  assert.ok(performance.now() - began < 10_000); // they took minutes
});
