"""Self-contained HTML pages of reports, light or dark by the reader's preference."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#2e3440, #dfe3ea); --faint: light-dark(#5b6475, #9aa3b2);
  --paper: light-dark(#fff, #14171c); --line: light-dark(#e8ebf0, #2a303a); --strong: light-dark(#b8bec9, #4a5260);
  --box: light-dark(#f6f7f9, #1c2027); --ours: light-dark(#1d5fbf, #6ea8ff); --peer: light-dark(#d9622b, #ff9a62); }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 1120px;
  margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { max-width: 75ch; } .lead, small { color: var(--faint); } img { width: 100%; background: #fff; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; } th[colspan] { text-align: center; border: 0; padding-bottom: 0; }
th, td { padding: .4rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--faint); font-weight: 600; border-bottom-color: var(--strong); vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; } td small { display: block; }
.ours { color: var(--ours); font-weight: 600; } .peer { color: var(--peer); font-weight: 600; }
ul.notes { padding-left: 1.2rem; } details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; } pre { background: var(--box); padding: .8rem 1rem; overflow: auto; font-size: 12.5px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem; margin: .4rem 0; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; margin: 1.3rem 0; }
.cards div { background: var(--box); border-radius: 8px; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; } .cards small { display: block; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.4rem 1.8rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: .2rem; }
figcaption small { font-weight: 400; }
svg { display: block; width: 100%; height: auto; } svg text { font-size: 10.5px; fill: var(--faint); }
.grid { stroke: var(--line); } .axis { stroke: var(--strong); }
.line { fill: none; stroke: var(--ours); stroke-width: 1.7; stroke-linejoin: round; }
.limit { fill: none; stroke: var(--peer); stroke-width: 1.4; stroke-dasharray: 5 3; }
svg text.limit-name { fill: var(--peer); stroke: none; }
.shares { display: flex; height: 1.6rem; border-radius: 5px; overflow: hidden; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return the whole HTML file, with these parts as its body."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def definitions(values: Mapping[str, Any]) -> str:
    """Return an HTML list of names and their values."""
    return f"<dl>{''.join(f'<dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd>' for k, v in values.items())}</dl>"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return an HTML table of text, which scrolls where it is too wide."""
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
