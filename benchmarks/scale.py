"""What a run of a million steps costs beside its learning: one JSON line for each figure.

    python benchmarks/scale.py [--rows 10000 100000 1000000] [--record]

Steps of 17 numbers observed and 6 of action, as HalfCheetah's. Acting, remembering and saving are timed in the runner's own calls,
everything blocked on, medians after a warm-up; compare by ratio, on an idle machine. `--record` writes `results/scale-*.json`.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
from gymnasium.spaces import Box

from spikedream.algorithm import Algorithm, TrainState
from spikedream.config import Collect, Config, Improve
from spikedream.experiments.record import record_scores
from spikedream.replay.ring import ReplayBuffer
from spikedream.runs import checkpoint
from spikedream.runs.collect import Acting, Collector, environments_of
from spikedream.runs.replay_log import ReplayLog
from spikedream.snn.conventional import MLP
from spikedream.types import Transition
from spikedream.world_models.ensemble import Ensemble

OBS, ACTIONS, BLOCK = 17, 6, 1024


class Free(gymnasium.Env):
    """Costs nothing to step."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = Box(-9, 9, (OBS,), np.float32), Box(-1, 1, (ACTIONS,), np.float32)
        self.obs = np.zeros(OBS, np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        return self.obs, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return self.obs, 0.0, False, False, {}


gymnasium.register("Free-v0", Free, max_episode_steps=1000)


def settings(rows: int, environments: int = 1, priority: Any = "uniform") -> Config:
    """The whole loop at this size, with networks that cost little: the overhead is asked for, not the learning."""
    small = MLP(hidden=(32,))
    model = Ensemble(members=2, dynamics=small, ending=small, updates=1, check_every=1)
    base = Config(env="Free-v0", world_model=model, improve=Improve(block=1), collect=Collect(environments=environments))
    return replace(base, replay=ReplayBuffer(rows, priority), agent=replace(base.agent, trajectories=8, horizon=2, minibatches=1))


def filled(algorithm: Algorithm, rows: int) -> TrainState:
    state, rng = algorithm.init(jax.random.key(0)), np.random.default_rng(0)
    for _ in range(rows // BLOCK + 1):
        state = replace(state, replay=algorithm.remember(state.replay, block(rng), np.int32(BLOCK)))
    return state


def block(rng: np.random.Generator) -> Transition:
    obs = rng.normal(size=(BLOCK, 1, OBS)).astype(np.float32)
    nothing = np.zeros((BLOCK, 1), np.float32)
    action = rng.uniform(-1, 1, (BLOCK, 1, ACTIONS)).astype(np.float32)
    fields: tuple[Any, ...] = (obs, action, nothing + 1, obs + 0.1, nothing, nothing, nothing)
    return Transition(*fields)


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Median after two warm-up calls."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def collecting(environments: int) -> float:
    """Milliseconds of act, environment step and remember, for each environment's step; the environment costs nothing."""
    config = settings(10_000, environments)
    algorithm = config.algorithm(environments_of(config).spec)
    collector = Collector(config, algorithm, environments_of(config))
    state = algorithm.init(jax.random.key(0))

    def turn(steps: int = 100) -> Any:
        nonlocal state
        policy, acting = algorithm.policy(state), Acting(state.carry, state.keys.collect)
        for _ in range(steps):
            acting, _ = collector.act(acting, policy)
        keys = replace(state.keys, collect=acting.key)
        steps_taken, number = collector.fetch(BLOCK)
        replay = algorithm.remember(state.replay, steps_taken, np.int32(number))
        state = replace(state, carry=acting.carry, keys=keys, replay=replay)
        return state.replay.added

    try:
        return milliseconds(turn, 15) / 100 / environments
    finally:
        collector.close()


def turns(rows: int, priority: str) -> Iterator[tuple[str, float]]:
    """Milliseconds of a one-step turn's parts, with `rows` stored."""
    config = settings(rows, priority=priority)
    algorithm = config.algorithm(environments_of(config).spec)
    state, rng = filled(algorithm, rows), np.random.default_rng(1)
    one = jax.tree.map(lambda x: x[:1], block(rng))

    def remember() -> Any:
        nonlocal state
        state = replace(state, replay=algorithm.remember(state.replay, one, np.int32(1)))
        return state.replay.added

    def dream() -> Any:
        nonlocal state
        state, metrics = algorithm.dream(state)
        return metrics

    def fit() -> Any:
        nonlocal state
        state, metrics = algorithm.fit(state, np.int32(1))
        return metrics

    yield "remember", milliseconds(remember, 100)
    yield "update", milliseconds(dream, 100)
    yield "fit", milliseconds(fit, 20)


def saving(rows: int) -> float:
    """Seconds of a checkpoint after 10,000 new rows with `rows` stored."""
    config = settings(rows)
    algorithm = config.algorithm(environments_of(config).spec)
    state, rng, times = filled(algorithm, rows), np.random.default_rng(1), []
    with tempfile.TemporaryDirectory() as directory:
        log = ReplayLog(Path(directory))
        for _ in range(4):
            start = time.perf_counter()
            extent = log.save(state.replay)
            arrays = checkpoint.flatten(replace(state, replay=replace(state.replay, data=None)), "state")
            checkpoint.save(Path(directory), 0, arrays, {"replay": extent._asdict()}, extent.file)
            times.append(time.perf_counter() - start)
            for _ in range(10):
                state = replace(state, replay=algorithm.remember(state.replay, block(rng), np.int32(1000)))
            jax.block_until_ready(state.replay.added)
    return statistics.median(times[1:])


def memory(rows: int) -> tuple[float, float]:
    """Bytes of the raw transitions, and how much higher the process's peak is once they are stored, learned from and saved. To be
    asked first: a peak does not fall."""

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    small = settings(BLOCK)
    algorithm = small.algorithm(environments_of(small).spec)
    jax.block_until_ready(algorithm.fit(filled(algorithm, BLOCK), np.int32(1)))  # what any run needs
    before, config = peak(), settings(rows)
    algorithm = config.algorithm(environments_of(config).spec)
    state, _ = algorithm.fit(filled(algorithm, rows), np.int32(1))
    state, metrics = algorithm.dream(state)
    jax.block_until_ready(metrics)
    with tempfile.TemporaryDirectory() as directory:
        ReplayLog(Path(directory)).save(state.replay)
    return sum(x.nbytes for x in jax.tree.leaves(state.replay.data)), peak() - before


def report(what: str, value: float, unit: str, **about: Any) -> float:
    print(json.dumps({"what": what, **about, unit: round(value, 4)}), flush=True)
    return value


def loop(rows: int) -> dict[str, float]:
    """What the process needs for as many, and each step of an environment."""
    raw, more = memory(rows)
    found = {"memory over raw data": report("peak memory over raw data", more / raw, "ratio", stored=rows, raw_mb=raw // 2**20)}
    for environments in (1, 16):
        ms = report("step of collecting, for each environment", collecting(environments), "ms", environments=environments)
        found[f"ms a step, {environments} environments"] = ms
    return found


def stored(rows: int) -> dict[str, float]:
    """Milliseconds of a turn's parts with so many stored, and seconds of a checkpoint."""
    found = {}
    for priority in ("uniform", "model_error"):
        parts = {}
        for part, value in turns(rows, priority):
            parts[part] = found[f"ms, {part}, {priority}"] = report(f"turn: {part}", value, "ms", stored=rows, priority=priority)
        found[f"ms, turn, {priority}"] = report("turn", sum(parts.values()), "ms", stored=rows, priority=priority)
    return found | {"s, checkpoint": report("checkpoint after 10,000 new rows", saving(rows), "s", stored=rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="transitions stored")
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    found = {"loop": loop(max(given.rows))} | {str(rows): stored(rows) for rows in given.rows}
    if given.record:
        for name, figures in found.items():
            record_scores(f"scale-{name}", {figure: [value] for figure, value in figures.items()})


if __name__ == "__main__":
    main()
