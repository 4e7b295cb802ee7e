"""The episode that the report shows: what the policy did, what the world model says about it, and what a planner expected."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.algorithm import Algorithm, PolicyState, TrainState
from spikedream.envs.host import REPORT, HostEnvironments, episode_seed
from spikedream.ops.dream import dream, playback
from spikedream.runs.run import Run
from spikedream.types import Decision, PyTree
from spikedream.world import Belief, World

PLANS = 4  # of a planner are shown
WARM_UP = 10  # real steps that a model with a memory follows before it dreams


class Episode(NamedTuple):
    """One greedy episode in the real environment."""

    obs: np.ndarray  # (steps + 1, obs_size) in the environment's units
    actions: np.ndarray  # (steps, action_size) encoded
    rewards: np.ndarray  # (steps,) each summed over the repetitions of its action
    spikes: tuple[np.ndarray, ...]  # of the policy, per layer (steps, ticks, neurons)
    carries: dict[int, PyTree]  # the policy's memory at the steps whose plan is shown


class ImaginedEpisode(NamedTuple):
    """What the world model says about the beginning of an episode."""

    obs: Array  # (members, horizon - warm, obs_size) open loop from observation `warm`, in the environment's units
    spikes: tuple[Array, ...]  # of the first member along the real episode, per layer (horizon, ticks, neurons)


def planned_steps(run: Run) -> int:
    """How far the greedy policy plans; 0 where it does not."""
    algorithm = run.algorithm

    def plan(state: TrainState) -> Array | None:
        policy, obs = algorithm.policy(state), jnp.zeros(run.spec.obs_size)
        carry = algorithm.agent.start(policy.policy, policy.world)
        found = algorithm.agent.intended(policy.policy, policy.world, carry, obs, jax.random.key(0))
        return None if found is None else found.actions

    found = jax.eval_shape(plan, run.state)
    return 0 if found is None else found.shape[0]


def plan_every(run: Run) -> int:
    """Steps between two plans that are shown, so that they do not lie over each other."""
    return max(planned_steps(run), 10)


def play(run: Run) -> Episode:
    """Raises BrokenEnvironment where the environment fails."""
    algorithm, state = run.algorithm, run.state
    # An environment seeded from the report's own stream meets no episode of the learner.
    seed = episode_seed(run.config.seed, REPORT)
    config = run.config
    env = HostEnvironments(config.env, config.env_kwargs, config.max_episode_steps, seed, action_repeat=config.repeat)
    shown = {i * plan_every(run) for i in range(PLANS)} if planned_steps(run) else set()
    try:
        env.begin()
        policy = algorithm.policy(state)
        obs, carry = [env.obs[0]], algorithm.agent.start(policy.policy, policy.world)
        actions, rewards, spikes, carries = [], [], [], {}
        while env.positions[0].obs is not None:
            if len(actions) in shown:
                carries[len(actions)] = carry
            decision = _decide(algorithm, policy, carry, obs[-1], step_key(run, len(actions)))
            carry = decision.carry
            step, _ = env.step(np.asarray(decision.action)[None], np.zeros(1))
            obs.append(np.asarray(step.next_obs[0]))
            actions.append(step.action[0])
            rewards.append(step.reward[0])
            spikes.append(decision.spikes)
    finally:
        env.close()
    trains = tuple(np.stack(layer) for layer in zip(*jax.device_get(spikes), strict=True))
    return Episode(np.stack(obs), np.stack(actions), np.asarray(rewards), trains, carries)


def step_key(run: Run, step: int) -> Array:
    """What the policy draws from at one step of the episode."""
    return jax.random.fold_in(jax.random.fold_in(run.state.keys.evaluate, 0), step)


@partial(jax.jit, static_argnums=0)
def _decide(algorithm: Algorithm, policy: PolicyState, carry: PyTree, obs: Array, key: Array) -> Decision:
    """As `Algorithm.act` for one raw observation, with the spikes."""
    obs = policy.world.normalizer.obs(obs)
    return algorithm.agent.act(policy.policy, policy.world, carry, obs, key, True)


def warm_up(algorithm: Algorithm, horizon: int) -> int:
    """Real steps that the world model follows before it dreams to the end of `horizon` steps."""
    return min(WARM_UP, horizon // 2) if algorithm.world_model.recurrent else 0


@partial(jax.jit, static_argnums=(0, 4))
def imagine(algorithm: Algorithm, state: TrainState, obs: Array, actions: Array, warm: int) -> ImaginedEpisode:
    """Of the real raw observations (horizon, obs_size) that were met and the actions (horizon, action_size) taken there."""
    world, normalizer = algorithm.world(state), state.replay.normalizer
    follow_key, dream_key = jax.random.split(jax.random.fold_in(state.keys.evaluate, 1))

    def follow(belief: Belief, now: tuple[Array, Array, Array]) -> tuple[Belief, tuple[Any, tuple[Array, ...]]]:
        obs, action, key = now
        memory_key, step_key = jax.random.split(key)
        memory = world.follow(belief, obs, memory_key)
        trains = world.step(memory, action, step_key)[1].spikes
        first = tuple(train.reshape(-1, *train.shape[-2:])[0] for train in trains)
        return world.belief(memory, action), (memory, first)

    steps = (normalizer.obs(obs), actions, jax.random.split(follow_key, obs.shape[0]))
    memories, trains = jax.lax.scan(follow, world.blank(algorithm.spec), steps)[1]
    memory = jax.tree.map(lambda x: x[warm], memories)
    return ImaginedEpisode(normalizer.raw_obs(_open_loop(world, memory, actions[warm:], dream_key)), trains)


@partial(jax.jit, static_argnums=0)
def plan(algorithm: Algorithm, state: TrainState, carry: PyTree, obs: Array, key: Array) -> tuple[Array, Array]:
    """The actions (horizon, action_size) that the policy plans for one raw observation, and where each member expects them to lead,
    (members, horizon, obs_size) in the environment's units."""
    policy, normalizer = algorithm.policy(state), state.replay.normalizer
    found = algorithm.agent.intended(policy.policy, policy.world, carry, normalizer.obs(obs), key)
    assert found is not None, "plan() of an agent that does not plan"
    expected = _open_loop(algorithm.world(state), found.memory, found.actions, jax.random.fold_in(key, 0))
    return found.actions, normalizer.raw_obs(expected)


def _open_loop(world: World, memory: Any, actions: Array, key: Array) -> Array:
    """Each member's normalised observations after the actions, (members, steps, obs_size)."""

    def one(member: Array) -> Array:
        judge, start = world.member(memory, member, alone=True)
        carry, starts = jax.tree.map(lambda x: x[None], ((actions, jnp.zeros((), jnp.int32)), start))
        imagined, _ = dream(judge, playback, carry, starts, actions.shape[0], key)
        return imagined.prediction.obs[:, 0]

    return jax.vmap(one)(jnp.arange(world.model.members))
