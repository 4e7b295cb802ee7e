"""An off-policy actor-critic for continuous actions, learning from replayed steps: TD3, SAC, TD7 and CrossQ are settings of it.

    actor     spiking or conventional, by one field; `policy` says what its output means
    critics   each sees observation and action and, with a `representation`, what that makes of them
    copies    `slow` copies, of which the targets are made, or none

Values are discounted sums of rewards in the environment's own units: the scale of normalised rewards may change while it learns.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents.action_values import ActionValues, AnyCritic, CriticParams
from spikedream.agents.actor_critic import activity_above, apply_gradient
from spikedream.agents.dreams import Dreams, DreamsState
from spikedream.agents.policy_head import AnyPolicyHead, Deterministic
from spikedream.agents.representation import SALE
from spikedream.agents.transitions import Batch, real
from spikedream.bounds import check_bounds
from spikedream.nodes import Node, Unexportable, described
from spikedream.ops.distributions import Regression, ValueDistribution
from spikedream.ops.fitting import matrices
from spikedream.ops.slow_copy import AnySlowCopy, HardCopy, Polyak
from spikedream.ops.value_range import ValueRange
from spikedream.ops.when import when
from spikedream.snn.batch_norm import BatchNormMLP
from spikedream.snn.conventional import MLP
from spikedream.snn.encoders import GaussianPopulation
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import CubaLIF
from spikedream.snn.readouts import PopulationReadout
from spikedream.spec import Spec
from spikedream.types import Decision, Experience, Judged, Metrics, PyTree, firing_rate
from spikedream.world import World

# Tang et al. 2020. The fields' deviation is the root of the variance in the released code, 0.15.
_FIXED = CubaLIF(learn_decay=False)
POPSAN = SpikingNetwork(
    (256, 256), ticks=5, neuron=_FIXED, encoder=GaussianPopulation(width=0.387), readout=PopulationReadout(10, _FIXED)
)


class Parameters(eqx.Module):
    """Everything that is learned, or a slow copy of it."""

    actor: PyTree
    critics: CriticParams  # leaves (critics, ...)
    encoder: PyTree  # what actor and critics see through; None without a representation


class Told(NamedTuple):
    """Of the actor's last update."""

    value: Array  # () mean of its actions, by the critics
    firing_rate: Array
    temperature: Array


class OffPolicyState(eqx.Module):
    now: Parameters
    slow: Parameters | None
    encoder: PyTree  # under training; `now` and `slow` hold copies that stay as they are between two copyings
    actor_optimizer: PyTree
    critic_optimizer: PyTree
    encoder_optimizer: PyTree
    temperature: Array | None  # () its logarithm
    temperature_optimizer: PyTree
    range: ValueRange
    updates: Array  # () int32
    dreams: DreamsState | None
    judged: Judged
    told: Told
    spec: Spec = eqx.field(static=True)


class OffPolicyPolicy(eqx.Module):
    """What acting needs."""

    actor: PyTree
    encoder: PyTree  # None where the actor does not see through it
    spec: Spec = eqx.field(static=True)


@dataclass(frozen=True)
class OffPolicy:
    """Hyper-parameters. The defaults are TD3 with PopSAN's spiking actor (Tang et al. 2020)."""

    actor: AnyNetwork = POPSAN
    critic: AnyCritic = MLP(hidden=(256, 256), activation="relu")
    critics: int = 2
    policy: AnyPolicyHead = Deterministic()
    representation: SALE | None = None
    actor_sees: Literal["observation", "representation", "both"] = "observation"
    value: ValueDistribution = Regression()
    target: Literal["min", "mean"] = "min"  # of the critics' values, where a target bootstraps
    subset: int | None = None  # so many critics, drawn anew for each update, make the target (Chen et al. 2021, REDQ); None: all
    policy_value: Literal["first", "min", "mean"] = "first"  # of the critics', by which the actor learns
    slow: AnySlowCopy | None = Polyak()  # None: targets are made of what is learned, in one pass (Bhatt et al. 2024, CrossQ)
    policy_delay: int = 2  # updates of the critics for each of the actor
    clip_value: bool = False  # to the range of the targets seen until the last hard copy
    n_step: int = 1  # rewards in a target before it bootstraps
    gamma: float = 0.99
    batch: int = 256
    learning_rate: float = 3e-4
    critic_learning_rate: float = 3e-4
    momentum: float = 0.9  # Adam's first, of actor and critics
    weight_decay: float = 0.0  # of the critics
    dreams: Dreams | None = None
    activity_penalty: float = 0.0  # on the actor's firing rate above `activity_target`, beside the mean magnitude of its values
    activity_target: float = 0.0

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, critics=at_least_one, policy_delay=at_least_one, n_step=at_least_one, batch=at_least_one)
        check_bounds(self, gamma=(0, 0.99999), learning_rate=not_negative, critic_learning_rate=not_negative)
        check_bounds(self, weight_decay=not_negative, activity_penalty=not_negative, activity_target=(0, 1))
        check_bounds(self, momentum=(0, 0.9999))
        if self.subset is not None and not 1 <= self.subset <= self.critics:
            raise ValueError(f"subset is {self.subset}; it must be from 1 to critics ({self.critics})")
        if self.actor.persistent or self.critic.persistent:
            raise ValueError("actor and critic learn from single replayed steps and can keep no state between them; use Dreamer")
        if self.representation is None and self.actor_sees != "observation":
            raise ValueError(f'actor_sees is "{self.actor_sees}", but there is no representation; set it to "observation"')
        hard = isinstance(self.slow, HardCopy)
        if not hard and (self.clip_value or self.representation is not None):
            what = "clip_value" if self.clip_value else "a representation"
            raise ValueError(f"{what} needs copies that stand still for a while: set slow to HardCopy")
        if isinstance(self.critic, BatchNormMLP) and self.slow is not None:
            raise ValueError("critic is BatchNormMLP, which must see targets and values in one pass; set slow to None")

    @property
    def uses_world(self) -> bool:
        return self.dreams is not None

    acts_in_world = False
    on_policy_steps = None
    online = False
    selects = False

    @property
    def actor_steps(self) -> float:
        return 1 / self.policy_delay

    # ---- making

    def init(self, spec: Spec, world: World, key: Array) -> OffPolicyState:
        if spec.discrete:
            raise ValueError("OffPolicy needs a continuous action space; Dreamer, PPO and MPC act in discrete ones")
        if world.model.recurrent:
            raise ValueError("OffPolicy sees observations only, so that a recurrent world model is of no use to it; use Ensemble")
        if world.bonus is not None and self.n_step > 1:
            raise ValueError(f"n_step is {self.n_step}, but a bonus is given for single steps only; set n_step to 1")
        actor_key, critic_key, encoder_key = jax.random.split(key, 3)
        encoder: PyTree = None if self.representation is None else self.representation.init(spec, encoder_key)
        actor: PyTree = self.actor.init(self._seen_size(spec), self.policy.parameters(spec.action_size), actor_key)
        critics: PyTree = self._critics.init(spec, critic_key)
        now, zero = Parameters(actor, critics, encoder), jnp.zeros(())
        temperature, temperature_moments = self.policy.temperature.init() if self.policy.temperature else (None, ())
        state = OffPolicyState(
            now=now,
            slow=None if self.slow is None else now,
            encoder=encoder,
            actor_optimizer=self._optimizer.init(actor),
            critic_optimizer=self._critic_optimizer.init(critics),
            encoder_optimizer=() if self.representation is None else self.representation.optimizer.init(encoder),
            temperature=temperature,
            temperature_optimizer=temperature_moments,
            range=ValueRange(zero, zero, zero, zero),
            updates=jnp.zeros((), jnp.int32),
            dreams=None if self.dreams is None else self.dreams.init(spec, world),
            judged=Judged(jnp.zeros(self.batch, jnp.int32), jnp.zeros(self.batch), jnp.zeros(self.batch)),
            told=Told(zero, zero, zero),
            spec=spec,
        )
        return jax.tree.map(jnp.array, state)  # every leaf its own buffer: the phases donate the state

    def _seen_size(self, spec: Spec) -> int:
        """What the actor sees."""
        embedded = 0 if self.representation is None else self.representation.size
        return {"observation": spec.obs_size, "representation": embedded, "both": spec.obs_size + embedded}[self.actor_sees]

    @property
    def _critics(self) -> ActionValues:
        return ActionValues(self.critic, self.critics, self.value, self.representation)

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate, b1=self.momentum)

    @property
    def _critic_optimizer(self) -> optax.GradientTransformation:
        mask = partial(matrices, stacked=1)
        return optax.adamw(self.critic_learning_rate, b1=self.momentum, weight_decay=self.weight_decay, mask=mask)

    # ---- acting

    def policy_of(self, state: OffPolicyState) -> OffPolicyPolicy:
        return OffPolicyPolicy(state.now.actor, None if self.actor_sees == "observation" else state.now.encoder, state.spec)

    def start(self, policy: OffPolicyPolicy, world: World) -> tuple[()]:
        return ()

    def act(self, policy: OffPolicyPolicy, world: World, carry: tuple[()], obs: Array, key: Array, greedy: bool) -> Decision:
        network_key, action_key = jax.random.split(key)
        out = self._decide(policy.actor, policy.encoder, obs, network_key)
        if greedy:
            return Decision(self.policy.mode(out.value), (), jnp.zeros(()), out.spikes)
        action, log_prob = self.policy.sample(out.value, action_key)
        return Decision(action, (), log_prob, out.spikes)

    def intended(self, policy: OffPolicyPolicy, world: World, carry: tuple[()], obs: Array, key: Array) -> None:
        return None

    def describe(self, policy: OffPolicyPolicy) -> tuple[Node, ...]:
        if self.actor_sees != "observation":
            raise Unexportable('an actor that sees a representation cannot be exported; with actor_sees "observation" it can')
        return *described(self.actor, policy.actor), described(self.policy, policy.spec.action_size)

    def _decide(self, actor: PyTree, encoder: PyTree, obs: Array, key: Array):
        """The actor's output for one observation."""
        if self.representation is None or self.actor_sees == "observation":
            return self.actor(actor, obs, (), key)
        embedded = self.representation.embed(encoder, obs)
        return self.actor(actor, embedded if self.actor_sees == "representation" else jnp.concatenate([obs, embedded]), (), key)

    # ---- one update

    def update(self, state: OffPolicyState, world: World, experience: Experience, key: Array) -> tuple[OffPolicyState, Metrics]:
        """One step of the critics and the representation, and in every `policy_delay`-th update one of the actor."""
        draw_key, bonus_key, dream_key, target_key, actor_key = jax.random.split(key, 5)
        index = experience.draw(draw_key, (self.batch,))
        batch = real(world, experience, index, self.gamma, self.n_step, bonus_key)
        state = eqx.tree_at(lambda s: s.updates, state, state.updates + 1)
        metrics: Metrics = {}
        if self.representation is not None:
            moments, pairs = state.encoder_optimizer, (batch.obs, batch.action, batch.next_obs)
            *learned, metrics["representation_loss"] = self.representation.update(state.encoder, moments, *pairs)
            state = eqx.tree_at(lambda s: (s.encoder, s.encoder_optimizer), state, learned)
        state, batch, imagined, dreamt = self._dream(state, world, experience, batch, dream_key)
        state, (critic_loss, error, target) = self._learn_critics(state, batch, target_key)
        state = when(state.updates % self.policy_delay == 0, lambda s: self._learn_actor(s, batch, actor_key), state)
        state = self._copy(state)
        metrics |= (
            dreamt
            | self._critics.beyond(target)
            | {
                "critic_loss": critic_loss,
                "td_error": error.mean(),
                "target_value": target.mean(),
                "actor_value": state.told.value,
                "firing_rate/actor": state.told.firing_rate,
            }
        )
        if state.temperature is not None:
            metrics["temperature"] = state.told.temperature
        # A transition that was drawn twice has one error.
        error = jnp.where((index[:, None] == index[None]) & ~imagined[None], error[None], 0).max(1)
        return eqx.tree_at(lambda s: s.judged, state, Judged(index, error, (~imagined).astype(jnp.float32))), metrics

    def _dream(
        self, state: OffPolicyState, world: World, experience: Experience, batch: Batch, key: Array
    ) -> tuple[OffPolicyState, Batch, Array, Metrics]:
        """The state, having dreamed where that is due; the batch, partly of imagined steps; which of its rows these are, (batch,)
        bool; and what the dreams were like."""
        if self.dreams is None or state.dreams is None:
            return state, batch, jnp.zeros(self.batch, bool), {"imagined_steps": jnp.zeros((), jnp.int32)}

        def policy(carry: tuple[()], obs: Array, key: Array) -> Decision:
            return self.act(self.policy_of(state), world, carry, obs, key, greedy=False)

        learning = (state.updates, self.gamma)
        dreams, batch, imagined, metrics = self.dreams.mix(state.dreams, world, experience, policy, batch, *learning, key)
        return eqx.tree_at(lambda s: s.dreams, state, dreams), batch, imagined, metrics

    def host_learner(self, spec: Spec, world: World, experience: Experience, key: Array) -> None:
        return None

    def judged(self, state: OffPolicyState) -> Judged:
        return state.judged

    def errors(self, state: OffPolicyState, world: World, experience: Experience, index: Array, key: Array) -> Array:
        """(rows,) squared temporal-difference error on the transitions at `index`, (rows,)."""
        bonus_key, target_key, value_key = jax.random.split(key, 3)
        batch = real(world, experience, index, self.gamma, self.n_step, bonus_key)
        value = self._critics.means(self._critics(state.now.critics, state.now.encoder, batch.obs, batch.action, value_key))
        return jnp.square(self._target(state, batch, target_key)[:, None] - value).max(1)

    # ---- learning

    def _slow(self, state: OffPolicyState) -> Parameters:
        return state.now if state.slow is None else state.slow

    def _target(self, state: OffPolicyState, batch: Batch, key: Array) -> Array:
        """(batch,)."""
        follow_key, subset_key, value_key = self._target_keys(key)
        action, log_prob = self._follow(state, batch, follow_key)
        slow = self._slow(state)
        out = self._critics(slow.critics, slow.encoder, batch.later, action, value_key)
        return self._bootstrap(state, batch, out, log_prob, subset_key)

    def _target_keys(self, key: Array) -> tuple[Array, Array, Array]:
        network_key, action_key, subset_key, value_key = jax.random.split(key, 4)
        return jnp.stack([network_key, action_key]), subset_key, value_key

    def _follow(self, state: OffPolicyState, batch: Batch, key: Array) -> tuple[Array, Array]:
        """The actions that follow in targets, (batch, action_size), and their log-densities; `key` (2,)."""
        slow = self._slow(state)
        actor = slow.actor if self.policy.slow else state.now.actor

        def follow(obs: Array, network_key: Array, action_key: Array) -> tuple[Array, Array]:
            return self.policy.target(self._decide(actor, slow.encoder, obs, network_key).value, action_key)

        return jax.vmap(follow)(batch.later, *(jax.random.split(k, batch.reward.shape[0]) for k in key))

    def _bootstrap(self, state: OffPolicyState, batch: Batch, out: Array, log_prob: Array, key: Array) -> Array:
        """(batch,) targets, from what critics say of the actions that follow."""
        value = self._critics.bootstrapped(out, self.target, self.subset, key)
        if self.clip_value:
            value = state.range.clip(value)
        if state.temperature is not None:
            value = value - jnp.exp(state.temperature) * log_prob
        return batch.reward + batch.discount * value

    def _learn_critics(self, state: OffPolicyState, batch: Batch, key: Array):
        """The state, the loss, each transition's largest temporal-difference error, (batch,), and its target, (batch,)."""
        target_key, value_key = jax.random.split(key)

        def criticise(critics: CriticParams):
            """Values, targets, and running moments."""
            if self.slow is not None:
                out = self._critics(critics, state.now.encoder, batch.obs, batch.action, value_key)
                return out, self._target(state, batch, target_key), None
            follow_key, subset_key, _ = self._target_keys(target_key)
            action, log_prob = self._follow(state, batch, follow_key)
            now, later = (batch.obs, batch.action), (batch.later, action)
            out, following, running = self._critics.joint(critics, state.now.encoder, now, later, value_key)
            return out, self._bootstrap(state, batch, following, log_prob, subset_key), running

        def loss(critics: CriticParams):
            out, target, running = criticise(critics)
            target = jax.lax.stop_gradient(target)
            losses = jax.vmap(jax.vmap(self.value.loss, in_axes=(0, None)))(out, target)
            error = jnp.abs(self._critics.means(out) - target[:, None])
            return (losses.sum(1) * batch.weight).mean(), (error.max(1), target, running)

        (value, (error, target, running)), gradient = jax.value_and_grad(loss, has_aux=True)(state.now.critics)
        critics, moments = apply_gradient(self._critic_optimizer, gradient, state.critic_optimizer, state.now.critics)
        if running is not None:
            critics = eqx.tree_at(lambda c: c.network.running, critics, running)
        learned = (critics, moments, state.range.widened(target))
        state = eqx.tree_at(lambda s: (s.now.critics, s.critic_optimizer, s.range), state, learned)
        return state, (value, error, target)

    def _learn_actor(self, state: OffPolicyState, batch: Batch, key: Array) -> OffPolicyState:
        network_key, action_key, value_key = jax.random.split(key, 3)
        keys = [jax.random.split(k, batch.reward.shape[0]) for k in (network_key, action_key)]

        def loss(actor: PyTree) -> tuple[Array, tuple[Array, Array, Array]]:
            def decide(obs: Array, network_key: Array, action_key: Array) -> tuple[Array, Array, Array]:
                out = self._decide(actor, state.now.encoder, obs, network_key)
                return *self.policy.improve(out.value, action_key), firing_rate(out.spikes)

            action, log_prob, rate = jax.vmap(decide)(batch.obs, *keys)
            value = self._critics.means(self._critics(state.now.critics, state.now.encoder, batch.obs, action, value_key))
            value = {"first": value[:, 0], "min": value.min(1), "mean": value.mean(1)}[self.policy_value]
            if state.temperature is not None:
                value = value - jnp.exp(state.temperature) * log_prob
            size = jax.lax.stop_gradient(jnp.abs(value).mean()) + 1e-6
            busy = activity_above(self.activity_target, rate.mean())
            total = -value.mean() / size + self.activity_penalty * busy
            return total, (value.mean(), rate.mean(), log_prob.mean())

        gradient, (value, rate, log_prob) = jax.grad(loss, has_aux=True)(state.now.actor)
        actor, moments = apply_gradient(self._optimizer, gradient, state.actor_optimizer, state.now.actor)
        state = eqx.tree_at(lambda s: (s.now.actor, s.actor_optimizer), state, (actor, moments))
        state = self._learn_temperature(state, log_prob)
        temperature = jnp.zeros(()) if state.temperature is None else jnp.exp(state.temperature)
        return eqx.tree_at(lambda s: s.told, state, Told(value, rate, temperature))

    def _learn_temperature(self, state: OffPolicyState, log_prob: Array) -> OffPolicyState:
        if self.policy.temperature is None or state.temperature is None:
            return state
        size = state.spec.action_size
        learned = self.policy.temperature.update(state.temperature, state.temperature_optimizer, log_prob, size)
        return eqx.tree_at(lambda s: (s.temperature, s.temperature_optimizer), state, learned)

    def _copy(self, state: OffPolicyState) -> OffPolicyState:
        """Let the slow copies follow. What actor and critics see through changes only when they are copied."""
        if self.slow is None:
            return state
        slow = self.slow.follow(state.slow, state.now, state.updates)
        if self.representation is None and not self.clip_value:
            return eqx.tree_at(lambda s: s.slow, state, slow)
        due = self.slow.due(state.updates)
        encoder = jax.lax.cond(due, lambda: state.encoder, lambda: state.now.encoder)
        copied = (slow, encoder, state.range.taken(due))
        return eqx.tree_at(lambda s: (s.slow, s.now.encoder, s.range), state, copied, is_leaf=lambda x: x is None)
