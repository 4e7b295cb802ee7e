"""`spikedream compare`: a comparison of runs as a table on the terminal, a page, a picture and a file for programs."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.segment import Segments
from rich.table import Table

from spikedream.reports.comparison import Comparison, compare, find_runs, return_at
from spikedream.reports.page import MUTED, Section, band, figure_html, html_table, note, number, panels, write_page
from spikedream.reports.picture import LOGARITHMIC, draw, threshold_in_sight
from spikedream.reports.statistics import Improvement, Statistic
from spikedream.runs.checkpoint import make_directory, write_file

COLOURS = ("#4e79a7", "#e1812c", "#3a923a", "#c03d3e", "#9372b2", "#845b53", "#d684bd", "#7f7f7f", "#a9a518", "#3fb5c4")
AXES = {"real_steps": "real environment steps", "wall_seconds": "wall time in seconds, compilation included"}
FAR_APART = 10.0  # ratio of the methods' longest to shortest curve from which an axis is logarithmic
SHOWN_PAIRS = 6  # on the terminal

MIDDLE: dict[Statistic, str] = {"iqm": "Interquartile mean", "mean": "Mean"}
SHORT: dict[Statistic, str] = {"iqm": "IQM", "mean": "Mean"}
BOOTSTRAP = "over seeds with its 95 % bootstrap interval; seeds are drawn whole, each method's on their own (Agarwal et al. 2021)."
HELD = (
    "Each run is a step function: between two evaluations it keeps the last value. A run that stopped, because it was solved or its"
    " budget was spent, keeps its last value until the last run of its method stops. A method's curve begins where all its runs"
    " have been evaluated, and ends where its first unfinished run ends."
)


@dataclass
class Compare:
    """Runs side by side: a table, `compare.html`, `compare.png` and `compare.json`."""

    # run directories, directories that contain runs, or glob patterns
    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_GLOB ...")]
    by: str | None = None  # the field that names a run's method, as agent.kind; when absent, runs that differ only in seed are one
    statistic: Statistic = "iqm"  # over seeds: the interquartile mean, or the mean
    marks: tuple[int, ...] = ()  # real steps at which returns are compared, too
    out: Path = Path("runs/compare")  # where the files go


def run_compare(command: Compare, console: Console) -> int:
    runs, notes = find_runs(command.runs)
    comparison = compare(runs, command.by, notes, command.statistic, command.marks)
    print_comparison(comparison, console)
    page = write_comparison(comparison, command.out)
    console.print(page, highlight=False, soft_wrap=True)
    return 0


def print_comparison(comparison: Comparison, console: Console) -> None:
    """The table, how likely each method is better than each other, and the notes."""
    threshold = "" if comparison.threshold is None else f", solved at {number(comparison.threshold)}"
    heading = f"{comparison.env}{threshold}: {SHORT[comparison.statistic]} [95 % interval] over seeds"
    console.print(heading, highlight=False, soft_wrap=True, markup=False)
    print_table(*header_and_rows(comparison), console)
    for score, pairs in comparison.improvement.items():
        for (x, y), value in list(pairs.items())[:SHOWN_PAIRS]:
            text = f"P({x} has {better(comparison, score)} than {y}) = {probability(value)}"
            console.print(text, highlight=False, soft_wrap=True, markup=False)
        if len(pairs) > SHOWN_PAIRS:
            console.print(f"... and {len(pairs) - SHOWN_PAIRS} more pairs: see the page", highlight=False)
    for text in comparison.notes:
        console.print(f"note: {text}", highlight=False, soft_wrap=True, markup=False, style="dim")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """A line for each method, as wide as it is: a figure that is cut off is worse than a line that the terminal breaks."""
    table = Table(box=box.SIMPLE_HEAD)
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    wide = console.options.update(max_width=10_000)
    lines = console.render_lines(table, wide.update_width(console.measure(table, options=wide).maximum), new_lines=True)
    console.print(Segments(segment for line in lines for segment in line), end="", soft_wrap=True)


def write_comparison(comparison: Comparison, out: Path) -> Path:
    """Write `compare.html`, `compare.png` and `compare.json` into `out` and return the page's path."""
    make_directory(out)
    write_file(out / "compare.json", json.dumps(comparison.to_data(), indent=1).encode())
    colours = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(comparison.methods)}
    header, rows = header_and_rows(comparison, marks=False)
    axes = {axis: title + LOGARITHMIC * is_logarithmic(comparison, axis) for axis, title in AXES.items()}
    subtitle = f"{MIDDLE[comparison.statistic]} over seeds, with its 95 % bootstrap interval"
    draw(comparison, colours, axes, subtitle, header, rows, out / "compare.png")
    table = html_table(header, [[html.escape(cell) for cell in row] for row in rows]) + returns_at_marks(comparison)
    sections = [
        Section("methods", "Methods", note(statistics(comparison.statistic)) + table),
        Section("curves", "Learning curves", _curves(comparison, colours, axes) + note(HELD)),
        Section("improvement", "Probability of improvement", _improvement(comparison)),
        Section("notes", "Notes", "".join(note(text) for text in comparison.notes)),
        Section("runs", "Runs", _runs(comparison)),
    ]
    sections = [section for section in sections if section.content]
    title = " · ".join(comparison.methods) if len(comparison.methods) <= 4 else f"{len(comparison.methods)} methods"
    return write_page(out / "compare.html", title, comparison.env, sections)


# ---- the numbers, in words


def statistics(statistic: Statistic) -> str:
    """What the figures are."""
    return f"{MIDDLE[statistic]}{' (IQM)' if statistic == 'iqm' else ''} {BOOTSTRAP}"


def at_marks(comparison: Comparison) -> dict[str, str]:
    """Name to title of the returns there."""
    return {return_at(mark): f"return at {mark:,}" for mark in comparison.marks}


def scores(comparison: Comparison) -> dict[str, str]:
    """Name to title of those that any method has, in their order."""
    fresh = {"fresh_return": "fresh evaluation"}
    known = {"real_steps_to_solve": "real steps to solve", **fresh, **at_marks(comparison), "final_return": "final return"}
    known["wall_seconds"] = "wall seconds"
    return {name: title for name, title in known.items() if any(name in m.scores for m in comparison.methods.values())}


def better(comparison: Comparison, score: str) -> str:
    """What a method has that is better."""
    known = {"fresh_return": "a higher return on fresh episodes", "final_return": "a higher final return"}
    known["real_steps_to_solve"] = "fewer real steps to solve"
    return known.get(score) or f"a higher {at_marks(comparison)[score]}"


def header_and_rows(comparison: Comparison, marks: bool = True) -> tuple[list[str], list[list[str]]]:
    """The table of methods, with returns at the marks or without; the header names the method's column `method`."""
    shown, solved = scores(comparison), ["solved"] if comparison.threshold is not None else []
    shown = {name: title for name, title in shown.items() if marks or name not in at_marks(comparison)}
    header = ["method", "seeds", *solved, *shown.values()]
    rows = []
    for label, method in comparison.methods.items():
        counts = [str(len(method.runs)), *([f"{method.solved} of {len(method.runs)}"] if solved else [])]
        rows.append([label, *counts, *(interval(comparison, label, score) for score in shown)])
    return header, rows


def returns_at_marks(comparison: Comparison) -> str:
    """A table of its own, as HTML: beside everything else it would be too wide. Empty where there are no marks."""
    if not comparison.marks:
        return ""
    shown = at_marks(comparison) | {"final_return": "final return"}
    header = ["method", *shown.values()]
    rows = [[label, *(interval(comparison, label, score) for score in shown)] for label in comparison.methods]
    return html_table(header, [[html.escape(cell) for cell in row] for row in rows])


def interval(comparison: Comparison, label: str, score: str) -> str:
    """The statistic [95 % interval]; a single seed has no interval, a method that never solved no steps to solve, and not every
    method has every score."""
    method = comparison.methods[label]
    if score not in method.scores or (score == "real_steps_to_solve" and method.solved == 0):
        return "–"
    s = method.scores[score]
    middle = _short(s[comparison.statistic])
    return f"{middle} [{_short(s['low'])}, {_short(s['high'])}]" if len(method.runs) > 1 else middle


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}".removesuffix(".0")


def probability(value: Improvement) -> str:
    bounds = "" if value.low is None or value.high is None else f" [{value.low:.2f}, {value.high:.2f}]"
    return f"{value.probability:.2f}{bounds}"


def is_logarithmic(comparison: Comparison, axis: str) -> bool:
    """Where one method needs many times what another does, a linear axis would press the shorter curve against its edge."""
    ends = [float(method.curves[axis].x[-1]) for method in comparison.methods.values()]
    return max(ends) > FAR_APART * max(min(ends), 1e-9)


# ---- the page


def _curves(comparison: Comparison, colours: dict[str, str], axes: dict[str, str]) -> str:
    legend_rows = -(-(len(colours) + 1) // 5)
    figure = panels(["", ""], 2, 320, top=20 + 22 * legend_rows)
    for i, (axis, title) in enumerate(axes.items()):
        place: dict[str, Any] = {"row": 1, "col": i + 1}
        for label, method in comparison.methods.items():
            curve, legend = method.curves[axis], {"legendgroup": label}
            if len(method.runs) > 1:
                (x, low), (_, high) = steps(curve.x, curve.low), steps(curve.x, curve.high)
                figure.add_scatter(**band(x, low, high, label, colours[label], showlegend=False, **legend), **place)
            line = {"color": colours[label], "width": 2, "shape": "hv"}
            mode = "lines" if len(curve.x) > 1 else "markers"  # one point makes no line
            legend |= {"showlegend": i == 0, "name": html.escape(label)}
            figure.add_scatter(x=curve.x, y=curve.middle, mode=mode, line=line, **legend, **place)
        curves = [method.curves[axis].x for method in comparison.methods.values()]
        if comparison.threshold is not None and threshold_in_sight(comparison):
            ends = [min(x[0] for x in curves) if title.endswith(LOGARITHMIC) else 0, max(x[-1] for x in curves)]
            line = {"x": ends, "y": [comparison.threshold] * 2, "line": {"color": MUTED, "dash": "dash"}, "mode": "lines"}
            figure.add_scatter(**line, name=f"solved at {number(comparison.threshold)}", showlegend=i == 0, **place)
        figure.update_xaxes(title_text=title, **place)
        figure.update_xaxes(logarithmic(curves) if title.endswith(LOGARITHMIC) else {"rangemode": "tozero"}, **place)
        figure.update_yaxes(title_text="return of greedy episodes" if i == 0 else "", **place)
    return figure_html(figure)


def logarithmic(xs: Sequence[np.ndarray]) -> dict[str, Any]:
    """An axis with a mark at each 1 and 3 of a decade, as the picture has; plotly's own are single digits between the decades."""
    low, high = (math.log10(max(end, 1e-9)) for end in (min(x[0] for x in xs), max(x[-1] for x in xs)))
    ticks = [digit * 10.0**decade for decade in range(math.floor(low), math.ceil(high) + 1) for digit in (1, 3)]
    return {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,.10g}" for tick in ticks]}


def steps(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The corners of a step function that keeps each of `y` until the next of `x`; both (points,)."""
    return np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]


def _improvement(comparison: Comparison) -> str:
    """For each score a matrix: how often a random seed of the row's method beats one of the column's. Nothing where there is one
    method."""
    labels = list(comparison.methods)
    if len(labels) < 2:
        return ""
    parts = [note("How often a random seed of the row's method beats one of the column's; a tie counts half. 95 % interval below.")]
    for score, pairs in comparison.improvement.items():
        rows = [[f"<td>{html.escape(x)}</td>", *(_cell(pairs, x, y) for y in labels)] for x in labels]
        parts.append(
            note(f"The row's method has {better(comparison, score)} than the column's") + html_table(["", *labels], rows, "shaded")
        )
    if "real_steps_to_solve" in comparison.improvement:
        parts.append(note("A run that did not solve is worse than every run that did; two that did not are a tie."))
    return "".join(parts)


def _cell(pairs: dict[tuple[str, str], Improvement], x: str, y: str) -> str:
    if x == y:
        return "<td>–</td>"
    value = pairs[x, y] if (x, y) in pairs else reverse(pairs[y, x])
    strength = abs(value.probability - 0.5)  # blue for better, orange for worse
    colour = "78,121,167" if value.probability > 0.5 else "201,116,61"
    bounds = "" if value.low is None else f"<br><small>{value.low:.2f} to {value.high:.2f}</small>"
    return f'<td style="background: rgba({colour},{strength:.2f})">{value.probability:.2f}{bounds}</td>'


def reverse(value: Improvement) -> Improvement:
    """P(Y > X) from P(X > Y)."""
    low, high = value.low, value.high
    return Improvement(1 - value.probability, None if high is None else 1 - high, None if low is None else 1 - low)


def _runs(comparison: Comparison) -> str:
    rows: list[Sequence[str]] = []
    for label, method in comparison.methods.items():
        for run in method.runs:
            state = "unfinished" if run.result is None else "not solved" if run.solved_at is None else "solved"
            numbers = [number(run.last(name)) for name in ("real_steps", "eval_return_mean", "wall_seconds")]
            rows.append([html.escape(label), str(run.seed), state, *numbers, html.escape(str(run.directory))])
    table = html_table(["method", "seed", "outcome", "real steps", "final return", "wall seconds", "directory"], rows)
    return f"<details><summary>{len(rows)} runs</summary>{table}</details>"
