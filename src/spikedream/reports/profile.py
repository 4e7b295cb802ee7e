"""Performance profile of methods on several tasks: the share of runs that have solved theirs, over real steps (Dolan and Moré 2002;
over seeds as Agarwal et al. 2021, section 4.3, have it)."""

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikedream.reports.compare import logarithmic, steps
from spikedream.reports.comparison import Comparison, Record
from spikedream.reports.page import band, figure_html, html_table, note, panels
from spikedream.reports.picture import LOGARITHMIC
from spikedream.reports.statistics import Curve, shares

MOST = 0.8  # share of a task's seeds that must solve it, 4 of 5
EXPLAINED = (
    f"A task counts as solved where at least {MOST:.0%} of the seeds reach its threshold, and stays so where as many of them solved"
    " it and are there at the end of the budget too: on fresh episodes, or in the last evaluation where no fresh ones were played"
    " then. In the shares every task counts the same, whatever its number of seeds; a method's tasks are those on which it was run"
    " to the end."
)
BANDS = "Bands are 95 % bootstrap intervals, for which the seeds of each task are drawn by themselves."


@dataclass(frozen=True)
class Profile:
    """Of one method."""

    tasks: int  # that have a threshold, and on which a run of it is finished
    solved: int  # of these, by most seeds
    stays: int  # of these, at the end too
    share: Curve  # of the runs, solved after so many real steps

    def to_data(self) -> dict[str, Any]:
        curve = {name: values.tolist() for name, values in self.share._asdict().items()}
        return {"tasks": self.tasks, "solved": self.solved, "stays": self.stays, "share": curve}


def profiles(comparisons: Iterable[Comparison]) -> dict[str, Profile]:
    """Of each method, from a comparison for each task; tasks without a threshold, unfinished runs and methods without a finished
    one do not count."""
    tasks: dict[str, list[list[Record]]] = {}
    for comparison in comparisons:
        for label, method in comparison.methods.items():
            finished = [run for run in method.runs if run.result is not None and run.threshold is not None]
            if finished:
                tasks.setdefault(label, []).append(finished)
    runs = [run for several in tasks.values() for own in several for run in own]
    if not runs:
        return {}
    solved = {run.solved_at for run in runs if run.solved_at is not None}
    grid = np.array(sorted(solved | {max(run.last("real_steps") for run in runs)}), float)
    return {label: _profile(grid, several) for label, several in tasks.items()}


def _profile(grid: np.ndarray, tasks: list[list[Record]]) -> Profile:
    first = [np.array([np.inf if run.solved_at is None else run.solved_at for run in runs], float) for runs in tasks]
    solved = [np.isfinite(at) for at in first]
    stays = [own & np.array([_holds(run) for run in runs]) for own, runs in zip(solved, tasks, strict=True)]
    by_most = [sum(bool(own.mean() >= MOST) for own in of) for of in (solved, stays)]
    return Profile(len(tasks), by_most[0], by_most[1], shares(grid, [at[:, None] <= grid[None] for at in first]))


def _holds(run: Record) -> bool:
    """Whether what it has learned in the end is at the threshold."""
    assert run.result is not None and run.threshold is not None
    fresh = run.fresh if run.stops else run.result.get("last_fresh_return_mean")
    return (run.last("eval_return_mean") if fresh is None else fresh) >= run.threshold


def lines(found: Mapping[str, Profile]) -> list[str]:
    """One for each method."""
    return [f"{label}: {p.solved} of {p.tasks} tasks solved by most seeds, {p.stays} at the end too" for label, p in found.items()]


def section(found: Mapping[str, Profile], colours: Mapping[str, str]) -> str:
    """Table and figure, as HTML; `colours` of each method, #rrggbb."""
    rows = [[html.escape(label), *(str(x) for x in (p.tasks, p.solved, p.stays))] for label, p in found.items()]
    table = html_table(["method", "tasks", "solved by most seeds", "at the end too"], rows)
    figure = panels([""], 1, 340, top=24 + 22 * -(-len(found) // 4))
    for label, profile in found.items():
        x, middle, low, high = profile.share
        (along, lower), (_, upper) = steps(x, low), steps(x, high)
        figure.add_scatter(**band(along, lower, upper, label, colours[label], showlegend=False, legendgroup=label))
        line = {"color": colours[label], "width": 2, "shape": "hv"}
        figure.add_scatter(x=x, y=middle, mode="lines", line=line, name=html.escape(label), legendgroup=label)
    ends = [profile.share.x for profile in found.values()]
    figure.update_xaxes(title_text=f"real environment steps{LOGARITHMIC}", **logarithmic(ends))
    figure.update_yaxes(title_text="share of runs that have solved their task", range=[-0.02, 1.02], tickformat=".0%")
    return note(EXPLAINED) + table + figure_html(figure) + note(BANDS)
