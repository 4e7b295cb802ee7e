"""What a row of a table rests on: a file in `results/`, written by a bench, a study or a benchmark script, never by hand. It holds
its scores seed by seed; whatever a table shows is computed from them."""

import argparse
import dataclasses
import hashlib
import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.experiments.grid import Cell
from spikedream.reports.statistics import summary
from spikedream.runs import provenance
from spikedream.runs.checkpoint import make_directory, write_file

SCHEMA = 1
RESULTS = Path("results")
STEPS, FRESH, END, SECONDS = "real_steps_to_solve", "fresh_return", "end_return", "wall_seconds"
MAY_LACK = (STEPS, END)  # a seed's score is null there where it did not solve, or stopped before its budget was spent
POINTS = 20  # of a learning curve, at most
ELSEWHERE = ("seed", "logging")  # of a configuration, which makes no difference between the seeds of a row


@dataclass(frozen=True)
class Row:
    """One row."""

    command: str  # which makes it again
    seeds: list[int]
    scores: dict[str, list[float | None]]  # name to (seeds,)
    version: str | None = None
    commit: str | None = None
    processor: str | None = None
    code: str | None = None  # see `provenance.code`
    settings: dict[str, Any] | None = None  # the whole configuration, seed apart
    preset: str | None = None  # where the settings are just a preset's, or its twin's
    twin: bool = False
    threshold: float | None = None
    budget: int | None = None
    witness: int | None = None  # a seed whose outcome can be trained again
    measured_before: bool = False  # the witness no longer does as it did

    @property
    def solved(self) -> int | None:
        """How many seeds; None where the row is not about solving."""
        return sum(x is not None for x in self.scores[STEPS]) if STEPS in self.scores else None

    @property
    def stay_good(self) -> int | None:
        """How many of the solved seeds reach the threshold on fresh episodes too; None where it is not known."""
        if STEPS not in self.scores or FRESH not in self.scores or self.threshold is None:
            return None
        return sum(s is not None and f >= self.threshold for s, f in zip(self.scores[STEPS], self._fresh(), strict=True))

    def _fresh(self) -> list[float]:
        return [math.nan if value is None else value for value in self.scores[FRESH]]

    def figure(self, score: str) -> dict[str, Any]:
        """Median, mean, interquartile mean, its 95 % interval from `low` to `high`, `lowest` and `highest`; null is not
        known. Steps to solve are of the solved seeds, whose `values` are told too; where not all are solved, the median counts the
        others as worse than any. Fresh returns are of the solved seeds where there are any."""
        values = self.scores.get(score, [])
        if score == FRESH and self.solved:
            values = [value for value, steps in zip(values, self.scores[STEPS], strict=True) if steps is not None]
        known = sorted(value for value in values if value is not None)
        if not known:
            return {}
        figures: dict[str, Any] = {**summary(np.array(known, float)), "mean": float(np.mean(known)), "values": known}
        if len(known) < len(values):
            median = float(np.median([math.inf if value is None else value for value in values]))
            figures |= {"median": median if math.isfinite(median) else None, "iqm": None, "low": None, "high": None}
        return figures

    @property
    def stale(self) -> bool:
        """Whether what it depends on has changed since: the source, or the preset whose settings it has."""
        if self.code is None:
            return False
        try:
            return self.code != self._present_code() or not self._settings_stand()
        except (ConfigError, FileNotFoundError):  # no such setting or script is there any more
            return True

    def _present_code(self) -> str:
        if self.settings is None:
            return provenance.code_of_script(_script(self.command))
        return provenance.code(self._config())

    def _config(self) -> Any:
        """As `provenance.code` takes it."""
        ours = self.settings is not None and self.settings.get("agent", {}).get("kind") != "StableBaselines3"
        return configuration.merge(Config(), self.settings) if ours else self.settings

    def _settings_stand(self) -> bool:
        if self.preset is None:
            return True
        try:
            config = configuration.named(self.preset)
        except ConfigError:
            return False
        # By way of a configuration: a setting that did not exist yet had its default's effect.
        return settings_of(self._config()) == settings_of(configuration.twin(config) if self.twin else config)


def settings_of(config: Any) -> dict[str, Any]:
    """Of a `Config` or a baseline's, as plain data, without what makes no difference between the seeds of a row, or to what was
    measured until they solved."""
    # By way of JSON, so that it equals what is read back.
    data = json.loads(json.dumps(configuration.to_data(config)))
    data["evaluation"].pop("stop", None)
    return {name: value for name, value in data.items() if name not in ELSEWHERE}


# ---- files


def path(name: str, place: Path = RESULTS) -> Path:
    return place / f"{name}.json"


def save(row: Row, name: str, place: Path = RESULTS) -> Path:
    """Raises CheckpointError where it cannot be written."""
    make_directory(place)
    data = {"schema": SCHEMA, **dataclasses.asdict(row)}
    file = path(name, place)
    write_file(file, (json.dumps({**data, "digest": _digest(data)}, indent=1) + "\n").encode())
    return file


def load(name: str, place: Path = RESULTS) -> Row:
    """Raises ConfigError, naming the file, where it is missing, of another schema, incomplete, or edited by hand."""
    file = path(name, place)
    try:
        data = json.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{file} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        there = data.get("schema") if isinstance(data, dict) else None
        raise ConfigError(f"{file} has schema {there}; this version of spikedream reads {SCHEMA}")
    digest, _ = data.pop("digest", None), data.pop("schema")
    fields = {f.name: f for f in dataclasses.fields(Row)}
    for key in (*data, *fields):
        if key not in data or key not in fields:
            raise ConfigError(f"{file} {'lacks' if key in fields else 'has an unknown key'} {key!r}")
    _check(data, file)
    if digest != _digest({"schema": SCHEMA, **data}):
        raise ConfigError(f"{file} is not as it was written: results are not edited by hand; make it again by: {data['command']}")
    return Row(**data)


def _check(data: Mapping[str, Any], file: Path) -> None:
    """Raises ConfigError where seeds and scores do not fit one another."""
    seeds, scores = data["seeds"], data["scores"]
    if not isinstance(seeds, list) or len(set(seeds)) < len(seeds) or not all(isinstance(seed, int) for seed in seeds):
        raise ConfigError(f"{file}: seeds are whole numbers, each once, not {seeds!r}")
    if not isinstance(scores, dict) or not scores:
        raise ConfigError(f"{file} holds no scores")
    for score, values in scores.items():
        if not isinstance(values, list) or len(values) != len(seeds):
            count = len(values) if isinstance(values, list) else "no list of"
            raise ConfigError(f"{file}: {score} has {count} values for {len(seeds)} seeds")
        for seed, value in zip(seeds, values, strict=True):
            if not isinstance(value, int | float) and not (value is None and score in MAY_LACK):
                raise ConfigError(f"{file} lacks {score} of seed {seed}")
    if data["witness"] is not None and data["witness"] not in seeds:
        raise ConfigError(f"{file}: its witness, seed {data['witness']}, is not among its seeds")


def _digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


# ---- making rows


def command_of(verb: str, arguments: Sequence[str]) -> str:
    """The command of a row, from the `arguments` of `spikedream VERB`, without where its runs were written and how many of them
    were trained at a time: both are of one machine."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--out", "--jobs"):
        parser.add_argument(flag)
    return shlex.join(["spikedream", verb, *parser.parse_known_args(arguments[:end])[1], *arguments[end:]])


def from_cells(cells: Sequence[Cell], command: str) -> Row:
    """Of finished cells that differ in nothing but their seed.

    Raises:
        ConfigError: their results were made by different versions of the code, or on different processors.
    """
    results = [json.loads((cell.directory / "result.json").read_text()) for cell in cells]
    made_by: dict[str, Any] = {}
    for name in ("version", "commit", "code", "processor"):
        different = {json.dumps(result.get(name)): cell for cell, result in zip(cells, results, strict=True)}
        if len(different) > 1:
            places = " and ".join(str(cell.directory) for cell in different.values())
            raise ConfigError(f"no row can be made of runs whose {name} is not the same, as in {places}: run them anew")
        made_by[name] = results[0].get(name)
    scores: dict[str, list[float | None]] = {
        STEPS: [result["real_steps_to_solve"] for result in results],
        FRESH: [result["fresh_return_mean"] for result in results],
        END: [r["eval_return_mean"] if r["real_steps"] >= r["budget"] else None for r in results],
        SECONDS: [result["wall_seconds"] for result in results],
    }
    scores |= _curve(cells, results)
    quickest = min(range(len(cells)), key=lambda i: (scores[STEPS][i] is None, scores[SECONDS][i]))
    return Row(
        command, [cell.seed for cell in cells], scores, **made_by, settings=settings_of(cells[0].config),
        threshold=results[0]["threshold"], budget=results[0]["budget"], witness=cells[quickest].seed,
    )  # fmt: skip


def _curve(cells: Sequence[Cell], results: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """`return at N` for each N of about `POINTS` real steps at which every seed was evaluated; nothing where one stopped early."""
    if any(result["real_steps"] < result["budget"] for result in results):
        return {}
    curves = []
    for cell in cells:
        file = cell.directory / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        curves.append({row["real_steps"]: row["eval_return_mean"] for row in rows})
    common = sorted(set.intersection(*(set(curve) for curve in curves)))
    every = -(-len(common) // POINTS) or 1
    return {f"return at {n}": [curve[n] for curve in curves] for n in common[every - 1 :: every]}


def _script(command: str) -> Path:
    """That a measurement's `command`, `python benchmarks/NAME.py ...`, runs."""
    return provenance.PACKAGE.parents[1] / shlex.split(command)[1]


def of_preset(row: Row, name: str, twin: bool) -> Row:
    """`row`, tied to the preset `name` where its settings are just those; a preset that changes makes it stale."""
    tied = dataclasses.replace(row, preset=name, twin=twin)
    return tied if tied._settings_stand() else row


def record_scores(name: str, scores: Mapping[str, Sequence[float]], place: Path = RESULTS, command: str | None = None) -> Path:
    """For benchmark scripts: what was measured here and now, score by repetition or seed, as `results/<name>.json`. Where no
    `command` is given it is that of the script, as it was called."""
    if command is None:
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    repetitions = len(next(iter(scores.values())))
    row = Row(
        command, list(range(repetitions)), {score: [float(x) for x in values] for score, values in scores.items()},
        version=provenance.version(), commit=provenance.commit(), processor=provenance.processor(),
        code=provenance.code_of_script(_script(command)),
    )  # fmt: skip
    return save(row, name, place)
