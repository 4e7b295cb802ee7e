"""Cells of a study or a bench, each run in a process of its own.

What was stopped at any time goes on when it is asked for again: finished cells are kept, unfinished ones resumed.
"""

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.experiments import baselines
from spikedream.experiments.baselines import Baseline
from spikedream.experiments.cluster import Cluster
from spikedream.experiments.grid import Cell
from spikedream.reports import methods
from spikedream.reports.report import write_report
from spikedream.runners.stop import ClusterError, Diverged, Interrupted
from spikedream.runners.together import Together
from spikedream.runs.checkpoint import CheckpointError, make_directory, write_file
from spikedream.runs.run import Run

FINISHED, FAILED, SKIPPED, WAITING = "finished", "failed", "skipped", "waiting"
PLAIN: dict[str, Any] = {"highlight": False, "soft_wrap": True, "markup": False}


@dataclass(frozen=True)
class Outcome:
    """How a cell ended."""

    cell: Cell
    status: str
    text: str  # one line


def check_cells_unchanged(cells: Iterable[Cell]) -> None:
    """Raises ConfigError where a cell's directory holds a run with other settings than are now asked for."""
    for cell in cells:
        file = cell.directory / "config.yaml"
        if file.exists():
            there = baselines.load(file) if isinstance(cell.config, Baseline) else configuration.load(file)
            if getattr(cell.config, "action_repeat", 1) is None:  # which the run then measured
                there = replace(there, action_repeat=None)
            methods.check_unchanged(cell.directory, there, cell.config)


def run_cells(
    cells: Sequence[Cell], jobs: int, console: Console, together: bool = False, cluster: bool = False
) -> list[Outcome] | None:
    """Run them with a line for each that ends; in the order in which they end. None where it was interrupted.

    Args:
        cells: which.
        jobs: of them at a time.
        console: where the lines go.
        together: first those that differ in their seeds alone in one program in this process; `jobs` is for what is left.
        cluster: on Ray, as `RAY_ADDRESS` says or on this machine.

    Raises:
        ConfigError: no jobs are allowed, or not both `together` and `cluster`.
        ImportError, ClusterError: there is no Ray, or no cluster.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; it must be at least 1")
    if together and cluster:
        raise ConfigError("seeds together are one program, which no cluster shares out; leave out --together or --cluster")
    outcomes: list[Outcome] = []
    processes = Cluster() if cluster else Processes()
    try:
        if together:
            _run_together(cells, console)
        for outcome in _run_all(cells, jobs, processes):
            outcomes.append(outcome)
            console.print(f"[{len(outcomes)}/{len(cells)}] {outcome.cell}: {outcome.text}", **PLAIN)
    except (KeyboardInterrupt, Interrupted):
        console.print("stopped; the same command goes on with it", **PLAIN)
        return None
    finally:
        processes.close()
    return outcomes


class Lines:
    """Tells how one of several runs goes, a line for each evaluation."""

    def __init__(self, cell: Cell, console: Console):
        self._cell, self._console = cell, console

    def parts(self, doing: Mapping[str, str]) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...
    def progress(self, real_steps: int, budget: int) -> None: ...
    def record(self, row: Mapping[str, Any]) -> None:
        text = f"{row['real_steps']} real steps · return {row['eval_return_mean']:.1f} · {row['wall_seconds']:.1f} s"
        self._console.print(f"{self._cell}: {text}", **PLAIN)

    def note(self, text: str) -> None:
        self._console.print(f"{self._cell}: {text}", **PLAIN)


def _run_together(cells: Sequence[Cell], console: Console) -> None:
    """Those of one method on one environment in one program, one such group after the other. A group that fails is left to
    processes, where each of its cells can fail on its own, and so are agents that learn from step to step: a step of many seeds
    would take as long as those of all one after the other."""
    ours = [
        cell for cell in cells if isinstance(cell.config, Config) and not cell.config.agent.online and kept(cell) is None
    ]  # fmt: skip
    for environment, method in dict.fromkeys((cell.environment, cell.method) for cell in ours):
        group = [cell for cell in ours if (cell.environment, cell.method) == (environment, method)]
        try:
            _run_group(group, console)
        except (Diverged, BrokenEnvironment, CheckpointError) as error:
            console.print(f"{environment} · {method}: {error}; its seeds go on one by one", **PLAIN)


def _run_group(left: Sequence[Cell], console: Console) -> None:
    together = Together(
        [cast(Config, cell.config) for cell in left],
        [cell.directory for cell in left],
        [Lines(cell, console) for cell in left],
    )
    try:
        together.train()
    finally:
        together.close()
    for cell in left:
        write_report(Run(cell.directory))


@dataclass
class Processes:
    """Those that are running, and a way to stop them all."""

    running: set[subprocess.Popen] = field(default_factory=set)
    stopping: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, arguments: Sequence[str], directory: Path, settings: Path, log: Path) -> int:
        """The exit status of a module with its arguments, which writes into `directory`; what it says goes to `log`."""
        with log.open("a") as file:
            with self.lock:
                if self.stopping:
                    return -signal.SIGTERM
                # In a session of its own, so that Ctrl-C reaches it once: as the SIGTERM of `stop`, on which it saves.
                command = [sys.executable, "-m", *arguments]
                process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
                self.running.add(process)
            status = process.wait()
        with self.lock:
            self.running.discard(process)
        return status

    def close(self) -> None: ...
    def stop(self) -> None:
        with self.lock:
            self.stopping = True
            for process in self.running:
                process.terminate()


def _run_all(cells: Sequence[Cell], jobs: int, processes: Processes | Cluster) -> Iterator[Outcome]:
    """Outcomes as the cells end, `jobs` at a time. Where it is interrupted, the processes save, end, and are waited for."""
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


def kept(cell: Cell) -> Outcome | None:
    """How a cell ended that an earlier call has finished."""
    finished = (cell.directory / "result.json").exists()
    return Outcome(cell, FINISHED, f"{_result(cell.directory)} (kept)") if finished else None


def _run_cell(cell: Cell, processes: Processes | Cluster) -> Outcome:
    directory = cell.directory.absolute()  # another machine has another working directory
    if finished := kept(cell):
        return finished
    if isinstance(cell.config, Baseline) and not baselines.installed():
        return Outcome(cell, SKIPPED, baselines.NOT_INSTALLED)
    try:
        make_directory(directory.parent)
    except CheckpointError as error:
        return Outcome(cell, FAILED, f"FAILED: {error}")
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
    begun, start = directory.exists(), time.perf_counter()
    _seconds_file(directory).unlink(missing_ok=True)
    try:
        status = processes.run(arguments, directory, settings, log)
    except ClusterError as error:
        return Outcome(cell, FAILED, f"FAILED: {error}; the same command goes on with it ({log})")
    finally:
        settings.unlink()
    if status == 0:
        if not begun and isinstance(processes, Processes):  # on a cluster it has waited for its turn, too
            write_file(_seconds_file(directory), f"{time.perf_counter() - start:.3f}".encode())
        return Outcome(cell, FINISHED, _result(directory))
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or [f"exit status {status}"]
    return Outcome(cell, FAILED, f"FAILED: {said[-1].removeprefix('spikedream: ')} ({log})")


def _result(directory: Path) -> str:
    result = json.loads((directory / "result.json").read_text())
    outcome = f"solved after {result['real_steps_to_solve']}" if result["solved"] else f"not solved in {result['real_steps']}"
    fresh = f" (fresh {result['fresh_return_mean']:.1f})" if "fresh_return_mean" in result else ""
    return f"{outcome} real steps · return {result['eval_return_mean']:.1f}{fresh} · {result['wall_seconds']:.1f} s"


def process_seconds(directory: Path) -> float | None:
    """Of the whole process that made a finished cell, start and report included; None where several processes took turns at it."""
    file = _seconds_file(directory)
    return float(file.read_text()) if file.exists() else None


def _seconds_file(directory: Path) -> Path:
    return directory.with_name(directory.name + ".seconds")
