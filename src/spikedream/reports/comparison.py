"""Runs of one environment side by side: which method each belongs to, and what can be said of the methods.

A run is read as it lies on the disk (`config.yaml`, `metrics.jsonl`, `result.json`); nothing is compiled, and a configuration of
another version of spikedream, or of a baseline, is as good as any.
"""

import glob
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import yaml

from spikedream.config import ConfigError
from spikedream.envs.make import reward_threshold
from spikedream.reports.methods import differing, flatten, group
from spikedream.reports.statistics import Curve, Improvement, Statistic, curve, improvement, summary

CURVE_POINTS = 200
MEASURED = ("real_steps", "eval_return_mean", "wall_seconds")  # in every row and every result
OUGHT_TO_BE_EQUAL = (
    "budget",
    "threshold",
    "evaluation.episodes",
    "evaluation.confirmations",
)  # that ought to be the same for all methods


@dataclass(frozen=True)
class Record:
    """One run, read from its directory."""

    directory: Path
    config: dict[str, Any]  # `config.yaml` as plain data
    rows: list[dict[str, Any]]  # one per evaluation, at least one
    result: dict[str, Any] | None  # None while it is unfinished

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Every setting that makes a method, by its dotted name: without the seed, and without where the run is logged."""
        settings = flatten(self.config)
        return {name: value for name, value in settings.items() if name != "seed" and not name.startswith("logging.")}

    @property
    def seed(self) -> int:
        return self.config.get("seed", 0)

    @property
    def solved_at(self) -> int | None:
        return self.result["real_steps_to_solve"] if self.result else None

    @property
    def threshold(self) -> float | None:
        return self.result["threshold"] if self.result else self.config.get("threshold")

    def last(self, name: str) -> float:
        """Where the run stands in the end: `real_steps`, `eval_return_mean` or `wall_seconds`."""
        return float((self.result or self.rows[-1])[name])

    @property
    def stops(self) -> bool:
        """Whether it does as soon as it is solved."""
        return (self.config.get("evaluation") or {}).get("stop", True)

    @property
    def fresh(self) -> float | None:
        """Mean return on fresh episodes; None where it is unfinished, of an earlier version, or goes on after it is solved: then
        they may have been played by the policy that solved it, which is not the last."""
        return (self.result or {}).get("fresh_return_mean") if self.stops else None

    def at(self, mark: int) -> float | None:
        """The return of the last evaluation within `mark` real steps; None where there is none, or the run has not come so far. One
        that stopped as solved keeps its last."""
        until = [row["eval_return_mean"] for row in self.rows if row["real_steps"] <= mark]
        there = self.last("real_steps") >= mark or self.solved_at is not None
        return float(until[-1]) if until and there else None


@dataclass(frozen=True)
class Method:
    """Runs that count as repetitions of one another."""

    runs: list[Record]
    solved: int
    scores: dict[str, dict[str, float]]  # name to `statistics.summary`; of a mark, `return_at(mark)`
    curves: dict[str, Curve]  # return over `real_steps` and over `wall_seconds`


@dataclass(frozen=True)
class Comparison:
    """What `compare` says."""

    env: str
    threshold: float | None
    fields: list[str]  # of the configuration, by which the runs were grouped
    methods: dict[str, Method]
    improvement: dict[str, dict[tuple[str, str], Improvement]]  # score to (X, Y) to P(X is better than Y), each pair once
    notes: list[str]
    statistic: Statistic = "iqm"  # over seeds
    marks: tuple[int, ...] = ()  # real steps at which returns are told too

    def to_data(self) -> dict[str, Any]:
        """As `compare.json` holds it."""
        return {
            "env": self.env,
            "threshold": self.threshold,
            "by": self.fields,
            "statistic": self.statistic,
            "notes": self.notes,
            "methods": {
                label: {
                    "runs": [str(run.directory) for run in method.runs],
                    "seeds": [run.seed for run in method.runs],
                    "solved": method.solved,
                    **method.scores,
                    "curves": {axis: self._curve_data(curve) for axis, curve in method.curves.items()},
                }
                for label, method in self.methods.items()
            },
            "probability_of_improvement": {
                score: [{"x": x, "y": y, **value._asdict()} for (x, y), value in pairs.items()]
                for score, pairs in self.improvement.items()
            },
        }

    def _curve_data(self, curve: Curve) -> dict[str, list[float]]:
        return {self.statistic if k == "middle" else k: values.tolist() for k, values in curve._asdict().items()}


def return_at(mark: int) -> str:
    """The name of a score."""
    return f"return at {mark}"


# ---- finding and reading runs


def find_runs(patterns: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Run directories that are named, match a glob pattern, or lie in such a directory at any depth; sorted, each once. Beside them
    notes on what was named or matched and is no run: a shell that expands a pattern names whatever lies there.

    Raises:
        ConfigError: a path does not exist, a pattern matches nothing, or there is no run in any of them.
    """
    found: dict[Path, Path] = {}
    empty: list[Path] = []
    for pattern in patterns:
        places = [Path(pattern)] if Path(pattern).exists() else [Path(p) for p in sorted(glob.glob(pattern, recursive=True))]
        if not places:
            raise ConfigError(f"no run directory {pattern}")
        runs = {place: sorted(_runs_in(place)) for place in places}
        empty += [place for place in places if not runs[place] and place not in empty]
        found |= {run.resolve(): run for several in runs.values() for run in several if run.resolve() not in found}
    if not found:
        more = f" and {len(empty) - 3} more" if len(empty) > 3 else ""
        missing = f"no run in {', '.join(map(str, empty[:3]))}{more}" if empty else "no runs given"
        raise ConfigError(f"{missing}: name run directories, glob patterns, or directories that contain runs")
    notes = [f"{place} is left out: there is no run in it." for place in empty]
    return _only_runs(list(found.values()), notes), notes


def _only_runs(directories: list[Path], notes: list[str]) -> list[Path]:
    """Without those whose `config.yaml` is somebody else's; all where nothing else is left, so that reading them says what is
    wrong."""
    foreign = [directory for directory in directories if not _is_run(directory)]
    if len(foreign) == len(directories):
        return directories
    notes += [f"{directory} is left out: its config.yaml is not a run's." for directory in foreign]
    return [directory for directory in directories if directory not in foreign]


def _is_run(directory: Path) -> bool:
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(config, dict) and "env" in config


def _runs_in(place: Path) -> Iterator[Path]:
    if (place / "config.yaml").is_file():
        yield place
    elif place.is_dir():
        yield from (file.parent for file in place.rglob("config.yaml"))


def open_record(directory: Path) -> Record | None:
    """None where not one turn is finished.

    Raises:
        ConfigError: a file of the run cannot be read, or is not what a run leaves.
    """
    file = directory / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text())
        if not isinstance(config, dict) or "env" not in config:
            raise ConfigError(f"{file} is not the configuration of a run: it names no env")
        file = directory / "result.json"
        result = json.loads(file.read_text()) if file.exists() else None
        _require(file, [result] if file.exists() else [], (*MEASURED, "real_steps_to_solve", "threshold"))
        file = directory / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        rows = [json.loads(line) for line in lines[:-1]]
        with suppress(ValueError):  # a process that was killed may have left half a line behind
            rows += [json.loads(line) for line in lines[-1:]]
        _require(file, rows, MEASURED)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    return Record(directory, config, rows, result) if rows else None


def _require(file: Path, found: Iterable[Any], names: Iterable[str]) -> None:
    for mapping in found:
        missing = [name for name in names if not isinstance(mapping, dict) or name not in mapping]
        if missing:
            raise ConfigError(f"{file} is not a run's: it lacks {missing[0]}")
        for name in MEASURED:
            if not isinstance(mapping[name], int | float):
                raise ConfigError(f"{file} is not a run's: its {name} is {json.dumps(mapping[name])}, where a number belongs")


# ---- comparing


def compare(
    directories: Iterable[Path],
    by: str | None = None,
    notes: Iterable[str] = (),
    statistic: Statistic = "iqm",
    marks: Sequence[int] = (),
) -> Comparison:
    """Compare runs of one environment.

    Args:
        directories: of the runs.
        by: dotted configuration field whose value names a run's method; when absent, runs that differ only in seed are one method.
        notes: what is to be said of how the runs were found.
        statistic: over the seeds of a method.
        marks: real steps at which returns are compared, too.

    Raises:
        ConfigError: a run cannot be read, none has finished a turn, their environments differ, no run has the field `by`, or a mark
            is not positive.
    """
    if wrong := [mark for mark in marks if mark < 1]:
        raise ConfigError(f"marks are numbers of real steps, at least 1, not {wrong[0]}")
    notes = list(notes)
    records = []
    for directory in directories:
        record = open_record(directory)
        if record is None:
            notes.append(f"{directory} is left out: no turn of it is finished.")
        else:
            records.append(record)
    if not records:
        raise ConfigError("none of the runs has finished a turn yet")
    _check_environments(records)
    fields, names = group([r.config for r in records], [r.settings for r in records], by)
    groups: dict[str, list[Record]] = defaultdict(list)
    for name, record in zip(names, records, strict=True):
        groups[name].append(record)
    groups = {label: _without_repetitions(label, runs, notes) for label, runs in groups.items()}
    threshold = _threshold(records)
    methods = {label: _measure(runs, threshold is not None, statistic, marks) for label, runs in groups.items()}
    notes += _notes(groups, fields)
    improvements = _improvements(groups, threshold is not None, marks)
    return Comparison(records[0].config["env"], threshold, fields, methods, improvements, notes, statistic, tuple(marks))


def _check_environments(records: Sequence[Record]) -> None:
    counts: dict[str, int] = defaultdict(int)
    for record in records:
        kwargs, limit = record.config.get("env_kwargs") or {}, record.config.get("max_episode_steps")
        details = ([f"env_kwargs {kwargs}"] if kwargs else []) + ([f"max_episode_steps {limit}"] if limit else [])
        counts[record.config["env"] + (f" with {', '.join(details)}" if details else "")] += 1
    if len(counts) > 1:
        listed = ", ".join(f"{env} ({n} run{'s' if n > 1 else ''})" for env, n in counts.items())
        raise ConfigError(f"the runs are of different environments: {listed}; compare them one environment at a time")


def _without_repetitions(label: str, runs: list[Record], notes: list[str]) -> list[Record]:
    """A run that was made twice is one observation: the one that came further is kept."""
    kept: dict[str, Record] = {}
    for run in runs:
        key = json.dumps([run.seed, run.settings], sort_keys=True, default=str)
        if key in kept:
            notes.append(f"{label}: seed {run.seed} is there twice and counts once ({run.directory}).")
        if key not in kept or run.last("real_steps") > kept[key].last("real_steps"):
            kept[key] = run
    return sorted(kept.values(), key=lambda run: run.seed)


def _threshold(records: Sequence[Record]) -> float | None:
    """The first that is known; `_notes` tells where runs have different ones."""
    known = [r.threshold for r in records if r.threshold is not None]
    if known or any(r.result for r in records):
        return known[0] if known else None
    try:
        return reward_threshold(records[0].config["env"])
    except gymnasium.error.Error:
        return None


def _measure(runs: list[Record], has_threshold: bool, statistic: Statistic, marks: Sequence[int]) -> Method:
    """A score that not all of the runs have is left out."""
    values: dict[str, list[float | None]] = {
        "fresh_return": [run.fresh for run in runs],
        **{return_at(mark): [run.at(mark) for run in runs] for mark in marks},
        "final_return": [run.last("eval_return_mean") for run in runs],
        "wall_seconds": [run.last("wall_seconds") for run in runs],
    }
    if has_threshold:
        values["real_steps_to_solve"] = [run.last("real_steps") if run.solved_at is None else run.solved_at for run in runs]
    scores = {name: summary(np.array(of, float), statistic) for name, of in values.items() if None not in of}
    solved = sum(run.solved_at is not None for run in runs)
    return Method(runs, solved, scores, {axis: _curve(runs, axis, statistic) for axis in ("real_steps", "wall_seconds")})


def _curve(runs: list[Record], axis: str, statistic: Statistic) -> Curve:
    """Return over `axis`, each run a step function that keeps its last value. It begins where every run has been evaluated once,
    and ends where the first unfinished run ends; a finished one keeps its last value until the last one has stopped."""
    xs = [np.array([row[axis] for row in run.rows], float) for run in runs]
    ys = [np.array([row["eval_return_mean"] for row in run.rows], float) for run in runs]
    unfinished = [x[-1] for x, run in zip(xs, runs, strict=True) if run.result is None]
    start, end = max(x[0] for x in xs), min(unfinished) if unfinished else max(x[-1] for x in xs)
    grid = np.unique(np.concatenate(xs))
    grid = grid[(grid >= start) & (grid <= max(start, end))]
    if len(grid) > CURVE_POINTS:
        grid = grid[np.linspace(0, len(grid) - 1, CURVE_POINTS).round().astype(int)]
    values = np.stack([y[np.searchsorted(x, grid, side="right") - 1] for x, y in zip(xs, ys, strict=True)])
    return curve(grid, values, statistic)


def _improvements(
    groups: Mapping[str, list[Record]], has_threshold: bool, marks: Sequence[int]
) -> dict[str, dict[tuple[str, str], Improvement]]:
    """By the return in the end, on fresh episodes where it is known of all runs, by those at the marks that all runs have reached,
    and by the steps to solve where any run did."""
    records = [run for runs in groups.values() for run in runs]
    returns: dict[str, Callable[[Record], float | None]] = {
        return_at(mark): lambda run, mark=mark: run.at(mark) for mark in marks if all(run.at(mark) is not None for run in records)
    }
    if all(run.fresh is not None for run in records):
        returns["fresh_return"] = lambda run: run.fresh
    else:
        returns["final_return"] = lambda run: run.last("eval_return_mean")
    better = {score: {k: np.array([of(run) for run in runs], float) for k, runs in groups.items()} for score, of in returns.items()}
    if has_threshold and any(run.solved_at is not None for run in records):
        # Fewer steps are better, and whoever did not solve is worse than everyone who did, whatever budget it had.
        steps = {k: [np.inf if run.solved_at is None else run.solved_at for run in runs] for k, runs in groups.items()}
        better["real_steps_to_solve"] = {label: -np.array(values, float) for label, values in steps.items()}
    labels = list(groups)
    pairs = [(x, y) for i, x in enumerate(labels) for y in labels[i + 1 :]]
    return {score: {(x, y): improvement(of[x], of[y]) for x, y in pairs} for score, of in better.items()}


def _notes(groups: Mapping[str, list[Record]], fields: Sequence[str]) -> list[str]:
    """What a reader must know to read the numbers rightly."""
    notes = []
    records = [run for runs in groups.values() for run in runs]
    for label, runs in groups.items():
        if len(runs) == 1:
            notes.append(f"{label} has a single seed ({runs[0].seed}): no interval.")
        unfinished = [str(run.seed) for run in runs if run.result is None]
        if unfinished:
            notes.append(f"{label}: unfinished, counted as far as it has come: seed {', '.join(unfinished)}.")
        mixed = differing([run.settings for run in runs])
        if mixed:
            more = f" and {len(mixed) - 3} more" if len(mixed) > 3 else ""
            notes.append(f"{label} pools runs that also differ in {', '.join(mixed[:3])}{more}.")
    shared = differing([run.settings for run in records])
    for field in OUGHT_TO_BE_EQUAL:
        if field in shared and field not in fields:
            notes.append(f"Not the same for all runs: {field} ({_values(groups, field)}).")
    if any(0 < sum(run.solved_at is not None for run in runs) < len(runs) for runs in groups.values()):
        notes.append(
            "A run that did not solve counts with the steps it was given, which flatters it: see the number solved beside."
        )
    if any(run.solved_at is not None and run.stops for run in records):
        notes.append("The final return of a run that stopped as solved is of the evaluation that stopped it, which flatters it.")
    return notes


def _values(groups: Mapping[str, list[Record]], field: str) -> str:
    texts = {label: sorted({str(run.settings.get(field)) for run in runs}) for label, runs in groups.items()}
    return ", ".join(f"{label} {' or '.join(values)}" for label, values in texts.items())
