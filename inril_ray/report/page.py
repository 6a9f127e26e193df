"""Escaped HTML, and the page that every report is."""

from __future__ import annotations

import html
from collections.abc import Iterable
from pathlib import Path

from inril_ray.checkpoint import replace_text

VOID = {"img", "meta", "source"}
STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --quiet: #59636e; --paper: #fff; --panel: #f5f6f8; --rule: #d5dae0;
  --grid: #e6e9ed; --s1: #0b66a8; --s2: #c2500a; --s3: #3d7f3f; --s0: #6b7580; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --quiet: #a3adb8; --paper: #14171a; --panel: #1d2125; --rule: #3a424a; --grid: #2a3037;
    --s1: #66b5ee; --s2: #f5995a; --s3: #83c785; --s0: #97a1ac; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 62rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.05rem; font-weight: 600; margin: 0 0 .75rem; color: var(--quiet); overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .75rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.headline { font-size: clamp(1.25rem, 3.2vw, 1.7rem); line-height: 1.35; margin: 0 0 .75rem; font-weight: 500; }
.headline strong { font-weight: 700; white-space: nowrap; }
.note, figcaption .note, .legend { color: var(--quiet); font-size: .9rem; }
.missing { border-left: 4px solid var(--s2); background: var(--panel); padding: .5rem .75rem; }
.label { display: inline-block; border: 1px solid var(--s2); color: var(--s2); border-radius: .3rem; padding: 0 .5rem;
  font-weight: 600; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 2.5rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.75rem 2rem; }
figure { margin: 0; min-width: 0; max-width: 36rem; }
figcaption { font-weight: 600; }
figcaption .note { display: block; font-weight: 400; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1.1rem; margin: .15rem 0; }
.legend span { display: inline-flex; align-items: center; gap: .4rem; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid var(--s1); }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--grid); vertical-align: top;
  overflow-wrap: break-word; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 600; }
tbody th { font-weight: 400; color: var(--quiet); }
.number td, .number thead th:not(:first-child) { text-align: right; padding-right: 0; padding-left: .75rem; }
.number td { white-space: nowrap; }
.number td.wrap { white-space: normal; }
.number thead th:not(:first-child) { min-width: 5rem; }
.number th:first-child { min-width: 7.5rem; position: sticky; left: 0; background: var(--paper); }
.heat { width: auto; border-collapse: separate; border-spacing: 3px; }
.heat th, .heat td { border: 0; padding: .45rem .8rem; }
.heat td { text-align: center; background: color-mix(in srgb, var(--s1) var(--share, 0%), var(--panel)); }
.heat td span { display: block; font-size: .8rem; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.facts th { width: 9rem; }
details { border-top: 1px solid var(--rule); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: var(--panel); padding: .75rem; font-size: .85rem; line-height: 1.45; }
code { font-size: .9em; overflow-wrap: anywhere; }
video, img { width: 100%; height: auto; display: block; background: var(--panel); border-radius: .25rem; }
svg.chart { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--quiet); font-size: 12px; font-family: inherit; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--quiet); }
svg .s0 { --c: var(--s0); } svg .s1 { --c: var(--s1); } svg .s2 { --c: var(--s2); } svg .s3 { --c: var(--s3); }
svg .line { fill: none; stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
svg .thin { stroke-width: 1; opacity: .5; } svg .bold { stroke-width: 3.2; }
svg .dashed { stroke-dasharray: 5 3; } svg .dot { fill: var(--c); } svg .hollow { fill: var(--paper); stroke: var(--c);
  stroke-width: 2; } svg .band { fill: var(--c); opacity: .2; } svg .reference { stroke: var(--s0);
  stroke-dasharray: 2 3; } svg .bar { stroke: var(--c); stroke-width: 3; } svg .pair { stroke: var(--s0); opacity: .7; }
svg text.strong { fill: var(--ink); }
@media print { details { display: none; } }
"""


class Html(str):
    """Text that is HTML already and must not be escaped again."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """Return an element; children that are not :class:`Html` and all attribute values are escaped.

    Args:
        name: of the element.
        children: contents.
        attributes: ``class_`` stands for ``class`` and ``_`` for ``-``; None leaves one out, True has no value.
    """
    shown = ""
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            shown += f" {key}"
        elif value is not None:
            shown += f' {key}="{html.escape(str(value))}"'
    return Html(f"<{name}{shown}>" if name in VOID else f"<{name}{shown}>{join(*children)}</{name}>")


def join(*parts: object) -> Html:
    """Return the parts one after another, escaped where they are not :class:`Html`."""
    return Html("".join(p if isinstance(p, Html) else html.escape(str(p)) for p in parts))


def section(title: str, *children: object) -> Html:
    """Return a titled section."""
    return tag("section", tag("h2", title), *children)


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Return a table of names and values; a value of None is said to be missing."""
    body = [
        tag("tr", tag("th", name, scope="row"), tag("td", "not recorded" if value is None else value))
        for name, value in rows
    ]
    return tag("div", tag("table", tag("tbody", *body), class_="facts"), class_="scroll")


def number_table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> Html:
    """Return a table whose first column names the rows and whose others hold right-aligned numbers.

    Where the window is narrow it scrolls sideways, and the names stay where they are.
    """
    body = []
    for name, *cells in rows:
        made = [tag("td", c, class_="wrap" if len(str(c)) > 18 else None) for c in cells]
        body.append(tag("tr", tag("th", name, scope="row"), *made))
    heads = tag("tr", *(tag("th", h, scope="col") for h in head))
    table = tag("table", tag("thead", heads), tag("tbody", *body), class_="number")
    return tag("div", table, class_="scroll", tabindex=0)  # so that keys scroll it, too


def details(title: str, *children: object) -> Html:
    """Return a part that opens on a click."""
    return tag("details", tag("summary", title), *children)


def page(title: str, *children: object) -> Html:
    """Return a whole document, which forbids itself to load anything."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return Html("<!doctype html>\n" + tag("html", head, tag("body", tag("main", *children)), lang="en") + "\n")


def write_page(path: Path, document: Html) -> Path:
    """Write a file that appears only when it is complete."""
    replace_text(path, document)
    return path
