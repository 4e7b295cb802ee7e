"""Training, as Python calls it: `train`, `resume`, `load` and `compress_policy` of `spikedream`."""

import datetime
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.export.energy import write_energy
from spikedream.processes import Parallel, Sync
from spikedream.reports.report import write_report
from spikedream.runners.cache import use_compilation_cache
from spikedream.runners.compress import Compression, compressed, compression
from spikedream.runners.energy_told import EnergyTold
from spikedream.runners.parallel import Driver
from spikedream.runners.sync import Trainer
from spikedream.runs.metrics import Listener
from spikedream.runs.run import Run

RUNNERS: dict[type, type[Trainer] | type[Driver]] = {Sync: Trainer, Parallel: Driver}


class _Silence:
    """The listener of a run that nobody watches."""

    def parts(self, doing: Mapping[str, str]) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...
    def progress(self, real_steps: int, budget: int) -> None: ...
    def record(self, row: Mapping[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


def train(
    what: str | Config,
    seed: int | None = None,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    listener: Listener | None = None,
    report: bool = True,
) -> Run:
    """Learn until solved or out of budget.

    Args:
        what: a preset's name, a Gymnasium id, or a whole configuration.
        seed: in place of the configuration's.
        out: the run directory; by default `runs/<name>/<date-time>-s<seed>`.
        settings: changes to the configuration, nested as in a preset file: `{"agent": {"horizon": 20}}`. Where it is the automatic
            one of an environment's id, what it chooses gives way to them.
        listener: is told how it goes.
        report: write `report.html` at the end, and into `result.json` what a decision takes.

    Raises:
        ConfigError, BrokenEnvironment, Diverged: as their messages say.
        FileExistsError: `out` holds a run already.
    """
    asked = settings or {}
    config, given_up = configuration.resolve(what, asked) if isinstance(what, str) else (configuration.merge(what, asked), ())
    config = config if seed is None else replace(config, seed=seed)
    directory = Path(out) if out is not None else _new_directory(config)
    if (directory / "config.yaml").exists():
        raise FileExistsError(f"{directory} holds a run already; go on with it by `resume`, or choose another directory")
    if listener is not None:
        for line in given_up:
            listener.note(line)
    return _go(config, directory, listener, report, resume=False)


def resume(directory: str | Path, listener: Listener | None = None, report: bool = True) -> Run:
    """Go on with an unfinished run from its newest checkpoint, as if it had never stopped; a finished one is returned as it is."""
    directory = Path(directory)
    metrics = directory / "metrics.jsonl"
    if (
        (directory / "config.yaml").is_file()
        and not any((directory / "checkpoints").glob("*.json"))
        and not (metrics.exists() and metrics.stat().st_size)
    ):
        # Killed before the first checkpoint and before anything was learned: beginning anew loses nothing.
        return _go(configuration.load(directory / "config.yaml"), directory, listener, report, resume=False)
    run = load(directory)
    if run.counters["finished"] and run.result is not None:
        return run
    return _go(run.config, run.directory, listener, report, resume=True)


def compress_policy(
    run: Run,
    density: float | None = None,
    rate: float | None = None,
    bits: int | None = None,
    updates: int = 2000,
    out: str | Path | None = None,
    episodes: int = 100,
    listener: Listener | None = None,
) -> Compression:
    """Fine-tune the policy of a finished run, without a real step, to something that takes less: in dreams, where the agent dreams,
    else on replayed steps.

    Args:
        run: whose policy it is; it stays as it is.
        density: share of the actor's weights that is left.
        rate: firing rate that its neurons are quieted to.
        bits: of its weights, in fixed point from then on.
        updates: of the agent, which learns to do with what it has left.
        out: the new run's directory; by default that of the run with `-compressed` behind.
        episodes: fresh ones, the same before and after, in which the return is measured.
        listener: is told how it goes.

    Raises:
        ConfigError: nothing is asked, or the run's agent cannot be compressed.
        FileExistsError: `out` holds a run already.
    """
    config = compressed(run, density, rate, bits, updates)
    directory = run.directory.with_name(f"{run.directory.name}-compressed") if out is None else Path(out)
    return compression(run, train(config, out=directory, listener=listener), episodes)


def load(directory: str | Path, best: bool = False) -> Run:
    """Open a run directory; `best` as in `Run`. Raises CheckpointError where it is missing or damaged."""
    use_compilation_cache()
    return Run(directory, best)


def _go(config: Config, directory: Path, listener: Listener | None, report: bool, resume: bool) -> Run:
    use_compilation_cache()
    training = RUNNERS[type(config.runner)](config, directory, listener or _Silence(), resume)
    if report and listener is not None and isinstance(training, Trainer):
        training.account.listener = EnergyTold(listener, training.algorithm, lambda: training.state)
    try:
        training.train()
    finally:
        training.close()
    run = Run(directory)
    if report:
        write_energy(run)
        write_report(run)
    return run


def _new_directory(config: Config) -> Path:
    name = config.preset.replace("/", "-").replace(":", "-")
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / name / f"{now}-s{config.seed}"
