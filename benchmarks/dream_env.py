"""How long a step of the dream as an environment takes: 64 dreams in a spiking ensemble of four, beside the conventional one.

    python benchmarks/dream_env.py [--dreams 64 --preset cartpole] [--record]

The world model is that of a preset, not fitted: what a step takes does not depend on its weights. Each figure is the median of a
thousand steps after a warm-up; the two ensembles are measured in turn, so that their ratio holds on a machine whose speed drifts.
With `--stable-baselines3` the dreams are stepped through that face. With `--record` the figures become `results/dream-env-64.json`.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from dreaming import SPEC, prepare

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.dream_env.stepped_dreams import SteppedDreams
from spikedream.dream_env.vector import DreamVecEnv
from spikedream.experiments.record import record_scores


def stepper(config: Config, dreams: int, stable_baselines3: bool) -> Callable[[], float]:
    """Takes a step and says how long that took, in seconds."""
    state, algorithm = prepare(config), config.algorithm(SPEC)
    env = DreamVecEnv(SPEC, algorithm.world(state), state.replay, dreams, SteppedDreams(horizon=16))
    face = env.stable_baselines3() if stable_baselines3 else env
    face.reset()
    actions = np.zeros(dreams, int)

    def step() -> float:
        start = time.perf_counter()
        face.step(actions)
        return time.perf_counter() - start

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dreams", type=int, default=64)
    parser.add_argument("--preset", default="cartpole")
    parser.add_argument("--steps", type=int, default=1000, help="measured")
    parser.add_argument("--stable-baselines3", action="store_true")
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    config = configuration.named(options.preset)
    kinds = {"spiking": config, "conventional": configuration.twin(config)}
    steppers = {name: stepper(kind, options.dreams, options.stable_baselines3) for name, kind in kinds.items()}
    for step in steppers.values():
        for _ in range(50):
            step()
    times = [{name: step() for name, step in steppers.items()} for _ in range(options.steps)]
    print(f"{options.dreams} dreams, {config.world_model.members} members, on {jax.devices()[0].device_kind}")
    found = {name: 1e3 * statistics.median(row[name] for row in times) for name in steppers}
    for name, milliseconds in found.items():
        print(f"  {name:14}{milliseconds:8.2f} ms a step")
    if options.record:
        face = "-stable-baselines3" if options.stable_baselines3 else ""
        row = {f"ms a step, {name}": [milliseconds] for name, milliseconds in found.items()}
        print(record_scores(f"dream-env-{options.dreams}{face}", row))


if __name__ == "__main__":
    main()
