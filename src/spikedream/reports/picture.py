"""`compare.png`: the learning curves and the table of a comparison as one static picture, for papers and slides."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spikedream.reports.comparison import Comparison
from spikedream.reports.page import INK, MUTED, number
from spikedream.runs.checkpoint import write_file

WIDTH, TOP, CURVES, GAP, LINE, BOTTOM = 11.0, 0.75, 3.4, 0.85, 0.27, 0.15  # inches; LINE is of the table
STYLE: dict[Any, Any] = {
    "font.size": 9, "font.family": "DejaVu Sans", "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": "#cdd3da",
    "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip
LOGARITHMIC = " (logarithmic)"


def draw(
    comparison: Comparison, colours: Mapping[str, str], axes: Mapping[str, str], subtitle: str, header: Sequence[str],
    rows: Sequence[Sequence[str]], path: Path,
) -> None:  # fmt: skip
    """Write the picture.

    Args:
        comparison: what is shown.
        colours: of each method, #rrggbb; the table's first column is the legend.
        axes: of the curves, with their titles; a title that ends in `LOGARITHMIC` makes its axis so.
        subtitle: what the figures are.
        header: of the table.
        rows: of the table, one for each method.
        path: of the file.

    Raises:
        CheckpointError: it cannot be written.
    """
    # Imported here: no other command needs it, and it takes a third of a second.
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    height = TOP + CURVES + GAP + LINE * (len(rows) + 1) + BOTTOM
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=160)
        for i, (axis, title) in enumerate(axes.items()):
            panel = figure.add_axes((0.07 + 0.49 * i, 1 - (TOP + CURVES) / height, 0.42, CURVES / height))
            _curves(panel, comparison, axis, colours)
            panel.set_xlabel(title)
            panel.set_ylabel("return of greedy episodes" if i == 0 else "")
            if title.endswith(LOGARITHMIC):
                panel.set_xscale("log")
                panel.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
                panel.xaxis.set_major_formatter("{x:,.0f}")
                panel.xaxis.set_minor_formatter(NullFormatter())
            else:
                panel.set_xlim(left=0)
        place = "dashed" if threshold_in_sight(comparison) else "far from all curves"
        threshold = "" if comparison.threshold is None else f", solved at {number(comparison.threshold)} ({place})"
        _text(figure, 0.07, 0.16, f"{comparison.env}{threshold}", height, fontsize=13, fontweight="bold")
        _text(figure, 0.07, 0.45, subtitle, height, color=MUTED)
        _table(figure, colours, header, rows, height)
        file = io.BytesIO()
        figure.savefig(file, format="png")
    write_file(path, file.getvalue())


def threshold_in_sight(comparison: Comparison) -> bool:
    """Whether it can be drawn without pressing the curves together: it would take up no more room than they do."""
    if comparison.threshold is None:
        return False
    curves = [curve for method in comparison.methods.values() for curve in method.curves.values()]
    low, high = min(curve.low.min() for curve in curves), max(curve.high.max() for curve in curves)
    room = high - low
    return bool(room == 0 or low - room <= comparison.threshold <= high + room)


def _curves(panel: Any, comparison: Comparison, axis: str, colours: Mapping[str, str]) -> None:
    for label, method in comparison.methods.items():
        curve, colour = method.curves[axis], colours[label]
        # A curve of one point makes no line.
        panel.plot(curve.x, curve.middle, color=colour, drawstyle="steps-post", marker="o" if len(curve.x) == 1 else "")
        panel.fill_between(curve.x, curve.low, curve.high, step="post", color=colour, alpha=0.2, linewidth=0)
    if threshold_in_sight(comparison):
        panel.axhline(comparison.threshold, color=MUTED, linestyle="--", linewidth=1)
    panel.grid(color="#eef0f3")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _table(figure: Any, colours: Mapping[str, str], header: Sequence[str], rows: Sequence[Sequence[str]], height: float) -> None:
    """The method at the left, numbers set flush right in columns as wide as their longest text."""
    widths = [max(len(line[i]) for line in (header, *rows)) + 3 for i in range(len(header))]
    ends = [0.07 + 0.91 * sum(widths[: i + 1]) / max(sum(widths), 110) for i in range(len(widths))]
    top = TOP + CURVES + GAP
    for i, line in enumerate((header, *rows)):
        y = top + i * LINE
        if i:
            _text(figure, 0.07, y, "■", height, color=colours[line[0]])
        _text(figure, 0.085 if i else 0.07, y, line[0], height, color=INK if i else MUTED)
        for text, end in zip(line[1:], ends[1:], strict=True):
            _text(figure, end, y, text, height, color=INK if i else MUTED, horizontalalignment="right")


def _text(figure: Any, x: float, y: float, text: str, height: float, **options: Any) -> None:
    """`x` as a share of the width, `y` in inches from the top. A dollar sign is a dollar sign."""
    figure.text(x, 1 - y / height, text, verticalalignment="top", parse_math=False, **options)
