"""When a run counts as solved, and what it says of itself: one rule for spikedream's own runs and for baselines.

Whoever evaluates hands in `play`: `play(stream, *index)` runs as many greedy episodes as an evaluation has, on the seeds that these
name (see `envs.host.episode_seed`).
"""

import functools
import importlib.metadata
import json
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import yaml

from spikedream.config import to_data
from spikedream.envs.host import CONFIRM, EVALUATE, REPORT
from spikedream.runs.checkpoint import CheckpointError, write_file
from spikedream.runs.evaluate import Evaluated

Play = Callable[..., Evaluated]
VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")  # the widest first; results round differently from one to the next


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
    head = f"# spikedream {version()}, commit {commit() or 'unknown'}\n"
    write_file(directory / "config.yaml", (head + yaml.safe_dump(to_data(config), sort_keys=False)).encode())


def write_result(
    directory: Path,
    config: Any,
    row: Mapping[str, Any],
    play: Play,
    *,
    threshold: float | None,
    solved_at: int | None,
    wall_seconds: float,
    compile_seconds: float = 0.0,
    packages: Iterable[str] = (),
) -> None:
    """`result.json`: the outcome for people and programs. Plays the fresh episodes that it tells of: as many as an evaluation has,
    on seeds that neither learning nor evaluation used (those of `Run.evaluate`, repetition 0).

    Args:
        directory: of the run.
        config: a `Config`, or a baseline's; preset, env, seed, budget and evaluation are told.
        row: the last of `metrics.jsonl`; its real_steps, imagined_steps, updates, eval_return_mean and eval_return_std, and where
            it has them decision_ms and firing_rate/..., are told.
        play: as the module says, with the policy at the end of the run.
        threshold: at which it counts as solved, if there is one.
        solved_at: real steps to the first evaluation that `judge` found solved, if there was one.
        wall_seconds: of the run so far, compilation included, the fresh episodes not.
        compile_seconds: of these.
        packages: further ones whose versions are told.

    Raises:
        CheckpointError: it cannot be written.
        BrokenEnvironment: the environment failed in the fresh episodes.
    """
    fresh = play(REPORT, 0)
    result = {
        "env": config.env,
        "preset": config.preset,
        "seed": config.seed,
        "solved": solved_at is not None,
        "threshold": threshold,
        "budget": config.budget,
        "real_steps_to_solve": solved_at,
        **{name: row[name] for name in ("real_steps", "imagined_steps", "updates", "eval_return_mean", "eval_return_std")},
        "eval_episodes": config.evaluation.episodes,
        "fresh_return_mean": fresh.mean(),
        "fresh_return_std": fresh.std(),
        "decision_ms": row.get("decision_ms"),
        "wall_seconds": round(wall_seconds, 3),
        "compile_seconds": round(compile_seconds, 3),
        "peak_memory_mb": peak_memory_mb(),
        "firing_rate": {name.split("/")[1]: value for name, value in row.items() if name.startswith("firing_rate/")},
        "version": version(),
        "commit": commit(),
        "processor": processor(),
        "versions": versions(packages),
    }
    write_file(directory / "result.json", json.dumps(result, indent=2).encode())


# ---- what made it


def version() -> str:
    return importlib.metadata.version("spikedream")


@functools.cache
def commit() -> str | None:
    """Of the working copy that spikedream is imported from, with `+dirty` where its `src` differs from that commit; None where it
    is imported from anywhere else, such as an installed package inside somebody's own repository."""
    package = Path(__file__).resolve().parents[1]
    root = _git(package, "rev-parse", "--show-toplevel")
    head = _git(package, "rev-parse", "HEAD")
    if root is None or head is None or Path(root).resolve() / "src" / "spikedream" != package:
        return None
    return head + ("+dirty" if _git(package.parent, "status", "--porcelain", "--", ".") else "")


def _git(directory: Path, *arguments: str) -> str | None:
    """What git says, or None where it fails or is not there."""
    try:
        done = subprocess.run(["git", "-C", str(directory), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def processor() -> str:
    """A name for people of what computes here; the accelerator comes first, where there is one. Two that differ in name may
    round differently; two of one name ought not to."""
    device = jax.devices()[0]
    return _cpu() if device.platform == "cpu" else f"{device.device_kind}, {_cpu()}"


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = [line.partition(":") for line in information.read_text().splitlines()]
        said = {name.strip(): value.strip() for name, _, value in reversed(lines)}  # of the first core
        flags = said.get("flags", "").split()
        widest = next((f" ({name})" for name in VECTORS if name in flags), "")
        return (said.get("model name") or platform.machine()) + widest
    if sys.platform == "darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return done.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def peak_memory_mb() -> int:
    """Of this process. Linux's `ru_maxrss` would count the parent's memory too, when the process was forked from a larger one."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) // 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def versions(packages: Iterable[str] = ()) -> dict[str, str]:
    """Of what decides numbers, and of further `packages`."""
    names = ("spikedream", "jax", "jaxlib", "equinox", "optax", "gymnasium", "numpy", *packages)
    return {name: importlib.metadata.version(name) for name in names} | {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
    }
