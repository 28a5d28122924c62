# SPDX-License-Identifier: Apache-2.0
"""How the page of a comparison looks, in light and dark, from a telephone to a desktop."""

from __future__ import annotations

STYLE = """
:root { --text: #1b1f24; --muted: #57606a; --page: #ffffff; --card: #f6f8fa; --line: #d0d7de; --link: #0550ae; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e8eb; --muted: #a3abb5; --page: #14171a; --card: #1f2429; --line: #3d444d; --link: #79b8ff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; color: var(--text); background: var(--page);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 0.75rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 0 0 0.5rem; }
a { color: var(--link); }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
nav ul { list-style: none; padding: 0; margin: 0.5rem 0; display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; }
nav li { margin: 0; }
nav a { display: inline-block; padding: 0.15rem 0; }
main ul { padding-left: 1.2rem; max-width: 60rem; }
li { margin: 0.2rem 0; }
/* What is wide scrolls in its own box, never the page. */
.scroll { overflow-x: auto; max-width: 100%; margin: 0 0 1.5rem; }
/* Not collapsed: names that stay in sight while the rest scrolls would lose their lines. */
table { border-collapse: separate; border-spacing: 0; font-size: 0.9rem; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: 0 0 0.4rem; }
th, td { padding: 0.35rem 0.75rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
thead th { border-bottom: 2px solid var(--muted); vertical-align: bottom; white-space: normal; min-width: 5.5rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--page); white-space: normal;
  min-width: 7.5rem; }
tbody th { font-weight: 500; }
tbody tr:hover > * { background: var(--card); }
.not-significant { color: var(--muted); }
abbr[title] { text-decoration: underline dotted; cursor: help; }
figure { margin: 0 0 2.5rem; }
figcaption { color: var(--muted); font-size: 0.92rem; max-width: 60rem; }
/* Pictures are drawn for white paper. */
figure .scroll { background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem;
  margin-bottom: 0.5rem; }
img { display: block; height: auto; margin: 0 auto; }
dt { font-weight: 600; }
dd { margin: 0 0 0.6rem; }
code { font-size: 0.88em; }
@media (max-width: 32rem) { body { padding: 0.75rem; } th, td { padding: 0.3rem 0.5rem; } }
@media print { .scroll { overflow: visible; } nav { display: none; } figure { break-inside: avoid; } }
"""
