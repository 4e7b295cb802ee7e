"""Learning from each real step as it comes: one update a step, no replay, no batch, nothing remembered but traces.

Stream AC(lambda) (Elsayed et al. 2024, "Streaming deep reinforcement learning finally works"): an actor-critic with eligibility
traces over environment steps and a step size that is bounded so that no step overshoots its own temporal-difference error. With a
forward learning rule (`SpikingNetwork.rule`) nothing is ever looked back at, neither ticks nor steps. Spiking or conventional by
`actor` and `critic`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.actor_critic import ActorCritic
from spikedream.agents.dyna import Dyna, DynaState
from spikedream.bounds import check_bounds
from spikedream.nodes import Node, described
from spikedream.ops.distributions import ActionDistribution, Regression, action_distribution
from spikedream.ops.slow_copy import PolynomialAverage
from spikedream.snn.affine import Affine
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.learning_rules.rtrl import RTRL
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.snn.readouts import RateReadout
from spikedream.snn.sparsity import pruned
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Metrics, PyTree, Transition, firing_rate
from spikedream.world import World


class Returns(NamedTuple):
    """Running statistics of the discounted sum of rewards, whose deviation is the scale of rewards; () each."""

    running: Array
    count: Array
    mean: Array
    squares: Array  # sum of squared differences from the mean (Welford 1962)

    def add(self, reward: Array, discount: Array) -> "Returns":
        """With the next step's `reward`, where `discount` is 0 at the end of an episode."""
        running = discount * self.running + reward
        count, delta = self.count + 1, running - self.mean
        mean = self.mean + delta / count
        return Returns(running, count, mean, self.squares + delta * (running - mean))

    def scale(self) -> Array:
        variance = self.squares / jnp.maximum(self.count - 1, 1)
        return jnp.where((self.count > 1) & (variance > 1e-8), jnp.sqrt(variance), 1.0)


class StreamPolicy(eqx.Module):
    """What acting needs."""

    actor: PyTree
    average: PyTree | None  # of it, which acts where none explores
    distribution: ActionDistribution = eqx.field(static=True)


class Both(NamedTuple):
    """Of actor and critic: their parameters, or the parameters' eligibility traces."""

    actor: PyTree
    critic: PyTree


class StreamState(eqx.Module):
    params: Both
    traces: Both
    returns: Returns
    dyna: DynaState | None
    dreamt: Both | None  # traces of the dream under way
    average: PyTree | None  # of the actor
    distribution: ActionDistribution = eqx.field(static=True)


class StreamStep(NamedTuple):
    """A real or imagined step, as it is learned from."""

    obs: Array  # (obs_size,) normalised
    action: Array
    reward: Array  # () scaled
    following: Array  # (obs_size,)
    terminated: Array  # () probability
    goes_on: Array  # () 0 where the next step to be learned from does not follow it


SPIKING = SpikingNetwork(
    hidden=(128,),
    ticks=4,
    neuron=LIF(decay=(0.8, 0.8)),
    encoder=GaussianPopulation(mode="current"),
    readout=RateReadout(),
    bias=(0.0, 0.0),
    rule=RTRL(),
)


@dataclass(frozen=True)
class StreamActorCritic:
    """Hyper-parameters; the publication's, but for the networks. It plays one environment, acts from the start and learns inside
    `collect`; there is nothing left to do for `dream`."""

    actor: AnyNetwork = SPIKING
    critic: AnyNetwork = SPIKING
    gamma: float = 0.99
    trace_decay: float = 0.8  # lambda
    step_size: float = 1.0  # of the actor, before it is bounded
    critic_step_size: float = 1.0
    caution: float = 3.0  # kappa: how far below what would just not overshoot the actor's step stays
    critic_caution: float = 2.0
    entropy: float = 0.01
    sparsity: float = 0.9  # share of the initial weights that are zero
    average: PolynomialAverage | None = None  # of the actor, over real steps: it acts greedily, steadier than what learns
    dyna: Dyna | None = None  # imagined steps beside the real ones; None: learns from real steps alone

    def __post_init__(self) -> None:
        not_negative, share = (0, None), (0, 1)
        check_bounds(self, gamma=(0, 0.99999), trace_decay=share, step_size=not_negative, critic_step_size=not_negative)
        check_bounds(self, caution=(1, None), critic_caution=(1, None), entropy=not_negative, sparsity=share)

    uses_world = False
    acts_in_world = False
    on_policy_steps = None
    online = True
    selects = False

    def init(self, spec: Spec, world: World, key: Array) -> StreamState:
        """Raises ValueError where something would have to be remembered from one step of an episode to the next."""
        if world.model.recurrent:
            raise ValueError(
                f"StreamActorCritic keeps no memory of an episode, which {type(world.model).__name__} needs; agents that keep one"
                " are Dreamer and MPC"
            )
        distribution = action_distribution(spec)
        network_key, dyna_key, *sparse_keys = jax.random.split(key, 4)
        networks = self._networks.init(spec.obs_size, distribution, network_key)
        actor, critic = (self._sparse(params, k) for params, k in zip(networks, sparse_keys, strict=True))
        if jax.tree.leaves((self.actor.start(actor), self.critic.start(critic))):
            raise ValueError(
                "StreamActorCritic keeps no memory of an episode, which a persistent network needs; set persistent to false, or use"
                " Dreamer"
            )
        params, returns = Both(actor, critic), Returns(*(jnp.zeros(()) for _ in Returns._fields))
        dyna = None if self.dyna is None else self.dyna.init(spec, dyna_key)
        dreamt = None if self.dyna is None else jax.tree.map(jnp.zeros_like, params)
        average = None if self.average is None else jax.tree.map(jnp.array, actor)
        return StreamState(params, jax.tree.map(jnp.zeros_like, params), returns, dyna, dreamt, average, distribution)

    def _sparse(self, params: PyTree, key: Array) -> PyTree:
        """Without a share of each neuron's weights; they may grow later."""
        leaves, tree = jax.tree.flatten(params, is_leaf=lambda x: isinstance(x, Affine))
        thinned = []
        for leaf, leaf_key in zip(leaves, jax.random.split(key, len(leaves)), strict=True):
            if isinstance(leaf, Affine):
                inputs, size = leaf.weight.shape
                absent = jnp.arange(inputs) < int(self.sparsity * inputs)
                absent = jax.vmap(lambda k: jax.random.permutation(k, absent), out_axes=1)(jax.random.split(leaf_key, size))  # noqa: B023
                leaf = Affine(jnp.where(absent, 0.0, leaf.weight), leaf.bias)
            thinned.append(leaf)
        return jax.tree.unflatten(tree, thinned)

    @property
    def _networks(self) -> ActorCritic:
        return ActorCritic(self.actor, self.critic, Regression())

    # ---- acting

    def policy_of(self, state: StreamState) -> StreamPolicy:
        return StreamPolicy(state.params.actor, state.average, state.distribution)

    def steady(self, policy: StreamPolicy) -> PyTree:
        """The actor that acts greedily."""
        return policy.actor if policy.average is None else policy.average

    def start(self, policy: StreamPolicy, world: World) -> PyTree:
        return ()

    def act(self, policy: StreamPolicy, world: World, carry: PyTree, obs: Array, key: Array, greedy: bool) -> Decision:
        actor = self.steady(policy) if greedy else policy.actor
        return self._networks.decide(actor, policy.distribution, (), obs, key, greedy)

    def intended(self, policy: StreamPolicy, world: World, carry: PyTree, obs: Array, key: Array) -> None:
        return None

    def describe(self, policy: StreamPolicy) -> tuple[Node, ...]:
        return *described(self.actor, self.steady(policy)), described(policy.distribution)

    # ---- learning

    def learn(self, state: StreamState, world: World, experience: Experience, key: Array) -> tuple[StreamState, Metrics]:
        """From the newest real step, as it comes."""
        real_key, fit_key, dream_key = jax.random.split(key, 3)
        real = jax.tree.map(lambda x: x[0], experience.gather(experience.newest()))
        raw, goes_on = real.reward * world.normalizer.reward_scale, 1 - jnp.maximum(real.terminated, real.truncated)
        returns = state.returns.add(raw, self.gamma * goes_on)
        step = StreamStep(real.obs, real.action, raw / returns.scale(), real.next_obs, real.terminated, goes_on)
        params, traces, metrics = self._learn_from(state.params, state.traces, state.distribution, step, real_key)
        average = state.average if self.average is None else self.average.follow(state.average, params.actor, experience.count)
        state = StreamState(params, traces, returns, state.dyna, state.dreamt, average, state.distribution)
        imagined = jnp.zeros((), jnp.int32)
        if self.dyna is not None:
            assert state.dyna is not None
            dyna, measured = self.dyna.fit(state.dyna, experience, real, fit_key)
            state, due = replace(state, dyna=dyna), experience.count >= self.dyna.begin
            dream = partial(self._dream, self.dyna, experience=experience, real=real, key=dream_key)
            state = jax.lax.cond(due, dream, lambda state: state, state)
            imagined, metrics = jnp.where(due, self.dyna.steps, 0), metrics | measured
        return state, metrics | {"imagined_steps": imagined}

    def _dream(self, dyna: Dyna, state: StreamState, experience: Experience, real: Transition, key: Array) -> StreamState:
        scale = experience.normalizer.reward_scale / state.returns.scale()

        def imagine(state: StreamState, key: Array) -> tuple[StreamState, None]:
            start_key, act_key, model_key, learn_key = jax.random.split(key, 4)
            assert state.dyna is not None and state.dreamt is not None
            dream = dyna.awake(state.dyna, experience, real, start_key)
            obs = experience.normalizer.obs(dream.obs)
            action = self._networks.decide(state.params.actor, state.distribution, (), obs, act_key, False).action
            found = dyna.imagine(dream, experience, obs, action, model_key)
            dream = dyna.onward(dream, experience, found)
            goes_on = (dream.age < dyna.horizon).astype(jnp.float32)
            step = StreamStep(obs, action, scale * found.reward, found.obs, found.terminated, goes_on)
            params, traces, _ = self._learn_from(state.params, state.dreamt, state.distribution, step, learn_key)
            return replace(state, params=params, dyna=dream, dreamt=traces), None

        return jax.lax.scan(imagine, state, jax.random.split(key, dyna.steps))[0]

    def _learn_from(
        self, params: Both, traces: Both, distribution: ActionDistribution, step: StreamStep, key: Array
    ) -> tuple[Both, Both, Metrics]:
        actor_key, critic_key, after_key = jax.random.split(key, 3)

        def value_of(critic: PyTree) -> tuple[Array, tuple[Array, ...]]:
            out = self.critic(critic, step.obs, (), critic_key)
            return out.value[0], out.spikes

        (value, critic_spikes), by_critic = jax.value_and_grad(value_of, has_aux=True)(params.critic)
        after = self._networks.value_of(params.critic, step.following, after_key)
        error = step.reward + self.gamma * (1 - step.terminated) * after - value

        def inclination(actor: PyTree) -> tuple[Array, tuple[Array, ...]]:
            out = self.actor(actor, step.obs, (), actor_key)
            log_prob = distribution.log_prob(out.value, step.action)
            return log_prob + self.entropy * jnp.sign(error) * distribution.entropy(out.value), out.spikes

        by_actor, actor_spikes = jax.grad(inclination, has_aux=True)(params.actor)
        ends = (error, step.goes_on)
        actor, actor_trace, taken = self._step(params.actor, traces.actor, by_actor, *ends, self.step_size, self.caution)
        critic, critic_trace, _ = self._step(
            params.critic, traces.critic, by_critic, *ends, self.critic_step_size, self.critic_caution
        )
        return (
            Both(actor, critic),
            Both(actor_trace, critic_trace),
            {
                "td_error": jnp.abs(error),
                "step_size/actor": taken,
                "firing_rate/actor": firing_rate(actor_spikes),
                "firing_rate/critic": firing_rate(critic_spikes),
            },
        )

    def _step(
        self, params: PyTree, trace: PyTree, gradient: PyTree, error: Array, goes_on: Array, rate: float, caution: float
    ) -> tuple[PyTree, PyTree, Array]:
        """Overshooting-bounded gradient descent (algorithm 3): new parameters and trace, and the step size that was taken."""
        decay = self.gamma * self.trace_decay
        trace = jax.tree.map(lambda old, new: _settled(decay * old + new), trace, gradient)
        length = jnp.stack([jnp.abs(x).sum() for x in jax.tree.leaves(trace)]).sum()
        taken = rate / jnp.maximum(rate * caution * jnp.maximum(jnp.abs(error), 1.0) * length, 1.0)
        stepped = jax.tree.map(lambda p, z: p + taken * error * z, params, trace)
        return pruned(params, stepped), jax.tree.map(lambda z: goes_on * z, trace), taken

    def update(self, state: StreamState, world: World, experience: Experience, key: Array) -> tuple[StreamState, Metrics]:
        """Nothing: it has learned already."""
        return state, {"imagined_steps": jnp.zeros((), jnp.int32)}

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> None:
        return None

    def judged(self, state: StreamState) -> None:
        return None

    def errors(self, state: StreamState, world: World, experience: Experience, index: Array, key: Array) -> Array:
        """In units of the scaled reward."""
        steps, scale = experience.gather(index), world.normalizer.reward_scale / state.returns.scale()
        before, after = (
            jax.vmap(lambda obs: self._networks.value_of(state.params.critic, obs, key))(obs) for obs in (steps.obs, steps.next_obs)
        )
        return jnp.square(scale * steps.reward + self.gamma * (1 - steps.terminated) * after - before)


def _settled(trace: Array) -> Array:
    """Traces that have decayed away are zero: as denormals they would be slow."""
    return jnp.where(jnp.abs(trace) < 1e-30, 0.0, trace)
