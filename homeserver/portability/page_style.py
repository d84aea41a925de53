"""The style of exported pages, and the policy that allows nothing but it and files of the folder."""

from __future__ import annotations

import hashlib
from base64 import b64encode

COLOURS = 8
"""Classes c0 to c7 are colours of people."""

STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --paper: #fff; --text: #17191c; --line: #e3e6ea; --soft: #6a737d;
  --chosen: #fff6d6; --code: #f0f2f5; --link: #0b6bcb; }
@media (prefers-color-scheme: dark) { :root { --back: #111317; --paper: #1a1d22; --text: #e8eaed; --line: #2c3138;
  --soft: #9aa4af; --chosen: #3a3420; --code: #24282e; --link: #7ab7ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--text); background: var(--back);
  margin: 0; overflow-wrap: anywhere; }
header, main, footer { max-width: 50rem; margin: 0 auto; padding: 0 1rem; }
header { padding-top: 2rem; padding-bottom: 1.2rem; display: flex; gap: 1rem; align-items: center; }
header .avatar { width: 3.5rem; height: 3.5rem; font-size: 1.6rem; }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0; }
main { background: var(--paper); border: 1px solid var(--line); border-radius: .8rem; padding: .6rem 1rem 1rem; }
footer { display: flex; justify-content: space-between; gap: 1rem; padding-top: 1.2rem; padding-bottom: 3rem;
  color: var(--soft); }
h2 { font-size: .8rem; font-weight: 600; color: var(--soft); text-align: center; margin: 1.4rem 0 .4rem; }
article { display: grid; grid-template-columns: 2.5rem 1fr; column-gap: .7rem; padding: .15rem .4rem; margin: 0 -.4rem;
  border-radius: .5rem; }
article.first { margin-top: .7rem; }
article:target { background: var(--chosen); }
article.thread { margin-left: 2.8rem; border-left: 3px solid var(--line); border-radius: 0 .5rem .5rem 0; }
article.state { display: block; text-align: center; margin: .25rem 0; }
article > div { grid-column: 2; min-width: 0; }
article > .avatar { grid-column: 1; grid-row: 1 / span 9; margin-top: .15rem; }
.avatar { width: 2.5rem; height: 2.5rem; border-radius: 50%; object-fit: cover; display: flex; flex: none;
  align-items: center; justify-content: center; font-weight: 600; color: #fff; }
.who { font-weight: 600; }
.who, time, .soft { margin-right: .35rem; }
time, .soft, .state { color: var(--soft); font-size: .82rem; }
.state .who { font-weight: 500; margin: 0; }
.more > .at { height: 0; text-align: right; opacity: 0; }
.more:hover > .at, .more:focus-within > .at { opacity: 1; }
.text { white-space: pre-wrap; }
.html > :first-child { margin-top: 0; }
.html > :last-child { margin-bottom: 0; }
.html p, .html ul, .html ol, .html pre, .html table { margin: .4rem 0; }
.html h1, .html h2, .html h3, .html h4, .html h5, .html h6 { font-size: 1.05rem; text-align: left; color: inherit;
  margin: .6rem 0 .3rem; }
pre, code { font: .88em/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--code);
  border-radius: .3rem; }
code { padding: .1em .3em; }
pre { padding: .6rem .8rem; overflow-x: auto; }
pre code { padding: 0; background: none; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; }
.spoiler { background: var(--soft); color: transparent; border-radius: .2rem; }
.spoiler:hover, .spoiler:focus { background: var(--code); color: inherit; }
.emote .text, .emote .html, .deleted .text, .encrypted .text { font-style: italic; }
.notice .text, .notice .html, .deleted .text, .encrypted .text { color: var(--soft); }
blockquote { margin: .2rem 0; padding: .05rem .7rem; border-left: 3px solid var(--line); color: var(--soft);
  font-size: .92rem; }
img.shown, video { max-width: 100%; max-height: 24rem; border-radius: .5rem; display: block; margin: .2rem 0;
  border: 1px solid var(--line); }
audio { width: 100%; max-width: 24rem; display: block; margin: .2rem 0; }
.download { display: inline-block; padding: .45rem .8rem; margin: .2rem 0; border: 1px solid var(--line);
  border-radius: .5rem; background: var(--code); }
.reactions { margin-top: .2rem; }
.reaction { display: inline-block; border: 1px solid var(--line); border-radius: 1rem; padding: 0 .55rem;
  margin: 0 .3rem .2rem 0; font-size: .85rem; background: var(--code); }
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
.c0 { --own: #b4436c; } .c1 { --own: #8957c9; } .c2 { --own: #4767d4; } .c3 { --own: #1c7fa6; }
.c4 { --own: #14806a; } .c5 { --own: #5b7d1c; } .c6 { --own: #a8691a; } .c7 { --own: #bf4b2c; }
.who[class*=" c"] { color: var(--own); } div.avatar { background: var(--own); }
@media (prefers-color-scheme: dark) { .who[class*=" c"] { filter: brightness(1.5); } }
@media (max-width: 36rem) { main { border-left: 0; border-right: 0; border-radius: 0; padding: .4rem .6rem 1rem; }
  article { grid-template-columns: 2rem 1fr; column-gap: .5rem; } article .avatar { width: 2rem; height: 2rem; }
  article.thread { margin-left: 1.2rem; } }
@media print { body { background: none; } main { border: 0; } article { break-inside: avoid; } }
"""

_HASH = b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src 'self' file:; media-src 'self' file:;"
    " base-uri 'none'; form-action 'none'"
)
