"""Evolution in dreams: a policy's weights are searched, whole populations dream in one compiled call, and no gradient is taken
through anything, spikes least of all.

Evolution strategies as Salimans et al. 2017 have them ("Evolution strategies as a scalable alternative to reinforcement learning"),
and with `deviation_rate` the separable natural evolution strategy of Schaul et al. 2011 ("High dimensions and heavy tails for
natural evolution strategies"), which adapts the deviation of every single weight, as separable CMA-ES does.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents import acting
from spikedream.agents.acting import ActorPolicy
from spikedream.agents.actor_critic import apply_gradient
from spikedream.bounds import check_bounds
from spikedream.ops.distributions import ActionDistribution, action_distribution
from spikedream.ops.dream import dream
from spikedream.ops.returns import survival
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import NeuronParams
from spikedream.snn.readouts import PopulationReadout
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Metrics, PyTree, Sequence, firing_rate
from spikedream.world import World


class EvolutionState(eqx.Module):
    actor: PyTree  # the mean of what is searched
    deviation: PyTree  # of each weight; 0 for what is not searched
    optimizer: PyTree
    distribution: ActionDistribution = eqx.field(static=True)
    spec: Spec = eqx.field(static=True)


class Starts(NamedTuple):
    """Where dreams begin, the same for all candidates; leaves (trajectories, ...)."""

    memory: Any  # the world's
    past: Sequence | None  # real steps that led there, where actors keep a memory
    importance: Array


class Fitness(NamedTuple):
    """Of one candidate, () each."""

    value: Array
    uncertainty: Array  # mean, of its dreams' steps
    survival: Array  # share of its dreams that lived to the end
    firing_rate: Array


@dataclass(frozen=True)
class Evolution:
    """Hyper-parameters. What is searched are weights and biases; neurons keep the decays and thresholds that they begin with.

    All candidates dream from the same replayed starts under the same randomness: what differs between them is their weights. A
    candidate's fitness is the mean discounted return of its dreams; only its rank counts.
    """

    actor: AnyNetwork = SpikingNetwork(ticks=5, readout=PopulationReadout())
    population: int = 64  # in pairs, on both sides of the mean
    trajectories: int = 8  # dreams of each candidate
    horizon: int = 50
    context: int = 16  # replayed steps that warm up an actor's memory, where it has one, before it dreams on
    start_noise: float = 0.0  # standard deviation, in those of the observations, of what is added to a replayed start and its past
    gamma: float = 0.99
    deviation: float = 0.1  # of the weights, at first
    deviation_rate: float = 0.0  # at which each weight's own deviation follows what helped; 0: all stay as they are
    learning_rate: float = 0.02
    uncertainty_penalty: float = 0.0  # reward lost per unit of the model's uncertainty

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, population=(2, None), trajectories=at_least_one, horizon=at_least_one, context=at_least_one)
        check_bounds(self, gamma=(0, 1), start_noise=not_negative, deviation=(1e-6, None), deviation_rate=not_negative)
        check_bounds(self, learning_rate=not_negative, uncertainty_penalty=not_negative)
        if self.population % 2:
            raise ValueError(f"population is {self.population}; candidates come in pairs, so that it must be even")

    uses_world = True
    acts_in_world = False
    online = False
    selects = False
    on_policy_steps = None

    def init(self, spec: Spec, world: World, key: Array) -> EvolutionState:
        distribution = action_distribution(spec)
        actor: PyTree = self.actor.init(world.model.feature_size(spec), distribution.parameters, key)
        deviation = jax.tree.map(lambda which, x: jnp.full(x.shape, which * self.deviation, jnp.float32), _searched(actor), actor)
        return EvolutionState(actor, deviation, self._optimizer.init(actor), distribution, spec)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    # ---- acting

    def policy_of(self, state: EvolutionState) -> ActorPolicy:
        return ActorPolicy(state.actor, state.distribution, state.spec)

    start, act, intended, describe = acting.start, acting.act, acting.intended, acting.describe

    def decide(self, policy: ActorPolicy, carry: PyTree, feature: Array, key: Array, greedy: bool) -> Decision:
        network_key, action_key = jax.random.split(key)
        out, distribution = self.actor(policy.actor, feature, carry, network_key), policy.distribution
        if greedy:
            return Decision(distribution.mode(out.value), out.carry, jnp.zeros(()), out.spikes)
        action = distribution.sample(out.value, action_key)
        return Decision(action, out.carry, distribution.log_prob(out.value, action), out.spikes)

    def update(self, state: EvolutionState, world: World, experience: Experience, key: Array) -> tuple[EvolutionState, Metrics]:
        """One generation."""
        noise_key, start_key, dream_key = jax.random.split(key, 3)
        half = _noise(state.actor, self.population // 2, noise_key)
        noise = jax.tree.map(lambda x: jnp.concatenate([x, -x]), half)  # leaves (population, ...)
        candidates = jax.tree.map(lambda mean, d, x: mean[None] + d[None] * x, state.actor, state.deviation, noise)
        starts = self._starts(world, experience, start_key)
        found = jax.vmap(lambda actor: self._fitness(state, actor, world, starts, dream_key))(candidates)
        rank = jnp.argsort(jnp.argsort(found.value)).astype(jnp.float32)
        centred = rank - rank.mean()
        utility = centred / jnp.abs(centred).sum()
        # d E[utility] / d mean = E[utility noise] / deviation (Salimans et al., eq. 2), downhill for the optimiser.
        downhill = jax.tree.map(
            lambda x, d: -jnp.tensordot(utility, x, 1) / jnp.where(d > 0, d, 1.0) * (d > 0), noise, state.deviation
        )
        actor, moments = apply_gradient(self._optimizer, downhill, state.optimizer, state.actor)
        # Schaul et al., eq. 10.
        deviation = jax.tree.map(
            lambda x, d: d * jnp.exp(0.5 * self.deviation_rate * jnp.tensordot(utility, jnp.square(x) - 1, 1)),
            noise,
            state.deviation,
        )
        metrics = {
            "imagined_steps": jnp.asarray(self.population * self.trajectories * self.horizon, jnp.int32),
            "fitness": found.value.mean(),
            "fitness_best": found.value.max(),
            "dream_survival": found.survival.mean(),
            "dream_uncertainty": found.uncertainty.mean(),
            "deviation": _mean(deviation) / _mean(jax.tree.map(jnp.sign, deviation)),
            "firing_rate/actor": found.firing_rate.mean(),
        }
        return replace(state, actor=actor, deviation=deviation, optimizer=moments), metrics

    def _starts(self, world: World, experience: Experience, key: Array) -> Starts:
        draw_key, noise_key, recall_key = jax.random.split(key, 3)
        index = experience.draw(draw_key, (self.trajectories,))
        noise = self.start_noise * jax.random.normal(noise_key, experience.gather(index).obs.shape)
        past = None
        if self.actor.persistent:
            past = jax.vmap(Sequence.moved)(jax.vmap(partial(experience.sequence, length=self.context))(index), noise)
        return Starts(world.recall(experience, index, recall_key, noise), past, experience.importance(index))

    def _remembered(self, actor: PyTree, world: World, past: Sequence, key: Array) -> PyTree:
        """A candidate's own memory where dreams begin, of the real steps that led there; leaves (trajectories, ...)."""
        _, remembered = jax.vmap(partial(acting.relive, self, actor, world))(past, jax.random.split(key, self.trajectories))
        return jax.tree.map(lambda x: x[:, -1], remembered)

    def _fitness(self, state: EvolutionState, actor: PyTree, world: World, starts: Starts, key: Array) -> Fitness:
        """Of one candidate."""
        policy, carry = ActorPolicy(actor, state.distribution, state.spec), self.actor.start(actor)
        if starts.past is not None:
            relive_key, key = jax.random.split(key)
            carry = self._remembered(actor, world, starts.past, relive_key)
        decide = lambda carry, feature, key: self.decide(policy, carry, feature, key, greedy=False)  # noqa: E731
        imagined, _ = dream(world, decide, carry, starts.memory, self.horizon, key)
        prediction = imagined.prediction
        alive = jax.vmap(survival, in_axes=1, out_axes=1)(prediction.terminated)
        reward = jnp.clip(prediction.reward, *world.normalizer.reward_range())
        reward = reward - self.uncertainty_penalty * prediction.uncertainty + prediction.bonus
        discount = self.gamma ** jnp.arange(self.horizon, dtype=jnp.float32)
        returns = (discount[:, None] * alive * reward).sum(0)
        return Fitness(
            value=(returns * starts.importance).sum() / starts.importance.sum(),
            uncertainty=prediction.uncertainty.mean(),
            survival=(alive[-1] * (1 - prediction.terminated[-1])).mean(),
            firing_rate=firing_rate(imagined.decision.spikes),
        )

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> None:
        return None

    def judged(self, state: EvolutionState) -> None:
        return None

    def errors(self, state: EvolutionState, world: World, experience: Experience, index: Array, key: Array) -> Array:
        """Raises ValueError: there is no value function."""
        raise ValueError('replay.priority = "td_error" needs a value function, which Evolution has not; use "model_error"')


def _searched(params: PyTree) -> PyTree:
    """1 for the leaves that are searched, 0 for the others."""

    def of(part: PyTree) -> PyTree:
        if not isinstance(part, NeuronParams):
            return 1.0
        constants = jax.tree.map(lambda _: 0.0, part)
        return constants if part.recurrent is None else replace(constants, recurrent=1.0)

    return jax.tree.map(of, params, is_leaf=lambda x: isinstance(x, NeuronParams))


def _noise(params: PyTree, number: int, key: Array) -> PyTree:
    """Standard normal, leaves (number, ...)."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [jax.random.normal(k, (number, *x.shape)) for k, x in zip(keys, leaves, strict=True)])


def _mean(tree: PyTree) -> Array:
    """() over all entries of all leaves."""
    leaves = jax.tree.leaves(tree)
    return jnp.stack([x.sum() for x in leaves]).sum() / sum(x.size for x in leaves)
