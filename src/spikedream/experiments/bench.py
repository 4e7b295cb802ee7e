"""Many seeds of one preset, and what can be said of them: `spikedream bench`."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import spikedream
from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.reports.methods import check_unchanged
from spikedream.reports.statistics import summary

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
    """Many seeds of a preset, each in a process of its own, one after the other; a seed that is already in `out` is kept, and one
    that was stopped goes on. What follows `--` are settings, as for `train`; give those another `out`."""

    name: tyro.conf.Positional[str]  # a preset or an environment id
    seeds: int = 20  # how many, numbered from `first_seed`
    first_seed: int = 0
    twin: bool = False  # run the conventional twin beside it
    out: Path | None = None  # runs/bench/<name> when absent


def run_bench(command: Bench, config: Config, console: Console) -> int:
    """Train every seed, evaluate each again on fresh episodes, print and save the table; 0 when every seed could be run.

    Raises:
        ConfigError: no seeds are asked for, or there are runs with other settings where these would be kept.
    """
    if command.seeds < 1:
        raise ConfigError(f"seeds is {command.seeds}; it must be at least 1")
    out = command.out or Path("runs/bench") / command.name.replace("/", "-").replace(":", "-")
    variants: dict[str, Config] = {"spiking": config}
    if command.twin:
        variants["conventional twin"] = configuration.twin(config)
    seeds = range(command.first_seed, command.first_seed + command.seeds)
    runs = {
        label: {out / label.split()[0] / f"s{seed}": replace(variant, seed=seed) for seed in seeds}
        for label, variant in variants.items()
    }
    for directory, wanted in (run for several in runs.values() for run in several.items()):
        if (directory / "config.yaml").exists():
            check_unchanged(directory, configuration.load(directory / "config.yaml"), wanted)
    table = {}
    for label, several in runs.items():
        records = []
        for directory, wanted in several.items():
            record = _seed(wanted, directory)
            records.append(record)
            console.print(_line(label, record), highlight=False, soft_wrap=True)
        table[label] = summarise(records)
    (out / "bench.json").write_text(json.dumps(table, indent=2))
    console.print(_draw(command.name, table))
    return 0 if all(s["failed"] == 0 for s in table.values()) else 1


def _seed(config: Config, directory: Path) -> dict[str, Any]:
    """One training process, timed from the outside, then as many greedy episodes as it evaluates on seeds that it never saw."""
    file, settings = directory / "bench.json", directory.with_suffix(".yaml")
    if file.exists():
        return json.loads(file.read_text())
    directory.parent.mkdir(parents=True, exist_ok=True)
    configuration.save(config, settings)
    stopped = (directory / "config.yaml").exists()
    arguments = ["resume", str(directory)] if stopped else ["train", str(settings), "--out", str(directory)]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "spikedream", *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    settings.unlink()
    if done.returncode != 0:
        return {"seed": config.seed, "failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    run = spikedream.load(directory)
    assert run.result is not None
    rate = {"firing_rate": run.result["firing_rate"].get("actor_greedy", 0.0)}
    record = (
        run.result
        | rate
        | {
            "process_seconds": run.result["wall_seconds"] if stopped else seconds,
            "fresh_return_mean": float(run.evaluate(run.config.evaluation.episodes).mean()),
        }
    )
    file.write_text(json.dumps(record, indent=2))
    return record


def _line(label: str, record: dict[str, Any]) -> str:
    if "failed" in record:
        return f"{label} seed {record['seed']}: FAILED: {record['failed']}"
    outcome = f"solved at {record['real_steps_to_solve']}" if record["solved"] else f"not solved in {record['real_steps']}"
    return (
        f"{label} seed {record['seed']}: {outcome} real steps, return {record['eval_return_mean']:.1f},"
        f" fresh {record['fresh_return_mean']:.1f}, {record['process_seconds']:.1f} s"
    )


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
