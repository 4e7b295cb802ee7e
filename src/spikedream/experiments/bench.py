"""Many seeds of one preset, and what can be said of them: `spikedream bench`."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console

from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.experiments.cells import FINISHED, PLAIN, Outcome, check_cells_unchanged, process_seconds, run_cells
from spikedream.experiments.grid import Cell, folder
from spikedream.experiments.record import from_cells, of_preset, save
from spikedream.reports.compare import print_table
from spikedream.reports.statistics import summary
from spikedream.runs.checkpoint import make_directory, write_file

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
    together: bool = False  # all seeds in one program and one process, which fills a machine that one seed leaves idle
    out: Path | None = None  # runs/bench/<name> when absent
    record: str | None = None  # also write results/<record>.json, and results/<record>-twin.json: rows for tables


def run_bench(command: Bench, config: Config, console: Console, line: str) -> int:
    """Train every seed, print and save the table; 0 when every seed could be run.

    Args:
        command: what is asked for.
        config: of the preset, with its further settings.
        console: where the table goes.
        line: the command, for the record.

    Raises:
        ConfigError: no seeds are asked for, there are runs with other settings where these would be kept, or the seeds to be
            recorded were not made by one version of the code.
    """
    if command.seeds < 1:
        raise ConfigError(f"seeds is {command.seeds}; it must be at least 1")
    out = command.out or Path("runs/bench") / folder(command.name)
    cells = expand(command, config, out)
    check_cells_unchanged(cells)
    make_directory(out)
    outcomes = run_cells(cells, command.jobs, console, command.together)
    if outcomes is None:
        return 130
    outcomes.sort(key=lambda outcome: cells.index(outcome.cell))
    labels = dict.fromkeys(cell.method for cell in cells)
    table = {label: summarise([_record(o) for o in outcomes if o.cell.method == label]) for label in labels}
    write_file(out / "bench.json", json.dumps(table, indent=2).encode())
    print_summary(command.name, table, console)
    if any(outcome.status != FINISHED for outcome in outcomes):
        return 1
    if command.record is not None:
        for label, suffix in zip(labels, ("", "-twin"), strict=False):
            row = from_cells([cell for cell in cells if cell.method == label], line)
            file = save(of_preset(row, command.name, twin=label == TWIN), command.record + suffix)
            console.print(file, **PLAIN)
    return 0


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
        if ran:
            values = np.array([r["real_steps"] if r[key] is None else r[key] for r in ran], float)
            scores[name] = summary(values)
    return scores


def print_summary(name: str, table: dict[str, dict[str, Any]], console: Console) -> None:
    """For each score a line for each variant."""
    seeds = next(iter(table.values()))["seeds"]
    console.print(f"{name}: {len(seeds)} seed{'s' if len(seeds) > 1 else ''} from {seeds[0]}", **PLAIN)
    counts = {
        "solved": lambda s: f"{s['solved']} of {len(s['seeds'])}",
        "still solved on fresh episodes": lambda s: f"{s['stay good']} of {s['solved']}" if s["solved"] else "–",
    }
    lines = {title: [[label, tell(s), "", ""] for label, s in table.items()] for title, tell in counts.items()}
    for score, (_, form) in SCORES.items():
        lines[score] = [[label, *_figures(score, s, form)] for label, s in table.items()]
    rows = [[title if i == 0 else "", *line] for title, several in lines.items() for i, line in enumerate(several)]
    print_table(["", "", "median", "IQM [95 % interval]", "lowest to highest"], rows, console)


def _figures(score: str, s: dict[str, Any], form: str) -> list[str]:
    """Median, interval and range as texts; dashes where nothing was measured, or nothing solved."""
    if score not in s or (score == "real steps to solve" and not s["solved"]):
        return ["–", "–", "–"]
    v = {k: format(x, form) for k, x in s[score].items()}
    return [v["median"], f"{v['iqm']} [{v['low']}, {v['high']}]", f"{v['lowest']} to {v['highest']}"]
