"""What the pages that spikedream writes are made of: one look, one file each, no network."""

import html
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spikedream.runs.checkpoint import write_file

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

INK, MODEL, POLICY, MUTED = "#2f3b4a", "#4e79a7", "#c9743d", "#8a94a0"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

STYLE = f"""
body {{ margin: 0 auto; max-width: 1120px; padding: 24px; font: 16px/1.5 {FONT}; color: {INK}; background: #f6f7f9; }}
h1 {{ font-size: 26px; margin: 8px 0 20px; }} h1 small {{ color: {MUTED}; font-weight: 400; margin-left: 8px; }}
h2 {{ font-size: 18px; margin: 0 0 8px; }}
section {{ background: #fff; border: 1px solid #e3e7ec; border-radius: 8px; padding: 18px 20px; margin-bottom: 18px; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 14px 20px; margin: 0; }}
dt {{ color: {MUTED}; font-size: 13px; }} dd {{ margin: 0; font-size: 17px; overflow-wrap: anywhere; }}
section > :last-child, section > :last-child > table {{ margin-bottom: 0; }}
.note {{ color: #5d6875; font-size: 14px; margin: 4px 0 10px; }}
pre {{ overflow-x: auto; font-size: 13px; line-height: 1.4; }} summary {{ cursor: pointer; }}
.scroll {{ overflow-x: auto; margin: 6px 0 12px; }}
.figure {{ min-width: 720px; }}
table {{ border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 6px 22px 6px 0; text-align: right; border-bottom: 1px solid #eef0f3; white-space: nowrap; }}
td small {{ color: {MUTED}; font-size: 12px; }}
th {{ color: {MUTED}; font-weight: 400; font-size: 13px; }} th:first-child, td:first-child {{ text-align: left; }}
.prose td, .prose th {{ text-align: left; vertical-align: top; white-space: normal; }} .prose code {{ white-space: nowrap; }}
.shaded td, .shaded th {{ padding: 6px 10px; border: 2px solid #fff; text-align: center; }}
.shaded td:first-child {{ padding-left: 0; text-align: left; }} .shaded td small {{ color: #5d6875; }} a {{ color: {MODEL}; }}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · spikedream</title><style>{style}</style><script>{plotly}</script></head>
<body><h1>{title}<small>{subtitle}</small></h1>{body}</body></html>
"""


class Section(NamedTuple):
    anchor: str
    title: str
    content: str  # HTML


def write_page(path: Path, title: str, subtitle: str, sections: Iterable[Section], plotly: bool = True) -> Path:
    """Write the sections as one page that needs no network, and return `path`; `plotly` is needed where a section holds a figure.

    Raises:
        CheckpointError: it cannot be written.
    """
    from plotly.offline import get_plotlyjs  # takes a fifth of a second, which every start of the command line would wait for

    body = "".join(f'<section id="{s.anchor}"><h2>{html.escape(s.title)}</h2>{s.content}</section>' for s in sections)
    texts = {"title": html.escape(title), "subtitle": html.escape(subtitle), "body": body}
    page = PAGE.format(style=STYLE, plotly=get_plotlyjs() if plotly else "", **texts)
    write_file(path, page.encode())
    return path


def number(value: float | None) -> str:
    """For people: whole numbers and large ones in full, others to three digits."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def tiles(facts: list[tuple[str, str]]) -> str:
    """Label and value, side by side."""
    tiles = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    return f"<dl>{''.join(tiles)}</dl>"


def html_table(header: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Header texts, and rows of cells that are HTML already: either a cell's content or a whole `<td>`."""
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    lines = ("".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table class="{kind}"><tr>{head}</tr>{body}</table></div>'


def panels(titles: list[str], columns: int, height: int, gap: int = 90, top: int = 35, **options: Any) -> "Figure":
    """A panel for each title, row by row; `height` of a panel, `gap` between rows and space at the `top` are in pixels."""
    from plotly.subplots import make_subplots  # as above

    rows, columns = math.ceil(len(titles) / columns), min(columns, len(titles))
    plot = rows * height + (rows - 1) * gap
    spacing = {"vertical_spacing": gap / plot if rows > 1 else 0, "horizontal_spacing": 0.1}
    figure = make_subplots(rows, columns, subplot_titles=titles, **spacing, **options)
    figure.update_layout(
        template="plotly_white",
        height=plot + top + 55,
        margin={"l": 70, "r": 20, "t": top, "b": 55},
        font={"family": FONT, "size": 13, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
    )
    figure.update_annotations(font={"size": 14})
    axis = {"gridcolor": "#eef0f3", "zeroline": False, "linecolor": "#cdd3da", "title_font_size": 13}
    return figure.update_xaxes(axis).update_yaxes(axis)


def figure_html(figure: "Figure") -> str:
    drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False})
    return f'<div class="scroll"><div class="figure">{drawn}</div></div>'


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray, name: str, colour: str = MODEL, **options: Any) -> dict[str, Any]:
    """The area between `low` and `high`, all (points,), as what `add_scatter` is given; `colour` as #rrggbb."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    look = {"fill": "toself", "fillcolor": f"rgba({red},{green},{blue},0.2)", "line_width": 0, "mode": "lines", "hoverinfo": "skip"}
    x, y = np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])
    return {"x": x, "y": y, "name": name, **look, **options}
