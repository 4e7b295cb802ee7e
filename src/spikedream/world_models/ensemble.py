"""An ensemble of networks that predicts normalised state change, reward and termination.

Spiking or conventional by the fields `dynamics` and `ending`; the members differ in their initial weights and in the data that each
of them never sees. After PETS (Chua et al. 2018) for the ensemble and MOPO (Yu et al. 2020) for using its disagreement.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.snn.codings import RateReadout
from spikedream.snn.networks import AnyNetwork, SpikingNetwork
from spikedream.snn.neurons import LIF
from spikedream.types import Experience, Metrics, Prediction, PyTree, Spec, Transition, check_bounds


class Member(eqx.Module):
    """Learned parameters of one member; stacked over members in `EnsembleState`."""

    dynamics: PyTree  # (obs, action) -> state change, reward (and their log-variances)
    ending: PyTree  # next obs -> logit of termination
    log_variance: tuple[Array, Array]  # lower and upper bound of the log-variances, (obs_size + 1,) each


class EnsembleState(eqx.Module):
    members: PyTree  # a Member, leaves (members, ...)
    key: Array  # decides which transitions are held out from which member, for the whole run
    scale: Array  # (obs_size,) root mean square of the normalised state change
    low: Array  # (obs_size,) smallest normalised observation in the experience
    high: Array  # (obs_size,) largest
    endings: Array  # () 1 once the experience holds a termination; before that none is predicted


class Carry(NamedTuple):
    obs: Array  # (obs_size,)
    member: Array  # () int32, whose predictions this trajectory follows


class Fit(NamedTuple):
    """State of the fitting loop."""

    members: PyTree  # Member
    optimizer: PyTree
    best: PyTree
    best_loss: Array  # (members,) lowest held-out loss so far
    waited: Array  # () int32, checks since any member improved
    updates: Array  # () int32
    train_loss: Array  # () mean over the last block


@dataclass(frozen=True)
class Ensemble:
    """Hyper-parameters of the ensemble.

    Each imagined trajectory follows one member (TS-infinity of PETS) while all of them are evaluated for their disagreement.
    """

    members: int = 4
    dynamics: AnyNetwork = SpikingNetwork(neuron=LIF(decay=(0.99, 0.999)))  # little leak: starts out linear
    # Additive over the observation's entries (`fan_in=1`) and sparse: what ends an episode is mostly a bound on one of them.
    ending: AnyNetwork = SpikingNetwork(
        hidden=(128,), neuron=LIF(decay=(0.5, 0.95)), readout=RateReadout(), fan_in=1, gain=1.5, bias=(-2.0, 1.0)
    )
    ending_sparsity: float = 1e-2  # L1 penalty on the ending's readout weights
    gaussian: bool = False  # predict a variance too, trained by likelihood (aleatoric uncertainty)
    termination: Literal["mean", "max"] = "max"  # of the members' probabilities; "max" is pessimistic
    learning_rate: float = 5e-3  # at the start of a phase; falls to a hundredth along a cosine
    weight_decay: float = 1e-4
    curvature_penalty: float = 1.0  # on the dynamics' departure from a linear map (see `Network.curvature`)
    gradient_clip: float = 10.0  # global norm, per member
    batch: int = 64
    updates: int = 2000  # per phase, at most
    holdout: float = 0.0  # share of the transitions that each member never trains on; 0 switches early stopping off
    check_every: int = 200  # updates between checks on held-out data
    patience: int = 4  # checks without improvement before fitting stops
    terminal_weight: float = 50.0  # upper bound on how much more a terminal example counts
    support_weight: float = 0.2  # uncertainty per standard deviation outside the range of all experience (MOReL's unknown states)
    support_margin: float = 0.2  # by how much of its own width that range is widened at each end
    obs_bound: float = 20.0  # imagined observations stay within this many standard deviations

    def __post_init__(self) -> None:
        at_least_one, not_negative = (1, None), (0, None)
        check_bounds(self, members=at_least_one, batch=at_least_one, updates=at_least_one, check_every=at_least_one)
        check_bounds(self, patience=at_least_one, learning_rate=not_negative, weight_decay=not_negative, holdout=(0, 0.9))
        check_bounds(self, curvature_penalty=not_negative, ending_sparsity=not_negative, gradient_clip=(1e-9, None))
        check_bounds(self, terminal_weight=at_least_one, support_weight=not_negative, support_margin=not_negative)
        check_bounds(self, obs_bound=(1, None))
        if self.updates % min(self.check_every, self.updates):
            raise ValueError(f"check_every is {self.check_every}, which does not divide updates ({self.updates})")

    def init(self, spec: Spec, key: Array) -> EnsembleState:
        member_key, holdout_key = jax.random.split(key)
        members: PyTree = jax.vmap(lambda k: self._init_member(spec, k))(jax.random.split(member_key, self.members))
        low, high = jnp.zeros(spec.obs_size), jnp.zeros(spec.obs_size)
        return EnsembleState(members, holdout_key, jnp.ones(spec.obs_size), low, high, jnp.zeros(()))

    def _init_member(self, spec: Spec, key: Array) -> Member:
        dynamics, ending = jax.random.split(key)
        targets = spec.obs_size + 1
        return Member(
            self.dynamics.init(spec.obs_size + spec.action_size, targets * (2 if self.gaussian else 1), dynamics),
            self.ending.init(spec.obs_size, 1, ending),
            (jnp.full(targets, -10.0, jnp.float32), jnp.full(targets, 0.5, jnp.float32)),
        )

    def _optimizer(self) -> optax.GradientTransformation:
        rate = optax.cosine_decay_schedule(self.learning_rate, self.updates, alpha=0.01)
        return optax.chain(
            optax.clip_by_global_norm(self.gradient_clip), optax.adamw(rate, weight_decay=self.weight_decay, mask=_matrices)
        )

    # ---- predicting

    def start(self, state: EnsembleState, obs: Array, key: Array) -> Carry:
        return Carry(obs, jax.random.randint(key, (), 0, self.members))

    def step(self, state: EnsembleState, carry: Carry, action: Array, key: Array) -> tuple[Carry, Prediction]:
        noise_key, dynamics_key, ending_key = jax.random.split(key, 3)
        inputs = jnp.concatenate([carry.obs, action])
        mean, log_variance, spikes = jax.vmap(self._predict, in_axes=(0, None, None))(state.members, inputs, dynamics_key)
        change, deviation = mean[carry.member], jnp.exp(0.5 * log_variance[carry.member])
        if self.gaussian:
            change = change + deviation * jax.random.normal(noise_key, change.shape)
        obs = jnp.clip(carry.obs + change[:-1] * state.scale, -self.obs_bound, self.obs_bound)
        ending = jax.vmap(lambda m: self.ending(m.ending, obs, key=ending_key))(state.members)
        outside = jnp.maximum(state.low - obs, 0) + jnp.maximum(obs - state.high, 0)
        probability = jax.nn.sigmoid(ending.value[:, 0]) * state.endings
        return Carry(obs, carry.member), Prediction(
            obs=obs,
            reward=change[-1],
            terminated=probability.max() if self.termination == "max" else probability.mean(),
            uncertainty=jnp.sqrt(mean[:, :-1].var(0).mean() + 1e-12) + self.support_weight * outside.sum(),
            spikes=(*spikes, *ending.spikes),
        )

    def _predict(self, member: Member, inputs: Array, key: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """(mean, log-variance, spikes) of scaled state change and reward, (obs_size + 1,) each."""
        out = self.dynamics(member.dynamics, inputs, key=key)
        if not self.gaussian:
            return out.value, jnp.zeros_like(out.value), out.spikes
        mean, log_variance = jnp.split(out.value, 2)
        low, high = member.log_variance
        # PETS, appendix A.1: soft bounds on the predicted variance
        log_variance = high - jax.nn.softplus(high - log_variance)
        return mean, low + jax.nn.softplus(log_variance - low), out.spikes

    # ---- fitting

    def update(self, state: EnsembleState, experience: Experience, key: Array) -> tuple[EnsembleState, Metrics]:
        """Warm-started mini-batch steps; with `holdout`, stops early and returns each member's best parameters."""
        held_out = self._held_out(state.key, experience)  # (members, capacity)
        everything = experience.gather(jnp.arange(experience.capacity))
        filled = (jnp.arange(experience.capacity) < experience.size).astype(jnp.float32)
        change = jnp.square(everything.next_obs - everything.obs) * filled[:, None]
        scale = jnp.sqrt(change.sum(0) / jnp.maximum(filled.sum(), 1)) + 1e-6
        terminals = (everything.terminated * filled).sum()
        weight = jnp.clip((filled.sum() - terminals) / jnp.maximum(terminals, 1), 1.0, self.terminal_weight)

        fit_key, check_key = jax.random.split(key)
        length = min(self.check_every, self.updates)
        optimizer = self._optimizer()
        loss = eqx.Partial(self._loss, scale=scale, weight=weight)
        # Each member draws, with replacement, from the transitions that it may see.
        visible = jnp.cumsum(filled[None] * (1 - held_out), axis=1)
        hidden = jnp.cumsum(filled[None] * held_out, axis=1)

        def draw(cumulative: Array, key: Array, count: int) -> Transition:
            targets = jax.random.uniform(key, (self.members, count)) * cumulative[:, -1:]
            return experience.gather(jax.vmap(lambda c, t: jnp.searchsorted(c, t, side="right"))(cumulative, targets))

        def one_update(fit: Fit, key: Array) -> tuple[Fit, Array]:
            draw_key, spike_key = jax.random.split(key)
            batch = draw(visible, draw_key, self.batch)
            values, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(0, 0, None))(fit.members, batch, spike_key)
            changes, opt = jax.vmap(optimizer.update)(gradients, fit.optimizer, fit.members)
            return fit._replace(members=optax.apply_updates(fit.members, changes), optimizer=opt), values.mean()

        def block(fit: Fit) -> Fit:
            keys = jax.random.split(jax.random.fold_in(fit_key, fit.updates), length)
            fit, losses = jax.lax.scan(one_update, fit, keys)
            fit = fit._replace(updates=fit.updates + length, train_loss=losses.mean())
            if self.holdout == 0:
                return fit._replace(best=fit.members)
            check = draw(hidden, check_key, 256)
            return _keep_best(fit, jax.vmap(loss, in_axes=(0, 0, None))(fit.members, check, check_key))

        first = Fit(
            state.members,
            jax.vmap(optimizer.init)(state.members),
            state.members,
            jnp.full(self.members, jnp.inf, jnp.float32),
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.int32),
            jnp.zeros(()),
        )
        fit = jax.lax.while_loop(lambda f: (f.updates < self.updates) & (f.waited < self.patience), block, first)
        seen = (filled > 0)[:, None]
        low = jnp.where(seen, everything.next_obs, jnp.inf).min(0)
        high = jnp.where(seen, everything.next_obs, -jnp.inf).max(0)
        margin = self.support_margin * (high - low)
        low, high = low - margin, high + margin
        after = EnsembleState(fit.best, state.key, scale, low, high, jnp.minimum(terminals, 1.0))
        metrics = {"model_loss": fit.train_loss, "model_updates": fit.updates}
        if self.holdout > 0:
            metrics["model_holdout_loss"] = fit.best_loss.mean()
        return after, metrics

    def _held_out(self, key: Array, experience: Experience) -> Array:
        """(members, capacity) 1 where a member may not train on a transition; drawn anew for each ring position, not each fit."""
        draw = jax.random.uniform(key, (self.members, experience.capacity))
        return (draw < self.holdout).astype(jnp.float32)

    def _loss(self, member: Member, batch: Transition, key: Array, *, scale: Array, weight: Array) -> Array:
        """Of one member on its own mini-batch, fields (batch, ...)."""
        keys = jax.random.split(key, batch.reward.shape[0])
        inputs = jnp.concatenate([batch.obs, batch.action], axis=1)
        mean, log_variance, _ = jax.vmap(self._predict, in_axes=(None, 0, 0))(member, inputs, keys)
        change = (batch.next_obs - batch.obs) / scale[None]
        error = jnp.square(mean - jnp.concatenate([change, batch.reward[:, None]], axis=1))
        if self.gaussian:
            low, high = member.log_variance
            regression = (error * jnp.exp(-log_variance) + log_variance).mean() + 0.01 * (high - low).mean()
        else:
            regression = error.mean()
        regression = regression + self.curvature_penalty * self.dynamics.curvature(member.dynamics)
        sparsity = self.ending_sparsity * self.ending.readout_l1(member.ending)
        # Every state that was acted in is an example of not having ended.
        ended = jax.vmap(lambda obs, key: self.ending(member.ending, obs, key=key).value[0])(batch.next_obs, keys)
        alive = jax.vmap(lambda obs, key: self.ending(member.ending, obs, key=key).value[0])(batch.obs, keys)
        cross_entropy = optax.sigmoid_binary_cross_entropy(ended, batch.terminated)
        cross_entropy = cross_entropy * jnp.where(batch.terminated > 0, weight, 1.0)
        return regression + sparsity + 0.5 * (cross_entropy.mean() + jax.nn.softplus(alive).mean())


def _matrices(params: PyTree) -> PyTree:
    """Only weights decay: a neuron's time constant or threshold has no reason to tend to zero."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)


def _keep_best(fit: Fit, losses: Array) -> Fit:
    better = losses < fit.best_loss - 1e-4

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)

    return fit._replace(
        best=jax.tree.map(choose, fit.members, fit.best),
        best_loss=jnp.where(better, losses, fit.best_loss),
        waited=jnp.where(better.any(), 0, fit.waited + 1),
    )
