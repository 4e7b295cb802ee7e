"""Dreaming throughput: imagined steps a second, spiking and conventional, with the actor's and critic's updates.

    python benchmarks/dreaming.py [--trajectories 512 --horizon 15 --members 4] [--record]

Each figure is the median over repeated calls after a warm-up, everything blocked on; the two are measured in turn, so that their
ratio holds on a machine whose speed drifts. `--record` writes `results/dreaming-speed-*.json`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.experiments.record import record_scores
from spikedream.ops.dream import dream
from spikedream.spec import Spec
from spikedream.types import Transition
from spikedream.world import World

SPEC = Spec(4, 2, discrete=True)  # CartPole


def prepare(config: Config) -> Any:
    """A training state with a replay of random transitions."""
    algorithm = config.algorithm(SPEC)
    state = algorithm.init(jax.random.key(0))
    rng, nothing = np.random.default_rng(0), np.zeros((64, 1), np.float32)
    obs, following = rng.normal(size=(2, 64, 1, 4)).astype(np.float32)
    action = np.eye(2, dtype=np.float32)[rng.integers(2, size=(64, 1))]
    fields: tuple[Any, ...] = (obs, action, nothing + 1, following, nothing, nothing, nothing)
    replay = algorithm.remember(state.replay, Transition(*fields), np.int32(64))
    return replace(state, replay=replay.normalise())


def parts(config: Config) -> dict[str, tuple[Callable[..., Any], tuple]]:
    """The whole update, and its parts, as compiled calls."""
    state = prepare(config)
    agent, world = config.agent, World(config.world_model, state.world, state.replay.normalizer)
    key = jax.random.key(1)
    obs = jax.random.normal(key, (agent.trajectories, SPEC.obs_size))
    memory = jax.vmap(world.start)(obs, jax.random.split(key, agent.trajectories))

    def whole(agent_state: Any) -> Any:
        return agent.update(agent_state, world, state.replay, key)

    def rollout(agent_state: Any) -> Any:
        policy = partial(agent.decide, agent.policy_of(agent_state), greedy=False)
        return dream(world, lambda c, o, k: policy(c, o, k), (), memory, agent.horizon, key)

    def fit(world_state: Any) -> Any:
        return config.world_model.update(world_state, state.replay, key, config.world_model.updates)

    return {
        "one update: dream, actor, critic": (jax.jit(whole), (state.agent,)),
        "  the dream alone": (jax.jit(rollout), (state.agent,)),
        "one world-model fit": (jax.jit(fit), (state.world,)),
    }


def measure(call: Callable[..., Any], arguments: tuple) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=512)
    parser.add_argument("--horizon", type=int, default=15)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    config = configuration.named("cartpole")
    agent = replace(config.agent, trajectories=options.trajectories, horizon=options.horizon)
    config = replace(config, agent=agent, world_model=replace(config.world_model, members=options.members))
    spiking, twin = parts(config), parts(configuration.twin(config))
    steps = options.trajectories * options.horizon
    print(f"{options.trajectories} x {options.horizon} steps, {options.members} members, on {jax.devices()[0].device_kind}")
    print(f"{'':36}{'spiking':>12}{'conventional':>14}{'ratio':>8}")
    found: dict[str, dict[str, list[float]]] = {"spiking": {}, "twin": {}}
    for name in spiking:
        for call, arguments in (spiking[name], twin[name]):
            measure(call, arguments)  # compile
        pairs = [(measure(*spiking[name]), measure(*twin[name])) for _ in range(options.repeats)]
        times = dict(zip(found, zip(*pairs, strict=True), strict=True))
        ours, theirs = (statistics.median(x) for x in times.values())
        for kind, seconds in times.items():
            found[kind][f"ms, {name.strip()}"] = [1e3 * x for x in seconds]
        print(f"{name:36}{ours * 1e3:9.1f} ms{theirs * 1e3:11.1f} ms{statistics.median(a / b for a, b in pairs):8.2f}")
        if name.startswith("one update"):
            print(f"{'  imagined steps a second':36}{steps / ours:12,.0f}{steps / theirs:14,.0f}")
            for kind, seconds in times.items():
                found[kind]["imagined steps a second"] = [steps / x for x in seconds]
    if options.record:
        for kind, figures in found.items():
            record_scores(f"dreaming-speed-{kind}", figures)


if __name__ == "__main__":
    main()
