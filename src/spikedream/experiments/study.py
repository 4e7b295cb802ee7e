"""`spikedream study`: every method on every environment with every seed, each in a process of its own, and a comparison in the end.

A study can be stopped at any time and started again: finished cells are kept, unfinished ones are gone on with.
"""

import html
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import tyro
from rich.console import Console

from spikedream import config as configuration
from spikedream.config import ConfigError
from spikedream.experiments import baselines, grid
from spikedream.experiments.baselines import Baseline
from spikedream.experiments.grid import Cell
from spikedream.reports.compare import SCORES, STATISTICS, interval, print_table, write_comparison
from spikedream.reports.comparison import Comparison, compare, open_record
from spikedream.reports.methods import check_unchanged
from spikedream.reports.page import Section, html_table, note, write_page
from spikedream.runs.checkpoint import write_file

FINISHED, FAILED, SKIPPED, WAITING = "finished", "failed", "skipped", "waiting"


@dataclass
class Study:
    """A grid of methods, environments and seeds from a YAML file; a study that was stopped, or asked for in part, goes on."""

    name: tyro.conf.Positional[str]  # a study that comes with spikedream, or a .yaml file
    jobs: int = 1  # cells at a time
    seeds: int | None = None  # only the first so many of the study's seeds
    environments: tuple[str, ...] = ()  # only these of the study's environments
    out: Path | None = None  # runs/studies/<name> when absent; parts that were run before count in the comparison


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    status: str
    text: str  # one line


def run_study(command: Study, console: Console) -> int:
    """Run the cells that are asked for, compare all that there are, write; 0 when none failed."""
    if command.jobs < 1:
        raise ConfigError(f"jobs is {command.jobs}; it must be at least 1")
    study = grid.named(command.name)
    out = command.out or Path("runs/studies") / study.name
    cells = grid.expand(study, out)
    part = grid.part(study, cells, command.seeds, command.environments)
    for cell in cells:
        _check_unchanged(cell)
    outcomes = []
    try:
        for outcome in _run_all(part, command.jobs):
            outcomes.append(outcome)
            console.print(f"[{len(outcomes)}/{len(part)}] {outcome.cell}: {outcome.text}", **PLAIN)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on with it", **PLAIN)
        return 130
    outcomes += [_kept(cell) or Outcome(cell, WAITING, "not asked for yet") for cell in cells if cell not in part]
    outcomes.sort(key=lambda outcome: cells.index(outcome.cell))
    comparisons = _compare(cells, out)
    _write(study.name, outcomes, comparisons, out)
    _print(outcomes, comparisons, console)
    console.print(out / "index.html", **PLAIN)
    return 1 if any(outcome.status == FAILED for outcome in outcomes) else 0


PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}


def _check_unchanged(cell: Cell) -> None:
    """Raises ConfigError where the cell's directory holds a run with other settings than the study now says."""
    file = cell.directory / "config.yaml"
    if file.exists():
        there = baselines.load(file) if isinstance(cell.config, Baseline) else configuration.load(file)
        check_unchanged(cell.directory, there, cell.config)


# ---- running the cells


@dataclass
class Processes:
    """Those that are running, and a way to stop them all."""

    running: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """The exit status; what the process says goes to `log`."""
        with log.open("a") as file:
            with self.lock:
                if self.stopping:
                    return -signal.SIGTERM
                # In a session of its own, so that Ctrl-C reaches it once: as the SIGTERM of `stop`, on which it saves.
                process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
                self.running.add(process)
            status = process.wait()
        with self.lock:
            self.running.discard(process)
        return status

    def stop(self) -> None:
        with self.lock:
            self.stopping = True
            for process in self.running:
                process.terminate()


def _run_all(cells: Sequence[Cell], jobs: int) -> Iterator[Outcome]:
    """Outcomes as the cells end, `jobs` at a time. Where it is interrupted, the processes save, end, and are waited for."""
    processes = Processes()
    with ThreadPoolExecutor(jobs) as pool, _terminated_like_interrupted():
        futures = [pool.submit(_run_cell, cell, processes) for cell in cells]
        try:
            for future in as_completed(futures):
                yield future.result()
        except KeyboardInterrupt:
            processes.stop()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _kept(cell: Cell) -> Outcome | None:
    """How a cell ended that an earlier call has finished."""
    finished = (cell.directory / "result.json").exists()
    return Outcome(cell, FINISHED, f"{_result(cell.directory)} (kept)") if finished else None


def _run_cell(cell: Cell, processes: Processes) -> Outcome:
    directory = cell.directory
    if kept := _kept(cell):
        return kept
    if isinstance(cell.config, Baseline) and not baselines.installed():
        return Outcome(cell, SKIPPED, baselines.NOT_INSTALLED)
    directory.parent.mkdir(parents=True, exist_ok=True)
    settings, log = (directory.with_name(directory.name + suffix) for suffix in (".yaml", ".log"))
    configuration.save(cast(Any, cell.config), settings)
    begin = (
        ["spikedream.experiments.baselines", str(settings)]
        if isinstance(cell.config, Baseline)
        else ["spikedream", "train", str(settings)]
    )
    arguments = [*begin, "--seed", str(cell.seed), "--out", str(directory)]
    if not isinstance(cell.config, Baseline) and (directory / "config.yaml").exists():
        arguments = ["spikedream", "resume", str(directory)]
    status = processes.run([sys.executable, "-m", *arguments], log)
    settings.unlink()
    if status == 0:
        return Outcome(cell, FINISHED, _result(directory))
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [f"exit status {status}"]
    return Outcome(cell, FAILED, f"FAILED: {said[-1].removeprefix('spikedream: ')} ({log})")


def _result(directory: Path) -> str:
    result = json.loads((directory / "result.json").read_text())
    outcome = f"solved after {result['real_steps_to_solve']}" if result["solved"] else f"not solved in {result['real_steps']}"
    return f"{outcome} real steps · return {result['eval_return_mean']:.1f} · {result['wall_seconds']:.1f} s"


# ---- what is made of them


def _compare(cells: Sequence[Cell], out: Path) -> dict[str, tuple[Comparison, Path]]:
    """Environment to its comparison and the page that shows it; environments where nothing has been measured are left out."""
    comparisons = {}
    for environment in dict.fromkeys(cell.environment for cell in cells):
        own = [cell.directory for cell in cells if cell.environment == environment]
        measured = [directory for directory in own if (directory / "config.yaml").exists() and open_record(directory)]
        if measured:
            comparison = compare(measured, by="preset")
            comparisons[environment] = comparison, write_comparison(comparison, own[0].parent.parent)
    return comparisons


def _tables(comparisons: dict[str, tuple[Comparison, Path]]) -> Iterator[tuple[str, list[list[str]]]]:
    """For each score a title and rows: a method, and its interval on each environment."""
    methods = dict.fromkeys(label for comparison, _ in comparisons.values() for label in comparison.methods)
    for score, title in SCORES.items():
        rows = [[label, *(_entry(comparison, label, score) for comparison, _ in comparisons.values())] for label in methods]
        if any(cell != "–" for row in rows for cell in row[1:]):
            yield title, rows


def _entry(comparison: Comparison, label: str, score: str) -> str:
    method = comparison.methods.get(label)
    if method is None or score not in method.scores:
        return "–"
    if score != "real_steps_to_solve":
        return interval(method, score)
    solved = f"{method.solved} of {len(method.runs)} solved"
    return f"{interval(method, score)} · {solved}" if method.solved else solved


def _print(outcomes: Sequence[Outcome], comparisons: dict[str, tuple[Comparison, Path]], console: Console) -> None:
    for title, rows in _tables(comparisons):
        console.print(f"{title}: IQM [95 % interval] over seeds", **PLAIN)
        print_table(["method", *comparisons], rows, console)
    for outcome in outcomes:
        if outcome.status in (FAILED, SKIPPED):
            console.print(f"{outcome.cell}: {outcome.text}", **PLAIN)


def _write(name: str, outcomes: Sequence[Outcome], comparisons: dict[str, tuple[Comparison, Path]], out: Path) -> None:
    """`index.html` for people and `study.json` for programs."""
    out.mkdir(parents=True, exist_ok=True)
    fields: dict[str, Callable[[Outcome], Any]] = {
        "environment": lambda o: o.cell.environment,
        "method": lambda o: o.cell.method,
        "seed": lambda o: o.cell.seed,
        "status": lambda o: o.status,
        "text": lambda o: o.text,
        "directory": lambda o: os.path.relpath(o.cell.directory, out),
    }
    pages = {environment: os.path.relpath(page, out) for environment, (_, page) in comparisons.items()}
    data = {
        "name": name,
        "cells": [{field: get(outcome) for field, get in fields.items()} for outcome in outcomes],
        "comparisons": {environment: str(Path(page).with_name("compare.json")) for environment, page in pages.items()},
    }
    write_file(out / "study.json", json.dumps(data, indent=1).encode())
    links = " · ".join(f'<a href="{html.escape(page)}">{html.escape(environment)}</a>' for environment, page in pages.items())
    tables = "".join(
        note(title) + html_table(["method", *comparisons], [[html.escape(cell) for cell in row] for row in rows])
        for title, rows in _tables(comparisons)
    )
    counts = [f"{sum(o.status == status for o in outcomes)} {status}" for status in (FINISHED, FAILED, SKIPPED, WAITING)]
    lines = [[html.escape(str(get(outcome))) for get in fields.values()] for outcome in outcomes]
    trouble = [line for line, outcome in zip(lines, outcomes, strict=True) if outcome.status in (FAILED, SKIPPED)]
    sections = [
        Section("summary", "Summary", note(STATISTICS) + tables if tables else note("Nothing has been measured.")),
        Section("environments", "Learning curves and probabilities of improvement", f"<p>{links or '–'}</p>"),
        Section("cells", "Cells", note(", ".join(counts)) + (html_table(fields, trouble) if trouble else "")
                + f"<details><summary>all {len(lines)}</summary>{html_table(fields, lines)}</details>"),
    ]  # fmt: skip
    write_page(
        out / "index.html", name, f"{len(comparisons)} environment{'s' if len(comparisons) != 1 else ''}", sections, plotly=False
    )
