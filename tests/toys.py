"""Small worlds that are known, and agents that practise in them: what several probes share."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from small import holding, known

from spikedream.agents.dreamer import Dreamer
from spikedream.ops.distributions import TwoHot
from spikedream.snn.conventional import MLP
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.neurons import LIF, CubaLIF
from spikedream.snn.readouts import MembraneReadout, PopulationReadout
from spikedream.spec import Spec
from spikedream.types import Prediction, Transition
from spikedream.world import World

KEY = jax.random.key(0)

DREAMER = Dreamer(
    actor=MLP(hidden=(16,), activation="tanh", gain=0.1),
    critic=MLP(hidden=(16,), activation="tanh", gain=0.1),
    value=TwoHot(bins=21, limit=1.5), gradient="clipped", trajectories=32, horizon=4, restart=0.1, start_noise=0.0, gamma=0.9,
    return_lambda=0.95, passes=2, minibatches=2, clip=0.2, entropy=1e-3, learning_rate=1e-2, critic_learning_rate=1e-2,
    gradient_clip=1.0, target_rate=0.1, uncertainty_penalty=1.0, advantage_floor=0.01,
)  # fmt: skip
SPIKING = replace(
    DREAMER,
    actor=SpikingNetwork(hidden=(16,), ticks=3, neuron=LIF(), readout=PopulationReadout(neurons=6, neuron=CubaLIF())),
    critic=SpikingNetwork(hidden=(16,), ticks=3, neuron=LIF(), readout=MembraneReadout(gain=0.1)),
)
ARMS = Spec(2, 3, discrete=True)
DIAL = Spec(2, 1, discrete=False, action_low=(-1.0,), action_high=(1.0,))


class Place(NamedTuple):
    obs: jax.Array


class Known:
    """What the worlds below have in common: one member, and no memory but the observation."""

    members, recurrent, warm_up, updates = 1, False, 1, 1

    def feature_size(self, spec):
        return spec.obs_size

    def start(self, state, obs, key):
        return Place(obs)

    def feature(self, state, memory):
        return memory.obs

    def observe(self, state, memory, action, obs, key):
        return Place(obs)

    def member(self, state, memory, index):
        return self, state, memory


KNOWN = Known()


def said(obs, reward, terminated=0.0, uncertainty=0.0):
    reward, terminated, uncertainty = (jnp.asarray(x, jnp.float32) for x in (reward, terminated, uncertainty))
    return Place(obs), Prediction(obs, reward, terminated, uncertainty, jnp.zeros(()), jnp.zeros(()), ())


class Rules(NamedTuple):
    """What happens in a `Toy`; as numbers, so that an agent compiled for one serves in all of them."""

    kind: Any
    reward: Any = math.nan
    ending: Any = 0.0
    doubt: Any = 0.0
    size: Any = 1.0  # of what the best action pays


def still(reward: float = math.nan, ending: float = 0.0, doubt: bool = False) -> Rules:
    """Nothing moves. The best of the discrete actions is the second, the best continuous action 0.5; or with `reward` set, all
    are alike. Ends with probability `ending` at each step. With `doubt`, the model is sure of the best action only."""
    return Rules(0, reward, ending, float(doubt))


TWO_STEP = Rules(1)  # obs = (phase, memory). The first action is remembered, the second only pays what was remembered, and ends.
CORRIDOR = Rules(2)  # obs counts up by one a step; every step pays one; ends when the count reaches three.


@dataclass(frozen=True)
class Toy(Known):
    """The world of the `Rules` that are its state."""

    discrete: bool

    def step(self, state, memory, action, key):
        outcomes = self._still(state, memory, action), self._two_step(memory, action), self._corridor(memory)
        return jax.tree.map(lambda *x: jnp.select([state.kind == i for i in range(len(x))], x), *outcomes)

    def _still(self, rules, memory, action):
        short = 1 - action[1] if self.discrete else jnp.square(action[0] - 0.5)
        reward = jnp.where(jnp.isnan(rules.reward), rules.size * (1 - short), rules.reward)
        return said(memory.obs, reward, rules.ending, rules.doubt * short)

    def _two_step(self, memory, action):
        phase, kept = memory.obs
        remembered = action[1] if self.discrete else action[0]
        obs = jnp.stack([jnp.ones(()), jnp.where(phase > 0.5, kept, remembered)])
        pay = kept if self.discrete else 1 - jnp.square(kept - 0.5)
        return said(obs, jnp.where(phase > 0.5, pay, 0.0), phase)

    def _corridor(self, memory):
        obs = memory.obs + 1
        return said(obs, 1.0, (obs[0] > 2.5).astype(jnp.float32))


def seen(world: World) -> World:
    """In which rewards from -1 to 1 have been seen."""
    return replace(world, normalizer=replace(world.normalizer, reward_low=jnp.asarray(-1.0), reward_high=jnp.asarray(1.0)))


def toy(rules: Rules, spec: Spec) -> World:
    return seen(known(Toy(spec.discrete), jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rules), spec))


def origin(spec, action=None, reward=None, log_prob=None):
    """Sixteen steps at the origin, each an episode, that pay from -1 to 1 if nothing else is said."""
    still, none = jnp.zeros((16, 2)), jnp.zeros(16)
    action = jnp.zeros((16, spec.action_size)) if action is None else action
    reward = jnp.linspace(-1, 1, 16) if reward is None else reward
    return holding(spec, Transition(still, action, reward, still, none, none + 1, none if log_prob is None else log_prob), 16)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _begin(agent, spec, world, key):
    return agent.init(spec, world, key)


@functools.partial(jax.jit, static_argnums=0)
def _updates(agent, state, world, experience, keys):
    return jax.lax.scan(lambda s, k: agent.update(s, world, experience, k), state, keys)


def practise(agent, rules, spec, updates, experience=None):
    """The agent's state after dreams from the origin, where rewards in [-1, 1] have been seen; and its metrics."""
    experience, world = origin(spec) if experience is None else experience, toy(rules, spec)
    start, key = jax.random.split(KEY)
    state, metrics = _begin(agent, spec, world, start), []
    for keys in jax.random.split(key, updates).reshape(-1, math.gcd(updates, 50)):  # compiled once for any number of updates
        state, measured = _updates(agent, state, world, experience, keys)
        metrics.append(measured)
    return state, jax.tree.map(lambda *x: jnp.concatenate(x), *metrics)


@functools.partial(jax.jit, static_argnums=0)
def _greedy(agent, state, world, obs):
    policy = agent.policy_of(state)
    return agent.act(policy, world, agent.start(policy, world), obs, KEY, greedy=True).action


def greedy_action(agent, state, obs=(0.0, 0.0)):
    return np.asarray(_greedy(agent, state, known(KNOWN, (), ARMS), jnp.asarray(obs)))


def assert_best(agent, state):
    action = greedy_action(agent, state)
    if len(action) == 1:
        assert abs(action[0] - 0.5) < 0.15
    else:
        assert action.argmax() == 1
