"""Many seeds of one preset, and what can be said of them: `spikedream bench`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.experiments.cells import FINISHED, Outcome, check_unchanged, process_seconds, run_cells
from spikedream.experiments.grid import Cell
from spikedream.reports.statistics import summary
from spikedream.runs.checkpoint import write_file

SPIKING, TWIN = "spiking", "conventional twin"

SCORES = {  # column: (key in a seed's record, format)
    "real steps to solve": ("real_steps_to_solve", ".0f"),
    "process seconds": ("process_seconds", ".1f"),
    "of them compiling": ("compile_seconds", ".1f"),
    "fresh evaluation": ("fresh_return_mean", ".1f"),
    "firing rate": ("firing_rate", ".3f"),
    "peak memory MB": ("peak_memory_mb", ".0f"),
}


@dataclass
class Bench:
    """Many seeds of a preset, and of its twin, each in a process of its own; a seed that is already in `out` is kept, and one that
    was stopped goes on. What follows `--` are settings, as for `train`; give those another `out`."""

    name: tyro.conf.Positional[str]  # a preset or an environment id
    seeds: int = 20  # how many, numbered from `first_seed`
    first_seed: int = 0
    twin: bool = False  # run the conventional twin beside it
    jobs: int = 1  # seeds at a time; with several, the times are of processes that share the machine
    out: Path | None = None  # runs/bench/<name> when absent


def run_bench(command: Bench, config: Config, console: Console) -> int:
    """Train every seed, print and save the table; 0 when every seed could be run.

    Raises:
        ConfigError: no seeds are asked for, or there are runs with other settings where these would be kept.
    """
    if command.seeds < 1:
        raise ConfigError(f"seeds is {command.seeds}; it must be at least 1")
    out = command.out or Path("runs/bench") / command.name.replace("/", "-").replace(":", "-")
    cells = expand(command, config, out)
    check_unchanged(cells)
    outcomes = run_cells(cells, command.jobs, console)
    if outcomes is None:
        return 130
    outcomes.sort(key=lambda outcome: cells.index(outcome.cell))
    labels = dict.fromkeys(cell.method for cell in cells)
    table = {label: summarise([_record(o) for o in outcomes if o.cell.method == label]) for label in labels}
    write_file(out / "bench.json", json.dumps(table, indent=2).encode())
    console.print(_draw(command.name, table))
    return 0 if all(outcome.status == FINISHED for outcome in outcomes) else 1


def expand(command: Bench, config: Config, out: Path) -> list[Cell]:
    """A bench as the cells of a study: the preset's own and its twin's, seeds outermost."""
    variants = {SPIKING: config} | ({TWIN: configuration.twin(config)} if command.twin else {})
    return [
        Cell(command.name, label, seed, replace(variant, seed=seed), out / label.split()[0] / f"s{seed}")
        for seed in range(command.first_seed, command.first_seed + command.seeds)
        for label, variant in variants.items()
    ]


def _record(outcome: Outcome) -> dict[str, Any]:
    """What the table needs of one seed."""
    cell = outcome.cell
    if outcome.status != FINISHED:
        return {"seed": cell.seed, "failed": outcome.text}
    result = json.loads((cell.directory / "result.json").read_text())
    seconds = process_seconds(cell.directory)
    return result | {
        "firing_rate": result["firing_rate"].get("actor_greedy", 0.0),
        "process_seconds": result["wall_seconds"] if seconds is None else seconds,
    }


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, interquartile mean with a 95 % bootstrap interval, and worst, of each score. Unsolved seeds count with the steps they
    were given, which flatters them: the number of solved seeds stands beside."""
    ran = [r for r in records if "failed" not in r]
    scores: dict[str, Any] = {
        "seeds": [r["seed"] for r in records],
        "failed": len(records) - len(ran),
        "solved": sum(r["solved"] for r in ran),
        "stay good": sum(r["solved"] and r["fresh_return_mean"] >= r["threshold"] for r in ran),
    }
    for name, (key, _) in SCORES.items():
        values = np.array([r[key] if r[key] is not None else r["real_steps"] for r in ran], float)
        if len(values):
            scores[name] = summary(values)
    return scores


def _draw(name: str, table: dict[str, dict[str, Any]]) -> Table:
    drawn = Table(title=f"{name}: median · IQM [95 % interval] · lowest to highest", title_justify="left")
    drawn.add_column("")
    for label in table:
        drawn.add_column(label, justify="right")
    solved = [f"{s['solved']} of {len(s['seeds'])}" for s in table.values()]
    drawn.add_row("solved", *solved)
    drawn.add_row("still solved on fresh episodes", *(f"{s['stay good']} of {s['solved']}" for s in table.values()))
    for score, (_, form) in SCORES.items():
        cells = []
        for s in table.values():
            v = {k: format(x, form) for k, x in s[score].items()} if score in s else None
            cells.append(f"{v['median']} · {v['iqm']} [{v['low']}, {v['high']}] · {v['lowest']} to {v['highest']}" if v else "-")
        drawn.add_row(score, *cells)
    return drawn
