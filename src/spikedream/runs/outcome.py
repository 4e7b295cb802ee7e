"""When a run counts as solved, and what it says of itself: one rule for spikedream's own runs and for baselines.

Whoever evaluates hands in `play`: `play(stream, *index)` runs as many greedy episodes as an evaluation has, on the seeds that these
name (see `envs.host.episode_seed`).
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spikedream.config import to_data
from spikedream.envs.host import CONFIRM, EVALUATE
from spikedream.runs.checkpoint import CheckpointError, write_file
from spikedream.runs.evaluate import Evaluated
from spikedream.runs.provenance import code, commit, peak_memory_mb, processor, version, versions

Play = Callable[..., Evaluated]


class Verdict(NamedTuple):
    evaluated: Evaluated  # the evaluation that decided: the first, or the last confirmation that was made
    solved: bool


def judge(threshold: float | None, confirmations: int, play: Play, turn: int) -> Verdict:
    """Evaluate, and where the threshold is reached, confirm: solved is what reaches it each time.

    Args:
        threshold: mean return to reach; None where the task has none, and then nothing is solved.
        confirmations: further evaluations that must reach it too.
        play: as the module says.
        turn: or any other number that this run has not been evaluated under before; it decides the seeds.
    """
    result = play(EVALUATE, turn)
    for i in range(confirmations):
        if not _reaches(threshold, result):
            break
        result = play(CONFIRM, turn, i)
    return Verdict(result, _reaches(threshold, result))


def _reaches(threshold: float | None, result: Evaluated) -> bool:
    return threshold is not None and result.mean() >= threshold


# ---- what is written


def begin(config: Any, directory: Path) -> None:
    """Make the run's directory and write `config.yaml` into it, headed by the version and commit that began the run.

    Args:
        config: a `Config`, or a baseline's.
        directory: may exist.

    Raises:
        CheckpointError: it cannot be made or written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot make the run directory {directory}: {error.strerror}") from error
    code(config)  # now, not in the end: by then somebody may have gone on editing
    head = f"# spikedream {version()}, commit {commit() or 'unknown'}\n"
    write_file(directory / "config.yaml", (head + yaml.safe_dump(to_data(config), sort_keys=False)).encode())


def write_result(
    directory: Path,
    config: Any,
    row: Mapping[str, Any],
    fresh: Sequence[float],
    *,
    threshold: float | None,
    solved_at: int | None,
    wall_seconds: float,
    compile_seconds: float = 0.0,
    inherited_steps: int = 0,
    last: Sequence[float] | None = None,
    packages: Iterable[str] = (),
) -> None:
    """`result.json`: the outcome for people and programs.

    Args:
        directory: of the run.
        config: a `Config`, or a baseline's; preset, env, seed, budget and evaluation are told.
        row: the last of `metrics.jsonl`; its real_steps, imagined_steps, updates, eval_return_mean and eval_return_std, and where
            it has them decision_ms and firing_rate/..., are told.
        fresh: mean and deviation of the returns of the policy that solved it, or of the last where none did, on episodes whose
            seeds neither learning nor evaluation used: `play(REPORT, 0)`, those of `Run.evaluate`, repetition 0.
        threshold: at which it counts as solved, if there is one.
        solved_at: real steps to the first evaluation that `judge` found solved, if there was one.
        wall_seconds: of the run so far, compilation included, the fresh episodes not.
        compile_seconds: of these.
        inherited_steps: real steps of an earlier run that it began with.
        last: as `fresh`, of the policy at the end, which a run that goes on once it is solved has learned since; None: not known.
        packages: further ones whose versions are told.

    Raises:
        CheckpointError: it cannot be written.
    """
    result = {
        "env": config.env,
        "preset": config.preset,
        "seed": config.seed,
        "solved": solved_at is not None,
        "threshold": threshold,
        "budget": config.budget,
        "real_steps_to_solve": solved_at,
        **{name: row[name] for name in ("real_steps", "imagined_steps", "updates", "eval_return_mean", "eval_return_std")},
        "inherited_steps": inherited_steps,
        "eval_episodes": config.evaluation.episodes,
        "fresh_return_mean": fresh[0],
        "fresh_return_std": fresh[1],
        "last_fresh_return_mean": None if last is None else last[0],
        "last_fresh_return_std": None if last is None else last[1],
        "decision_ms": row.get("decision_ms"),
        "wall_seconds": round(wall_seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        "peak_memory_mb": peak_memory_mb(),
        "firing_rate": {name.split("/")[1]: value for name, value in row.items() if name.startswith("firing_rate/")},
        "version": version(),
        "commit": commit(),
        "code": code(config),
        "processor": processor(),
        "versions": versions(packages),
    }
    write_file(directory / "result.json", json.dumps(result, indent=2).encode())
