"""What the report shows over the turns of a run. Agents and models differ in what they measure: a panel is shown where its numbers
are in the run's rows, and one table says what each of them is called.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spikedream.reports.page import INK, MODEL, MUTED, POLICY, band, figure_html, note, number, panels

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Rows = list[dict[str, Any]]
COLOURS = (MODEL, POLICY, INK)
SHARE = "share"  # the unit whose axis goes from 0 to 1
COVERAGE = "calibration/coverage_"  # and the level in percent


class Series(NamedTuple):
    metric: str
    label: str = ""  # needed where a panel has several
    instead: str = ""  # metric that says the same, for rows without the first


class Panel(NamedTuple):
    title: str
    unit: str
    lines: tuple[Series, ...]
    levels: tuple[float, ...] = ()  # where each line ought to be
    dull: float | None = None  # not shown where this is the only value
    draw: "Callable[[Figure, Panel, Rows, dict[str, Any]], None] | None" = None  # in place of lines over the turns


class PanelGroup(NamedTuple):
    """One section of the report."""

    anchor: str
    title: str
    panels: tuple[Panel, ...]


def reliability(figure: "Figure", panel: Panel, rows: Rows, place: dict[str, Any]) -> None:
    """Of the last turn that measured it: what share of the truth lies inside an interval, over the share that ought to."""
    row = next(row for row in reversed(rows) if panel.lines[0].metric in row)
    measured = {float(name.removeprefix(COVERAGE)) / 100: row[name] for name in row if name.startswith(COVERAGE)}
    level, share = zip(*sorted(measured.items()), strict=True)
    ideal = {"line": {"color": MUTED, "dash": "dot", "width": 1.5}, "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", **ideal, **place)
    figure.add_scatter(x=level, y=share, mode="lines+markers", line_color=MODEL, showlegend=False, **place)
    figure.update_xaxes(title_text="probability of the interval", range=[0, 1.03], **place)


def by_step(figure: "Figure", panel: Panel, rows: Rows, place: dict[str, Any]) -> None:
    """Of the last turn that measured it: what metrics whose names end with the number of an imagined step say of each."""
    row = next(row for row in reversed(rows) if panel.lines[0].metric in row)
    for line, colour in zip(panel.lines, COLOURS, strict=False):
        step, value = zip(*sorted(_steps(line, row).items()), strict=True)
        figure.add_scatter(x=step, y=value, mode="lines+markers", line_color=colour, showlegend=False, **place)
    figure.update_xaxes(title_text="imagined step", dtick=1, **place)


def _steps(line: Series, row: dict[str, Any]) -> dict[int, float | None]:
    """What the row says of each imagined step; None where that is unknown, which leaves a gap."""
    stem = line.metric.removesuffix("1")
    return {int(name.removeprefix(stem)): row[name] for name in row if name.startswith(stem)}


GROUPS = (
    PanelGroup("world-model", "World model", (
        Panel("Loss while fitting", "loss", (Series("model_loss", "trained on"), Series("model_holdout_loss", "held out"))),
        Panel("Error of one step", "mean squared error", (Series("model_error"),)),
        Panel("Confidence", "exp(−error)", (Series("model_confidence", instead="confidence"),)),
        Panel("Uncertainty", "typical changes", (Series("model_noise", "aleatoric"), Series("model_disagreement", "epistemic"))),
        Panel("Truth inside the interval", SHARE, (Series(COVERAGE + "50", "50 %"), Series(COVERAGE + "90", "90 %")), (0.5, 0.9)),
        Panel("Calibration error", "mean |share − level|", (Series("calibration/error"),)),
        Panel("Reliability in the last turn", SHARE, (Series(COVERAGE + "50"),), draw=reliability),
    )),
    PanelGroup("dreams", "Dreams", (
        Panel("Uncertainty in dreams", "scaled deviation",
              (Series("dream_uncertainty", "epistemic"), Series("dream_noise", "aleatoric")), dull=0.0),
        Panel("Return of a dream", "sum of scaled rewards", (Series("dream_return"),)),
        Panel("Dreams alive at the horizon", SHARE, (Series("dream_survival"),)),
        Panel("Imagined rollouts", "in a block of updates", (Series("rollouts"),)),
        Panel("Length of a rollout", "steps that count", (Series("rollout_length"),)),
        Panel("Imagined data in an update", SHARE, (Series("imagined_share"),), dull=1.0),
        Panel("Trusted in the last dreams", SHARE, (Series("dream_accepted_1"),), draw=by_step),
        Panel("Error along real actions", "standard deviations",
              (Series("dream_error/accepted_1", "trusted"), Series("dream_error/rejected_1", "not")), draw=by_step),
    )),
    PanelGroup("curiosity", "Curiosity", (
        Panel("Weight of curiosity", "beta", (Series("beta"),)),
        Panel("Reward of a step", "scaled reward", (Series("bonus_mean", "intrinsic"), Series("extrinsic_mean", "extrinsic"))),
        Panel("Intrinsic reward in dreams", "scaled reward", (Series("dream_bonus"),)),
        Panel("Loss of the bonus's networks", "loss", (Series("bonus_loss"),)),
    )),
    PanelGroup("agent", "Agent", (
        Panel("Entropy of the policy", "nats", (Series("entropy"),)),
        Panel("Change of the policy in an update", "KL divergence", (Series("approximate_kl"),)),
        Panel("Critic's loss", "loss", (Series("critic_loss"),)),
        Panel("Values", "return", (Series("actor_value", "of its actions"), Series("target_value", "targets"))),
        Panel("Temporal-difference error", "return", (Series("td_error"),)),
        Panel("Targets beyond the value's limit", SHARE, (Series("targets_beyond_limit"),), dull=0.0),
        Panel("Temperature", "return per nat", (Series("temperature"),)),
        Panel("Loss of the representation", "loss", (Series("representation_loss"),)),
        Panel("Time of a decision", "ms, shared in a batch", (Series("decision_ms"),)),
    )),
    PanelGroup("real-time", "Real time", (
        Panel("Ticks without an action", SHARE, (Series("realtime/missed"),)),
        Panel("From an observation to its action", "ms",
              (Series("realtime/latency_ms", "median"), Series("realtime/latency_ms_99", "99 %"))),
        Panel("Observations later than due", "ms",
              (Series("realtime/jitter_ms", "median"), Series("realtime/jitter_ms_99", "99 %"))),
    )),
    PanelGroup("parts", "Parts of the run", (
        Panel("Real steps", "per second", (Series("parallel/steps_a_second"),)),
        Panel("Versions", "made so far", (Series("parallel/model_version", "model"), Series("parallel/policy_version", "policy"))),
        Panel("Policies that acted", "versions behind", (Series("parallel/policy_lag"),)),
        Panel("Newest model", "real steps behind", (Series("parallel/model_lag_steps"),)),
        Panel("Waiting for other collectors", "real steps", (Series("parallel/waiting_steps"),), dull=0),
        Panel("Faults so far", "count", (Series("parallel/restarts", "restarts"), Series("parallel/refused", "refusals")), dull=0),
    )),
)  # fmt: skip


def learning_curve(rows: Rows, threshold: float | None) -> str:
    """Greedy episodes, and the training episodes on the way."""
    if not rows:
        return note("No turn is finished yet.")
    x, mean, std = (np.array([row[name] for row in rows]) for name in ("real_steps", "eval_return_mean", "eval_return_std"))
    figure = panels([""], 1, 260, top=60)
    figure.add_scatter(**band(x, mean - std, mean + std, "± one standard deviation"))
    trained = [row for row in rows if row.get("train_return_mean") is not None]
    if trained:
        points = {"x": [row["real_steps"] for row in trained], "y": [row["train_return_mean"] for row in trained]}
        look = {"mode": "markers", "marker": {"color": POLICY, "size": 6, "symbol": "diamond"}}
        hover = {"text": [row["train_episodes"] for row in trained], "hovertemplate": "%{y:.4g}, mean of %{text}<extra></extra>"}
        figure.add_scatter(**points, **look, **hover, name="training episodes")
    figure.add_scatter(x=x, y=mean, mode="lines+markers", line_color=MODEL, name="greedy episodes, mean")
    if threshold is not None:
        # A trace and not a shape: so the axis makes room for it.
        line = {"x": [0, x[-1]], "y": [threshold, threshold], "line": {"color": MUTED, "dash": "dash"}}
        figure.add_scatter(**line, mode="lines", name=f"solved at {number(threshold)}")
    figure.update_xaxes(title_text="real environment steps", rangemode="tozero")
    figure.update_yaxes(title_text="return")
    return figure_html(figure)


def curves(group: PanelGroup, rows: Rows) -> str:
    """The group's panels about which the rows have something to say; empty where there are none."""
    shown = [panel for panel in (_told(panel, rows) for panel in group.panels) if panel.lines]
    if not shown:
        return ""
    columns = 2 if len(shown) in (1, 2, 4) else 3
    figure = panels([_heading(panel) for panel in shown], columns, 160)
    for i, panel in enumerate(shown):
        place: dict[str, Any] = {"row": i // columns + 1, "col": i % columns + 1}
        (panel.draw or _over_turns)(figure, panel, rows, place)
        axis: dict[str, Any] = {"range": [0, 1.03]} if panel.unit == SHARE else {"rangemode": "tozero"}
        figure.update_yaxes(title_text=panel.unit, exponentformat="e", **axis, **place)
    return figure_html(figure)


def _told(panel: Panel, rows: Rows) -> Panel:
    """The panel with the lines that the rows have numbers for."""

    def said(line: Series) -> set[float | None]:
        return {x for row in rows for x in _steps(line, row).values()} if panel.draw is by_step else set(_values(line, rows))

    lines = tuple(line for line in panel.lines if said(line) - {None, panel.dull})
    return panel._replace(lines=lines)


def _values(line: Series, rows: Rows) -> list[float | None]:
    return [row.get(line.metric, row.get(line.instead)) for row in rows]


def _heading(panel: Panel) -> str:
    """The title, with each line's name in the line's colour where there are several: a legend in the place where one looks."""
    if len(panel.lines) < 2:
        return panel.title
    names = (f'<span style="color:{colour}">{line.label}</span>' for line, colour in zip(panel.lines, COLOURS, strict=False))
    return f"{panel.title}: {', '.join(names)}"


def _over_turns(figure: "Figure", panel: Panel, rows: Rows, place: dict[str, Any]) -> None:
    x = [row["real_steps"] for row in rows]
    for line, level in _with_levels(panel):
        look = {"mode": "lines+markers", "line_color": COLOURS[panel.lines.index(line)], "name": line.label, "showlegend": False}
        look |= {} if line.label else {"hoverinfo": "x+y"}
        if level is not None:
            ideal = {"color": look["line_color"], "dash": "dot", "width": 1.5}
            ends = {"x": [0, x[-1]], "y": [level, level]}
            figure.add_scatter(**ends, mode="lines", line=ideal, hoverinfo="skip", showlegend=False, **place)
        figure.add_scatter(x=x, y=_values(line, rows), **look, **place)
    figure.update_xaxes(title_text="real environment steps", rangemode="tozero", **place)


def _with_levels(panel: Panel) -> Iterable[tuple[Series, float | None]]:
    return zip(panel.lines, panel.levels or (None,) * len(panel.lines), strict=False)
