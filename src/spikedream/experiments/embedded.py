"""How fast an agent learns from scratch with computation that suits embedded systems: `spikedream embedded`.

Every method of a study is trained, its operations are counted and priced, and what it leaves behind runs on an emulated board: the
learner where that has its form in C, which goes on learning there, else the greedy policy.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from spikedream.config import Config, ConfigError
from spikedream.envs.make import make_own
from spikedream.experiments import grid, record
from spikedream.experiments.cells import FAILED, FINISHED, PLAIN, check_cells_unchanged, run_cells
from spikedream.experiments.grid import Cell
from spikedream.experiments.record import FRESH, STEPS, Row
from spikedream.experiments.tables import UNKNOWN, number, solved
from spikedream.export import prices
from spikedream.export.directory import export_policy
from spikedream.export.emulator import BOARDS, Board, emulate, missing, train_on
from spikedream.export.energy import energy
from spikedream.export.learner import export_learner
from spikedream.nodes import Unexportable
from spikedream.reports.compare import print_table
from spikedream.reports.energy_shown import amount
from spikedream.runs import provenance
from spikedream.runs.checkpoint import write_file
from spikedream.runs.run import Run
from spikedream.spelling import suggestion

VECTORS = 100  # observations on which a policy's decisions are counted on a board
LEARNED = 250  # steps that a learner goes on with there
OPERATIONS, LEARNING = "operations to learn", "pJ to learn"
DECISION, FIRING = "pJ a decision", "firing rate"
DECIDING, STEPPING = "instructions a decision", "instructions a learning step"
FLASH, RAM = "flash, bytes", "RAM, bytes"


@dataclass
class Embedded:
    """How fast is a task learned from scratch by computation that suits embedded systems? Each method of a study learns it: steps,
    operations, energy, memory and the instructions of an emulated board side by side. What was stopped goes on."""

    study: tyro.conf.Positional[str] = "embedded"  # one that comes with spikedream, or a .yaml file
    seeds: int | None = None  # only the first so many of the study's seeds
    methods: tuple[str, ...] = ()  # only these of the study's methods
    jobs: int = 1  # runs at a time
    board: str = "cortex-m4"  # cortex-m4, cortex-m3 or rv32
    table: str = prices.DEFAULT  # of energy: 45nm, 45nm-int8, 45nm-int32, 45nm-sram, loihi, or a YAML file of your own
    out: Path | None = None  # runs/<study> when absent
    record: str | None = None  # also write results/<record>-<method>.json: rows for tables


class RunScores(NamedTuple):
    """Of one run."""

    scores: dict[str, float | None]  # None: not known, or there is no such thing
    lacking: str | None  # why what a board would tell is not known


def run_embedded(command: Embedded, console: Console, line: str) -> int:
    """Train, count, emulate, print; 0 when every run could be made.

    Args:
        command: what is asked for.
        console: where the table goes.
        line: the command, for the record.

    Raises:
        ConfigError: the study, the board or the table of energy is wrong, or the runs to be recorded are of several versions.
        BrokenEnvironment: the environment cannot be used.
    """
    if command.board not in BOARDS:
        raise ConfigError(f"there is no board {command.board!r}; {suggestion(command.board, BOARDS)}")
    prices.load(command.table).check_complete()
    study, board = grid.named(command.study), BOARDS[command.board]
    out = command.out or Path("runs") / study.name
    cells = grid.expand(study, out)
    environments = list(dict.fromkeys(cell.environment for cell in cells))
    if len(environments) > 1:
        raise ConfigError(f"study {study.name} has {len(environments)} environments; what is learned from scratch here is one")
    cells = grid.part(study, cells, command.seeds, environments, command.methods)
    if foreign := sorted({cell.method for cell in cells if not isinstance(cell.config, Config)}):
        raise ConfigError(f"nothing of {', '.join(foreign)} can be counted or put on a device: leave that out, by --methods")
    check_cells_unchanged(cells)
    outcomes = run_cells(cells, command.jobs, console)
    if outcomes is None:
        return 130
    finished = {outcome.cell.directory for outcome in outcomes if outcome.status == FINISHED}
    found: dict[str, list[tuple[Cell, RunScores]]] = {}
    for cell in cells:
        if cell.directory in finished and isinstance(cell.config, Config):
            found.setdefault(cell.method, []).append((cell, measure(cell, board, command.table)))
    rows = {method: row_of([cell for cell, _ in own], [m for _, m in own], line) for method, own in found.items()}
    show(rows, cells[0], len({cell.seed for cell in cells}), command, console)
    for reason, methods in _reasons(found).items():
        console.print(f"{', '.join(methods)}: no figures of {command.board}: {reason}", **PLAIN)
    if command.record is not None:
        _record(command.record, cells, found, line, console)
    return 1 if any(outcome.status == FAILED for outcome in outcomes) else 0


def _record(
    name: str, cells: Sequence[Cell], found: Mapping[str, list[tuple[Cell, RunScores]]], line: str, console: Console
) -> None:
    """A row for each method whose runs are all finished."""
    for method in dict.fromkeys(cell.method for cell in cells):
        own = [cell for cell in cells if cell.method == method]
        measured = [m for _, m in found.get(method, ())]
        if len(measured) < len(own):
            console.print(f"{method}: not recorded, since not all its seeds are finished", **PLAIN)
            continue
        row = record.from_cells(own, line)
        console.print(record.save(replace(row, scores=row.scores | _known(measured)), f"{name}-{method}"), **PLAIN)


# ---- what is measured of a run


def measure(cell: Cell, board: Board, table: str) -> RunScores:
    """Counted and emulated, or as an earlier call with the same code has left it beside the run."""
    file, tools = cell.directory / "embedded.json", missing(board)
    asked = {"board": board.name, "table": table, "commit": provenance.commit(), "tools": tools is None}
    if file.exists() and asked["commit"] is not None and "+dirty" not in asked["commit"]:
        kept = json.loads(file.read_text())
        if kept.pop("asked") == asked:
            return RunScores(**kept)
    run = Run(cell.directory)
    counted, lacking = _counted(run, table), None if tools is None else str(tools)
    emulated: dict[str, float | None] = {}
    if tools is None:
        try:
            emulated = _emulated(run, board)
        except Unexportable as reason:
            lacking = str(reason)
    found = RunScores(counted | dict.fromkeys((DECIDING, STEPPING, FLASH, RAM)) | emulated, lacking)
    write_file(file, json.dumps({"asked": asked, **found._asdict()}, indent=1).encode())
    return found


def _counted(run: Run, table: str) -> dict[str, float | None]:
    found, result = energy(run, table), run.result
    assert result is not None, "a finished run has a result"
    whole = found["learning"]["policy"]["total"]
    return {
        OPERATIONS: whole["arithmetic"],
        LEARNING: whole["picojoules"],
        DECISION: found["decision"]["policy"]["picojoules"],
        FIRING: result["firing_rate"].get("actor_greedy") if found["firing_rate"] else None,
    }


def _emulated(run: Run, board: Board) -> dict[str, float | None]:
    """Raises Unexportable where neither learner nor policy has a form there, or the board cannot hold it."""
    with tempfile.TemporaryDirectory() as place:
        if run.algorithm.agent.online:
            try:
                dreams = getattr(run.algorithm.agent, "dyna", None) is not None
                learner = export_learner(run, place, vectors=1, dyna=dreams)
                board.check(4 * learner.parameters, learner.state, "learner")
                learned = train_on(learner.directory, board, run.config.seed + 1, LEARNED, LEARNED, episodes=1)
                return {DECIDING: learned.deciding, STEPPING: learned.learning, FLASH: learned.flash, RAM: learned.ram}
            except Unexportable as reason:
                lacking = reason
        else:
            lacking = None
        try:
            actor = export_policy(run, "c", place, board.name, vectors=VECTORS)
        except Unexportable as reason:
            raise lacking or reason from reason
        acted = emulate(actor.directory, board)
        if not acted.passed:
            raise Unexportable(f"{board.name} does not compute what this machine does: {acted.output.splitlines()[-1]}")
        return {DECIDING: sum(acted.instructions) / len(acted.instructions), FLASH: acted.flash, RAM: acted.ram}


def row_of(cells: Sequence[Cell], measured: Sequence[RunScores], line: str) -> Row:
    """To be shown: of whatever made them."""
    results = [json.loads((cell.directory / "result.json").read_text()) for cell in cells]
    scores = {STEPS: [r["real_steps_to_solve"] for r in results], FRESH: [r["fresh_return_mean"] for r in results]}
    return Row(
        line, [cell.seed for cell in cells], scores | _known(measured),
        threshold=results[0]["threshold"], budget=results[0]["budget"],
    )  # fmt: skip


def _known(measured: Sequence[RunScores]) -> dict[str, list[Any]]:
    """Of each score that is known of all seeds, those."""
    scores = {name: [m.scores[name] for m in measured] for name in measured[0].scores} if measured else {}
    return {name: values for name, values in scores.items() if None not in values}


def _reasons(found: Mapping[str, list[tuple[Cell, RunScores]]]) -> dict[str, list[str]]:
    """Why something is not known, and of which methods."""
    reasons: dict[str, list[str]] = {}
    for method, own in found.items():
        for reason in dict.fromkeys(m.lacking for _, m in own if m.lacking is not None):
            reasons.setdefault(reason, []).append(method)
    return reasons


# ---- as a table


def step_seconds(config: Config) -> float | None:
    """That a step of the environment takes in the world that it simulates; None where it does not tell."""
    env = make_own(config.env, config.env_kwargs, config.max_episode_steps).unwrapped
    try:
        told = getattr(env, "tau", getattr(env, "dt", None))  # as Gymnasium's classic environments and MuJoCo's have it
        return float(told) if isinstance(told, int | float) else None
    finally:
        env.close()


def show(rows: Mapping[str, Row], cell: Cell, seeds: int, command: Embedded, console: Console) -> None:
    """Two tables, of learning and of what is left of it on the device: one would be wider than most terminals."""
    assert isinstance(cell.config, Config)  # `run_embedded` takes no others
    step, many = step_seconds(cell.config), f"{seeds} seed{'s' if seeds > 1 else ''}"
    console.print(f"{cell.environment}: learned from scratch, {many} from {cell.seed}; medians, energy by {command.table}", **PLAIN)
    learning, device = [], []
    for method, row in rows.items():
        real = number(_median(row, STEPS))
        learning.append([method, solved(row), real, _seconds(row, step), _short(_median(row, OPERATIONS)), _joules(row, LEARNING)])
        told = (number(_median(row, score), 0) for score in (DECIDING, STEPPING, FLASH, RAM))
        device.append([method, _joules(row, DECISION), _percent(row), *told])
    print_table(["", "solved", "real steps", "seconds", "operations", "energy"], learning, console)
    console.print(f"On an emulated {command.board}; energy, firing rate and instructions of a decision", **PLAIN)
    print_table(["", "energy", "firing", "instructions", "learning step", "flash", "RAM"], device, console)


def _median(row: Row, score: str) -> float | None:
    return row.figure(score).get("median")


def _seconds(row: Row, step: float | None) -> str:
    median = _median(row, STEPS)
    return UNKNOWN if median is None or step is None else number(median * step)


def _short(count: float | None) -> str:
    """`3.1e9`, which is read faster than ten digits."""
    return UNKNOWN if count is None else f"{count:.1e}".replace("e+0", "e").replace("e+", "e")


def _joules(row: Row, score: str) -> str:
    median = _median(row, score)
    return UNKNOWN if median is None else amount(median)


def _percent(row: Row) -> str:
    median = _median(row, FIRING)
    return UNKNOWN if median is None else f"{median:.1%}"
