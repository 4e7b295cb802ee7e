"""The results and the tables that are made of them: `python -m spikedream.experiments.results`, in a working copy's root.

Without a flag it says what in the tables does not agree with the files in `results/`, and which rows were measured with earlier
code. `--write` writes the tables (`make tables`); `--witness NAME` trains the seed that a row names as its witness again.
"""

import dataclasses
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.experiments import record, tables
from spikedream.experiments.baselines import Baseline
from spikedream.experiments.cells import FINISHED, PLAIN, run_cells
from spikedream.experiments.grid import Cell
from spikedream.experiments.record import FRESH, STEPS, Row
from spikedream.runs import provenance
from spikedream.runs.checkpoint import CheckpointError


@dataclass
class Results:
    """Check the tables, write them, or train a row's witness again."""

    write: bool = False  # the tables into their documents
    witness: str | None = None  # a row's name: a file in results/, without .json
    root: Path = Path()  # of the working copy


def run_results(command: Results, console: Console) -> int:
    """0 where everything agrees; what does not stands on the terminal, a line each. Raises ConfigError where a file is wrong."""
    if command.witness is not None:
        return 0 if witness(command.witness, command.root / record.RESULTS, console) else 1
    if command.write:
        for file in tables.write(command.root):
            console.print(f"{file}: written", **PLAIN)
        return 0
    wrong = tables.check(command.root)
    for line in wrong:
        console.print(line, **PLAIN)
    for name in rows(command.root / record.RESULTS):
        if (row := record.load(name, command.root / record.RESULTS)).stale:
            console.print(f"{name}: measured with earlier code or settings; again: {row.command}", **PLAIN)
    return 1 if wrong else 0


def rows(place: Path = record.RESULTS) -> list[str]:
    """Their names."""
    return sorted(file.stem for file in place.glob("*.json"))


def measured(place: Path = record.RESULTS) -> list[str]:
    """Names of the rows that can call a witness."""
    return [name for name in rows(place) if record.load(name, place).witness is not None]


# ---- the witness


def witness(name: str, place: Path, console: Console) -> bool:
    """Train the row's witness again, and note in the file whether it still does as it did. Where it does so to the last digit, the
    row counts as one of the present code. Where nothing here can judge it, nothing is trained.

    Raises:
        ConfigError: the row has no witness, or its settings are no longer understood.
        CheckpointError: the file cannot be written.
    """
    row = record.load(name, place)
    if row.witness is None or row.settings is None:
        raise ConfigError(f"{record.path(name, place)} has no witness: it is not of runs")
    if not judges(row, here := provenance.processor()):
        console.print(f"{name}: only {row.processor} can judge it; this is {here}", **PLAIN)
        return True
    with tempfile.TemporaryDirectory(prefix="spikedream-witness-") as directory:
        config = dataclasses.replace(_config(row.settings), seed=row.witness)
        cell = Cell(config.env, name, row.witness, config, Path(directory) / "run")
        outcomes = run_cells([cell], 1, console)
        if not outcomes or outcomes[0].status != FINISHED:
            raise ConfigError(f"the witness of {name} came to no end: {outcomes[0].text if outcomes else 'it was stopped'}")
        result = json.loads((cell.directory / "result.json").read_text())
    wrong = contradictions(row, result)
    for line in wrong:
        console.print(f"{name}, seed {row.witness}: {line}", **PLAIN)
    known = dataclasses.replace(row, measured_before=bool(wrong), code=result["code"] if repeats(row, result) else row.code)
    if known != row:
        file = record.save(known, name, place)
        said = "of earlier code, as its witness shows" if wrong else "of the present code, as its witness shows"
        console.print(f"{file}: {said}; `make tables` says so", **PLAIN)
    return not wrong


def _config(settings: Mapping[str, Any]) -> Config | Baseline:
    kind = settings.get("agent", {}).get("kind")
    return configuration.merge(Baseline() if kind == "StableBaselines3" else Config(), settings)


def judges(row: Row, processor: str) -> bool:
    """Whether a run on this processor can tell if the row still holds: elsewhere rounding differs, and the range of one seed is a
    single figure, which nothing else would meet; and what took an accelerator minutes would take a processor days."""
    return processor == row.processor or (len(row.seeds) > 1 and _accelerated(row.processor) <= _accelerated(processor))


def _accelerated(processor: str | None) -> bool:
    """By its name, as `provenance.processor` makes it, which is that of an accelerator before those of processor and cores."""
    return (processor or "").count(", ") > 1


def repeats(row: Row, result: Mapping[str, Any]) -> bool:
    """Whether a run of the row's witness came to the row's figures to the last digit, on any processor: other code would not."""
    return all(row.scores[score][_place(row)] == new for score, new in _figures(result).items())


def _figures(result: Mapping[str, Any]) -> dict[str, Any]:
    return {STEPS: result["real_steps_to_solve"], FRESH: result["fresh_return_mean"]}


def _place(row: Row) -> int:
    """Of the witness among the row's seeds."""
    assert row.witness is not None
    return row.seeds.index(row.witness)


def contradictions(row: Row, result: Mapping[str, Any]) -> list[str]:
    """A line for each figure in which a run of the row's witness is not what the row says: the same outcome on the same processor,
    one inside the row's range on another, where rounding differs. Rows of one seed are judged only on the processor that measured
    them, those of an accelerator only on one: of a run elsewhere there is no line.

    Args:
        row: one that has a witness.
        result: `result.json` of the run.
    """
    if not judges(row, result["processor"]):
        return []
    i, wrong = _place(row), []
    for score, new in _figures(result).items():
        old, known = row.scores[score][i], [value for value in row.scores[score] if value is not None]
        if result["processor"] == row.processor:
            if new != old:
                wrong.append(f"{score} is {new}, was {old} on the same processor ({row.processor})")
        elif new is None:
            if len(known) == len(row.seeds):
                wrong.append(f"{score} is {new}, and every seed solved on {row.processor}")
        elif not known or not min(known) <= new <= max(known):
            span = f"{min(known)} to {max(known)}" if known else "nothing"
            wrong.append(f"{score} is {new} on {result['processor']}, outside the row's {span} on {row.processor}")
    return wrong


def main() -> None:
    command = tyro.cli(Results, prog="python -m spikedream.experiments.results", config=(tyro.conf.FlagCreatePairsOff,))
    try:
        status = run_results(command, Console())
    except (BrokenEnvironment, CheckpointError, ConfigError) as error:
        print(f"spikedream: {error}", file=sys.stderr)
        status = 1
    sys.exit(status)


if __name__ == "__main__":
    main()
