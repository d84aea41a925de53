// The text of messages as a tree of a few harmless tags. Values only: message.js makes elements of them.
//
// `formatted_body` is HTML from strangers. It is never given to the browser's parser. A small scanner reads it, keeps
// the tags listed in KEPT without any attribute but the address of a link, and treats everything else as text.

const KEPT = new Set(["b", "strong", "i", "em", "u", "s", "del", "code", "pre", "a", "br", "p", "blockquote", "ul", "ol", "li", "hr", "h1", "h2", "h3", "h4", "h5", "h6"]);
const VOID = new Set(["br", "hr"]);
const DROPPED = new Set(["mx-reply", "script", "style", "head", "title", "template", "iframe", "object", "svg", "math", "textarea", "select"]);
const RENAMED = { strike: "s", h1: "h4", h2: "h4", h3: "h4", h4: "h5", h5: "h6" }; // the page has headings of its own
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const LENGTH_MAX = 65_536;
const DEPTH_MAX = 24;
// A comment ends where the next one begins, if not before: otherwise a text of many beginnings would be read to its end
// from each of them.
const TOKEN = /<!--(?:(?!<!--)[\s\S])*?-->|<(\/?)([a-zA-Z][a-zA-Z0-9-]*)((?:[^<>"']|"[^"]*"|'[^']*')*)>/g;
const BRACKETS = { ")": "(", "]": "[", "}": "{" };
const LINK = /\bhttps?:\/\/[^\s<>"'`]+/gi;

// Returns the nodes of HTML: strings and {tag, href?, children}.
export function parseHtml(html) {
  const source = html.slice(0, LENGTH_MAX);
  const root = { tag: "", children: [] };
  const open = [root];
  let dropped = null;
  let depthDropped = 0;
  let place = 0;
  for (const match of source.matchAll(TOKEN)) {
    if (!dropped) addText(open, source.slice(place, match.index));
    place = match.index + match[0].length;
    const [, slash, name, attributes] = match;
    if (name === undefined) continue; // a comment
    const tag = RENAMED[name.toLowerCase()] ?? name.toLowerCase();
    if (dropped) {
      if (tag === dropped) depthDropped += slash ? -1 : 1;
      if (depthDropped === 0) dropped = null;
    } else if (DROPPED.has(tag)) {
      if (!slash && !attributes.endsWith("/")) [dropped, depthDropped] = [tag, 1];
    } else if (KEPT.has(tag)) {
      if (slash) close(open, tag);
      else begin(open, tag, attributes);
    }
  }
  if (!dropped) addText(open, source.slice(place));
  return root.children;
}

function addText(open, text) {
  if (text) open.at(-1).children.push(decode(text));
}

function begin(open, tag, attributes) {
  if (open.length > DEPTH_MAX) return;
  const node = { tag, children: [] };
  if (tag === "a") node.href = safeHref(attributes);
  open.at(-1).children.push(node);
  if (!VOID.has(tag)) open.push(node);
}

function close(open, tag) {
  const index = open.findLastIndex((node) => node.tag === tag);
  if (index > 0) open.length = index;
}

function safeHref(attributes) {
  const match = /(?:^|\s)href\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))/i.exec(attributes);
  return match ? safeUrl(decode(match[1] ?? match[2] ?? match[3])) : null;
}

// Returns an address that a link may lead to; null for all others, such as `javascript:`.
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function decode(text) {
  return text.replace(/&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([a-zA-Z]{2,8}));/g, (whole, decimal, hex, name) => {
    if (name) return ENTITIES[name] ?? whole;
    const code = decimal ? Number(decimal) : Number.parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff) ? String.fromCodePoint(code) : "\ufffd";
  });
}

// Returns text as nodes: strings, and links where it has addresses.
export function linkify(text) {
  const nodes = [];
  let place = 0;
  for (const match of text.matchAll(LINK)) {
    const address = withoutPunctuation(match[0]);
    const href = safeUrl(address);
    if (!href) continue;
    if (match.index > place) nodes.push(text.slice(place, match.index));
    nodes.push({ tag: "a", href, children: [address] });
    place = match.index + address.length;
  }
  if (place < text.length) nodes.push(text.slice(place));
  return nodes;
}

// The end of a sentence is not a part of the address; a closing bracket is if it was opened there. Each character is
// looked at once: a text may consist of brackets.
function withoutPunctuation(address) {
  const counts = {};
  for (const character of address) counts[character] = (counts[character] ?? 0) + 1;
  let end = address.length;
  for (; end > 0; end -= 1) {
    const last = address[end - 1];
    const opening = BRACKETS[last];
    if (opening ? counts[last] <= (counts[opening] ?? 0) : !".,;:!?*_~".includes(last)) break;
    counts[last] -= 1;
  }
  return address.slice(0, end);
}

// Returns the nodes of a text message.
export function nodesOf(content, plain) {
  if (content.format === "org.matrix.custom.html" && typeof content.formatted_body === "string") {
    return withLinks(parseHtml(content.formatted_body));
  }
  return linkify(plain);
}

function withLinks(nodes) {
  return nodes.flatMap((node) => {
    if (typeof node === "string") return linkify(node);
    return [node.tag === "a" || node.tag === "code" || node.tag === "pre" ? node : { ...node, children: withLinks(node.children) }];
  });
}

const EMOJI = /^(?:\p{Extended_Pictographic}(?:\ufe0f|\p{Emoji_Modifier}|\u200d\p{Extended_Pictographic})*|\p{Regional_Indicator}{2}|\s){1,12}$/u;

// Returns whether a message is nothing but a few emoji, which are then shown large.
export function isJumbo(text) {
  return EMOJI.test(text) && [...new Intl.Segmenter().segment(text.replace(/\s/g, ""))].length <= 3;
}

// Returns the parts of a text, those that match a search marked: [{text, isHit}].
export function markHits(text, words) {
  const wanted = words.filter(Boolean).map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  if (!wanted.length) return [{ text, isHit: false }];
  const parts = text.split(new RegExp(`(${wanted.join("|")})`, "giu"));
  return parts.map((part, index) => ({ text: part, isHit: index % 2 === 1 })).filter((part) => part.text);
}
