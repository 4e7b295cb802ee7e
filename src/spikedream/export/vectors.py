"""Test vectors: what a trained policy does in JAX on observations of its environment, for exported code to be compared with."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy import ndarray

from spikedream.envs.make import make_own, translation_of
from spikedream.envs.spaces import decode_actions
from spikedream.nodes import Chain, Choice, Node, Unexportable
from spikedream.runs.run import Run

UNDECIDED = 1e-5  # a membrane this near to its threshold fires or not by how sums are rounded
TOLERANCE = 1e-5  # of an action, by its range; of what a learner learns, by 1 and its size
LONGEST = 200  # steps of an episode that vectors are taken from
PATIENCE = 100  # observations, or stretches of a learner, that are tried for each vector asked for


class Vector(NamedTuple):
    observation: ndarray  # (obs_size,) in the environment's own units
    begins: bool  # whether an episode begins with it
    action: ndarray  # by JAX: () a choice, or (action_size,) within the bounds
    trains: tuple[ndarray, ...]  # by JAX: of each spiking layer, (ticks, size)
    output: ndarray  # by the nodes: what the action is chosen by, or is


def test_vectors(run: Run, nodes: tuple[Node, ...], count: int, seed: int = 0) -> tuple[list[Vector], int]:
    """`count` observations from episodes in which every other action is random, on average, and what the policy does there; and how
    many more were left out, because a membrane was nearer to its threshold than `UNDECIDED`, or two choices to one another.

    Raises BrokenEnvironment where the environment cannot be played, and Unexportable where nearly all are left out.
    """
    algorithm, spec, config = run.algorithm, run.spec, run.config
    policy = algorithm.policy(run.state)
    start = algorithm.agent.start(policy.policy, policy.world)

    @jax.jit
    def act(carry, obs):
        decision = algorithm.agent.act(
            policy.policy, policy.world, carry, policy.world.normalizer.obs(obs), jax.random.key(0), True
        )
        return decision.action, decision.carry, decision.spikes

    rng, chain = np.random.default_rng(seed), Chain(nodes)
    env = make_own(config.env, config.env_kwargs, config.max_episode_steps)
    translation = translation_of(config.env, env)
    found: list[Vector] = []
    left_out, length, over = 0, 0, True
    obs, carry, begins = np.zeros(spec.obs_size, np.float32), start, True
    while len(found) < count and left_out < PATIENCE * count:
        if over or length == LONGEST:
            obs, _ = env.reset(seed=int(rng.integers(2**31)))
            carry, begins, length, over = start, True, 0, False
        flat = np.asarray(translation.observation(obs), np.float32)
        if begins:
            chain.reset()
        encoded, carry, trains = act(carry, jnp.asarray(flat))
        action, answer = decode_actions(spec, np.asarray(encoded)[None])[0], chain(flat)
        output = answer.values[-2] if isinstance(nodes[-1], Choice) else answer.values[-1]
        if min(answer.margin, _lead(nodes, output)) < UNDECIDED:
            left_out, carry, begins = left_out + 1, start, True
        else:
            found.append(Vector(flat, begins, action, tuple(np.asarray(train) for train in trains), output))
            begins = False
        taken = action if rng.random() < 0.5 else _random(spec, rng)
        taken = translation.action(int(taken) if spec.discrete else np.asarray(taken, np.float32))
        obs, _, terminated, truncated, _ = env.step(taken)
        over, length = terminated or truncated, length + 1
    env.close()
    check_enough(len(found), left_out, count, "observation")
    return found, left_out


def check_asked(count: int) -> None:
    """Raises Unexportable where there would be nothing to test by."""
    if count < 1:
        raise Unexportable(f"--vectors is {count}; it must be at least 1")


def check_enough(found: int, left_out: int, count: int, of: str) -> None:
    """Raises Unexportable where fewer were found than asked for."""
    if found < count:
        every = f"every {of} is" if not found else f"nearly every {of} is"
        raise Unexportable(
            f"{every} too close to call: {left_out} of {found + left_out} leave to rounding what is done, as where a network is"
            " silent or two choices are tied; train it further"
        )


def _random(spec, rng: np.random.Generator):
    return rng.integers(spec.action_size) if spec.discrete else rng.uniform(spec.action_low, spec.action_high)


def _lead(nodes: tuple[Node, ...], output: ndarray) -> float:
    """Of the largest entry over the next, where there is a choice."""
    if not isinstance(nodes[-1], Choice) or output.size < 2:
        return np.inf
    return float(np.diff(np.sort(output)[-2:])[0])
