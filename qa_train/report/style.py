"""The page's style sheet: restrained, readable on a phone, light and dark by the reader's setting."""

from __future__ import annotations

from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #ffffff; --ink: #1d2025; --soft: #5c636e;
  --rule: #e2e3e0; --accent: #2a5fc4; --good: #1b7a4b; --good-bg: #e2f3e9; --bad: #a33a2a; --bad-bg: #fbe9e5; }
@media (prefers-color-scheme: dark) { :root { --page: #14161a; --card: #1c1f25; --ink: #e6e8eb;
  --soft: #a0a7b2; --rule: #2f343d; --accent: #82aaff; --good: #7fd6a6; --good-bg: #183527; --bad: #f0a090;
  --bad-bg: #42211b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 0 0 8px; }
.top p { color: var(--soft); margin: 4px 0 20px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.tile, section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 14px 18px; color: var(--soft); font-size: .875rem; }
.tile b { display: block; color: var(--ink); font-size: 1.5rem; line-height: 1.25; font-weight: 650; }
section { padding: 20px; margin-top: 20px; }
.note, small { color: var(--soft); font-size: .8125rem; }
.note { margin: 0 0 14px; }
small { display: block; font-weight: 400; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 10px 8px; border-top: 1px solid var(--rule); }
thead th { border-top: 0; color: var(--soft); font-size: .8125rem; font-weight: 500; padding-top: 0; }
thead th:first-child { padding-left: 0; }
tbody th { font-weight: 600; max-width: 290px; padding-left: 0; }
.num { text-align: right; white-space: nowrap; }
.num b { font-weight: 600; }
.verdict { text-align: right; max-width: 130px; } .verdict small { line-height: 1.3; margin-top: 3px; }
.badge { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: .8125rem; }
.badge.met { color: var(--good); background: var(--good-bg); }
.badge.missed { color: var(--bad); background: var(--bad-bg); }
ul { margin: 14px 0 0; padding-left: 20px; color: var(--soft); font-size: .9rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(320px, 100%), 1fr)); gap: 20px 24px; }
figure { margin: 0; }
figcaption { font-size: .875rem; font-weight: 600; margin-bottom: 6px; }
svg { width: 100%; height: auto; display: block; }
.grid { stroke: var(--rule); } .tick { fill: var(--soft); font-size: 12px; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
.value { fill: var(--ink); font-size: 13px; font-weight: 600; paint-order: stroke; stroke: var(--card);
  stroke-width: 4px; stroke-linejoin: round; }
.curve { fill: none; stroke: var(--accent); stroke-width: 2.2; stroke-linejoin: round; }
.curve.faint { stroke-width: 1; opacity: .35; } .curve.thin { stroke-width: 1.2; opacity: .5; }
.dot { fill: var(--accent); stroke: var(--card); stroke-width: 1.5; }
.whisker { stroke: var(--accent); stroke-width: 2; opacity: .55; }
.target { stroke: var(--soft); stroke-dasharray: 5 4; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); gap: 14px; }
article { border: 1px solid var(--rule); border-radius: 8px; padding: 12px 14px; min-width: 0; }
article header { display: flex; justify-content: space-between; gap: 8px; margin-bottom: 8px; }
.task { font-size: .8125rem; color: var(--soft); font-weight: 600; }
audio { width: 100%; height: 36px; margin-bottom: 8px; }
.prompt { margin: 0 0 8px; font-style: italic; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 12px; margin: 0; }
dt { color: var(--soft); font-size: .8125rem; line-height: 1.85; }
dd { margin: 0; overflow-wrap: anywhere; }
.bar-row { display: grid; grid-template: "name track value" / minmax(90px, 190px) 1fr 130px; gap: 2px 12px;
  align-items: center; font-size: .9rem; padding: 4px 0; }
.bar-track { grid-area: track; } .bar-value { grid-area: value; }
.bar-track { background: var(--rule); border-radius: 4px; height: 14px; }
.bar { background: var(--accent); border-radius: 4px; height: 14px; min-width: 3px; }
.bar-value { color: var(--soft); font-variant-numeric: tabular-nums; white-space: nowrap; text-align: right; }
pre { margin: 0; overflow-x: auto; font: .85rem/1.6 ui-monospace, Menlo, Consolas, monospace; }
@media (max-width: 720px) {
  main { padding: 20px 12px 40px; } section { padding: 16px 14px; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(100px, 1fr)); } .tile { padding: 10px 12px; }
  .tile b { font-size: 1.2rem; }
  thead { display: none; } table, tbody { display: block; }
  tr { display: block; padding: 12px 0; border-top: 1px solid var(--rule); }
  tr:first-child { border-top: 0; padding-top: 0; }
  tbody th { display: block; max-width: none; padding: 0 0 4px; border: 0; }
  td { display: flex; justify-content: space-between; gap: 16px; padding: 2px 0; border: 0; text-align: right; }
  td::before { content: attr(data-label); color: var(--soft); font-size: .875rem; }
  td.verdict { justify-content: flex-end; max-width: none; } td small { display: inline; margin-left: 6px; }
  td.verdict:empty { display: none; }
  .bar-row { grid-template: "name value" "track track" / 1fr max-content; margin-bottom: 6px; }
}
"""
_HEAD = '<!doctype html><html lang="en">'


def refuse_foreign(page: Path, *, overwrite: bool = False) -> None:
    """See that ``page`` is free, or an earlier page of ours.

    Raises:
        ValueError: another file has that name, and ``overwrite`` is not set.
    """
    if overwrite or not page.exists():
        return
    with page.open("rb") as file:
        start = file.read(4096).decode(errors="replace")
    if not start.startswith(_HEAD) or STYLE.strip()[:60] not in start:
        raise ValueError(f"{page} exists and is not a page of qa-train: choose another out=, or use overwrite=true")
