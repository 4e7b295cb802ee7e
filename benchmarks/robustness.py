"""What adversarial perturbation while fitting does to dreams: open-loop error from noisy observations, with and without it.

    python benchmarks/robustness.py [--env Pendulum-v1 --steps 600 --seeds 3 --radii 0 0.02 0.05 0.1] [--record]

A spiking ensemble is fitted to random steps and dreams 10 steps along the actions of fresh random episodes, from their observations
plus normal noise. Error: root mean square over standard deviations of the experience, mean over seeds. `--record` writes
`results/robustness-*.json`.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from spikedream import config as configuration
from spikedream.envs.host import HostEnvironments
from spikedream.envs.spaces import random_action, random_log_prob
from spikedream.experiments.record import record_scores
from spikedream.replay.ring import Replay, ReplayBuffer
from spikedream.types import WorldModel
from spikedream.world import World

HORIZON, NOISES = 10, (0.0, 0.05, 0.1, 0.2)
PRESETS = {"CartPole-v1": "cartpole", "Pendulum-v1": "pendulum"}


def experience(env_id: str, steps: int, seed: int) -> Replay:
    env, rng = HostEnvironments(env_id, {}, None, seed), np.random.default_rng(seed)
    replay, add = ReplayBuffer(steps).init(env.spec), jax.jit(lambda r, s: r.add(s, 1))
    for _ in range(steps):
        env.begin()
        step, _ = env.step(random_action(env.spec, rng)[None], np.full(1, random_log_prob(env.spec)))
        replay = add(replay, jax.tree.map(lambda x: x[None], step))
    env.close()
    return replay


def errors(model: WorldModel, train: Replay, test: Replay, seed: int) -> jax.Array:
    """(noises,) after `HORIZON` steps."""
    key = jax.random.key(seed)
    state = model.init(_spec(train), key)
    state, _ = model.update(state, train, key, model.updates)
    world = World(model, state, train.normalizer)

    def dream(end: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array]:
        real = test.sequence(end, HORIZON)
        start = real.steps.obs[0] + noise * jax.random.normal(jax.random.fold_in(key, end), real.steps.obs[0].shape)

        def step(memory, action):
            return world.step(memory, action, key)[0], None

        memory = jax.lax.scan(step, world.start(start, key), real.steps.action)[0]
        whole = (real.valid.min() > 0) & (real.first[1:].max() == 0)
        return jnp.square(memory.obs - real.steps.next_obs[-1]).mean() * whole, whole

    def error(noise: jax.Array) -> jax.Array:
        squares, whole = jax.vmap(lambda end: dream(end, noise))(jnp.arange(HORIZON, test.capacity))
        return jnp.sqrt(squares.sum() / whole.sum())

    return jax.vmap(error)(jnp.asarray(NOISES))


def _spec(replay: Replay):
    obs_size, action_size = replay.data.obs.shape[-1], replay.data.action.shape[-1]
    return configuration.Spec(obs_size, action_size, discrete=action_size > 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", choices=PRESETS, default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--radii", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1])
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    model = configuration.named(PRESETS[given.env]).world_model
    print(f"{given.env}, {given.steps} steps, {given.seeds} seeds; noise on the start: " + "  ".join(f"{n:6.2f}" for n in NOISES))
    for radius in given.radii:
        robust = dataclasses.replace(model, adversarial=radius)
        measure = jax.jit(lambda train, test, seed, robust=robust: errors(robust, train, test, seed))
        rows = []
        for seed in range(given.seeds):
            train, test = experience(given.env, given.steps, seed).normalise(), experience(given.env, 2000, 1000 + seed)
            rows.append(measure(train, dataclasses.replace(test, normalizer=train.normalizer), seed))
        print(f"adversarial = {radius:<5}" + " " * 36 + "  ".join(f"{x:6.3f}" for x in np.mean(rows, axis=0)))
        if given.record:
            scores = {f"noise {noise:g}": x.tolist() for noise, x in zip(NOISES, np.transpose(rows), strict=True)}
            record_scores(f"robustness-{given.env}-{radius:g}", scores)


if __name__ == "__main__":
    main()
