"""One member of an ensemble: two networks, what they predict and how they are fitted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.snn.networks import AnyNetwork
from spikedream.snn.protocols import Output
from spikedream.spec import Spec
from spikedream.types import PyTree, Transition, firing_rates
from spikedream.world_models.impacts import impact_loss
from spikedream.world_models.priors import Prior, under
from spikedream.world_models.robust import bounded_squares, huber
from spikedream.world_models.weights import Weights


class Member(eqx.Module):
    """Learned parameters; stacked over members in `EnsembleState`."""

    dynamics: PyTree  # (obs, action) -> state change, reward (and their log-variances)
    ending: PyTree  # next obs -> logit of termination (and the reward of one, where that is its to predict)
    log_variance: tuple[Array, Array]  # lower and upper bound of the log-variances, (obs_size + 1,) each
    impact: PyTree  # next obs -> as `impact_loss` explains it, by a network like the ending's; None where none are predicted


class RareEvents(NamedTuple):
    """What all members tell of endings, or of impacts. A dream asks for rates alone: no spikes leave the branch that makes them."""

    value: Array  # (members, outputs)
    spikes: tuple[Array, ...]  # per layer (members, ticks, neurons)
    rates: tuple[Array, ...]  # their means, () each


@dataclass(frozen=True)
class MemberModel:
    """Networks and hyper-parameters, as `Ensemble` explains them; it makes one of its fields."""

    dynamics: AnyNetwork
    ending: AnyNetwork
    gaussian: bool
    ending_sparsity: float
    curvature_penalty: float
    adversarial: float
    terminal_reward: Literal["dynamics", "ending"]
    robust: bool
    impacts: bool

    @property
    def endings_pay(self) -> bool:
        """Whether what an ending pays is predicted from where it ends."""
        return self.terminal_reward == "ending"

    def init(self, spec: Spec, latent: int, key: Array) -> Member:
        dynamics, ending = jax.random.split(key)
        targets, impact = spec.obs_size + 1, None
        if self.impacts:
            ending, impact_key = jax.random.split(ending)
            impact = self.ending.init(spec.obs_size, 2 * spec.obs_size, impact_key)
        return Member(
            self.dynamics.init(spec.obs_size + latent + spec.action_size, targets * (2 if self.gaussian else 1), dynamics),
            self.ending.init(spec.obs_size, 2 if self.endings_pay else 1, ending),
            (jnp.full(targets, -10.0, jnp.float32), jnp.full(targets, 0.5, jnp.float32)),
            impact,
        )

    def moments(self, member: Member, inputs: Array, key: Array) -> tuple[Array, Array, tuple[Array, ...]]:
        """(mean, log-variance, spikes) of scaled state change and reward, (obs_size + 1,) each."""
        out = self.dynamics(member.dynamics, inputs, key=key)
        if not self.gaussian:
            return out.value, jnp.zeros_like(out.value), out.spikes
        mean, log_variance = jnp.split(out.value, 2)
        low, high = member.log_variance
        # PETS, appendix A.1: soft bounds on the predicted variance
        log_variance = high - jax.nn.softplus(high - log_variance)
        return mean, low + jax.nn.softplus(log_variance - low), out.spikes

    def of_all(self, members: PyTree, steps: Transition, latent: Array, key: Array) -> tuple[Array, Array]:
        """Means and deviations that each of the stacked `members` predicts, (members, rows, obs_size + 1); fields of `steps`
        (rows, ...)."""

        def predict(member: Member, inputs: Array) -> tuple[Array, Array]:
            mean, log_variance, _ = self.moments(member, inputs, key)
            return mean, jnp.exp(0.5 * log_variance)

        inputs = jnp.concatenate([steps.obs, latent, steps.action], axis=1)
        return jax.vmap(jax.vmap(predict, in_axes=(None, 0)), in_axes=(0, None))(members, inputs)

    def endings(self, members: PyTree, prior: Prior | None, any_yet: Array, obs: Array, key: Array) -> RareEvents:
        """By each of the stacked `members`, value (members, outputs). Nothing is computed where none has been `any_yet`, ()."""
        return _unless_none(any_yet, lambda m, obs: self.ending(under(self.ending, m.ending, prior), obs, key=key), members, obs)

    def jumps(self, members: PyTree, any_yet: Array, obs: Array, key: Array) -> RareEvents:
        """Likewise what they tell of impacts, value (members, 2 obs_size)."""
        return _unless_none(any_yet, lambda m, obs: self.ending(m.impact, obs, key=key), members, obs)

    def held_out(
        self, steps: Transition, held: Array, scale: Array, weights: Weights, key: Array, member: Member, prior: Prior
    ) -> tuple[Array, Array]:
        """Mean squared error of one member's dynamics and mean cross-entropy of its ending, () each, on the transitions where
        `held`, (rows,), is 1; fields of `steps` (rows, ...)."""
        number = jnp.maximum(held.sum(), 1)
        inputs = jnp.concatenate([steps.obs, steps.action], axis=1)
        mean = jax.vmap(lambda x: self.moments(member, x, key)[0])(inputs)
        error = self.squared(self.misses(mean, scale, steps), held).mean(1)
        params = under(self.ending, member.ending, prior)
        ended = jax.vmap(lambda obs: self.ending(params, obs, key=key).value)(self._following(steps, mean, scale))
        surprise = self._surprise(ended, steps, weights)
        return (error * held).sum() / number, (surprise * held).sum() / number

    def misses(self, mean: Array, scale: Array, steps: Transition) -> Array:
        """(rows, obs_size + 1) from the `mean` that the dynamics predict to what happened, of that shape; fields of `steps`
        (rows, ...). A reward that is not theirs to predict is never missed."""
        missed = targets_of(scale, steps) - mean
        return missed.at[:, -1].multiply(1 - steps.terminated) if self.endings_pay else missed

    def squared(self, missed: Array, counts: Array) -> Array:
        """Of what is missed, (rows, obs_size + 1), but bounded where the model is robust, save for the reward; `counts`, (rows,),
        is 0 where a row does not."""
        if not self.robust:
            return jnp.square(missed)
        return jnp.concatenate([bounded_squares(missed[:, :-1], counts), jnp.square(missed[:, -1:])], axis=1)

    def _following(self, steps: Transition, mean: Array, scale: Array) -> Array:
        """(rows, obs_size) by which endings are told: what followed, or what the dynamics say, of whose `mean` (rows, obs_size + 1)
        nobody demands the impact with which a task ends."""
        return steps.obs + mean[:, :-1] * scale[None] if self.robust else steps.next_obs

    def _surprise(self, ended: Array, steps: Transition, weights: Weights) -> Array:
        """(rows,) cross-entropies of endings, and squared errors of what they pay, where `ended` (rows, outputs) is predicted."""
        surprise = optax.sigmoid_binary_cross_entropy(ended[:, 0], steps.terminated)
        if self.endings_pay:
            surprise = surprise + steps.terminated * weights.last_reward * jnp.square(ended[:, 1] - steps.reward)
        return surprise * jnp.where(steps.terminated > 0, weights.terminal, 1.0)

    def loss(
        self,
        member: Member,
        drawn: tuple[Transition, Array, Array],
        key: Array,
        *,
        scale: Array,
        weights: Weights,
        prior: Prior | None = None,
        impact: Array | None = None,
    ) -> Array:
        """Of one member on its own mini-batch, the latent inputs there (batch, latent) and the samples' importance (batch,), under
        the `prior` that was found, or that which is given. `impact` is the typical one, (obs_size,) in the units of `scale`, 0 of
        entries without any; None: nothing is learned of them."""
        batch, latent, importance = drawn
        keys = jax.random.split(key, batch.reward.shape[0])
        regression = partial(self._regression, member, batch, latent, importance, keys, scale, weights)
        shift = jnp.zeros(batch.obs.shape)
        if self.adversarial > 0:
            # The fast gradient sign method (Goodfellow et al. 2015, section 4).
            shift = self.adversarial * jnp.sign(jax.lax.stop_gradient(jax.grad(lambda x: regression(x)[0])(shift)))
        curvature_penalty = self.curvature_penalty if prior is None else prior.curvature
        loss, mean = regression(shift)
        loss += curvature_penalty * self.dynamics.curvature(member.dynamics)
        following = self._following(batch._replace(obs=batch.obs + shift), mean, scale)
        # Where a recurrent model imagined a state, or the dynamics told it, safety must not shape it.
        steps = jax.lax.stop_gradient(batch._replace(next_obs=following))
        told = (member, steps, importance, keys, weights, prior)
        if not self.robust:  # a branch rounds otherwise than what is compiled as one, and recorded runs are to come out the same
            return loss + self._ending_loss(*told)
        loss += jax.lax.cond(weights.ended, self._ending_loss, _nothing, *told)
        if impact is None:
            return loss
        missed = jax.lax.stop_gradient(self.misses(mean, scale, batch)[:, :-1])
        goes_on = importance * (1 - batch.terminated)  # what an ending does to the state is of no account
        return loss + jax.lax.cond((impact > 0).any(), self._impact_loss, _nothing, member, steps, missed, impact, goes_on, keys)

    def _impact_loss(self, member: Member, steps: Transition, missed: Array, impact: Array, counts: Array, keys: Array) -> Array:
        told = jax.vmap(lambda obs, key: self.ending(member.impact, obs, key=key).value)(steps.next_obs, keys)
        return impact_loss(told, missed, impact, counts)

    def _ending_loss(
        self, member: Member, steps: Transition, importance: Array, keys: Array, weights: Weights, prior: Prior | None
    ) -> Array:
        """() cross-entropy, and what keeps the network sparse; every state that was acted in is an example of not having ended."""
        params = under(self.ending, member.ending, prior)
        sparsity = self.ending_sparsity * self.ending.readout_l1(member.ending)
        ended = jax.vmap(lambda obs, key: self.ending(params, obs, key=key).value)(steps.next_obs, keys)
        alive = jax.vmap(lambda obs, key: self.ending(params, obs, key=key).value[0])(steps.obs, keys)
        surprise = self._surprise(ended, steps, weights) * importance
        return sparsity + 0.5 * (surprise.mean() + jax.nn.softplus(alive).mean())

    def _regression(
        self,
        member: Member,
        batch: Transition,
        latent: Array,
        importance: Array,
        keys: Array,
        scale: Array,
        weights: Weights,
        shift: Array,
    ) -> tuple[Array, Array]:
        """Squared error, or the Gaussian's negative log-likelihood, and the means (batch, obs_size + 1), with the observations
        moved by `shift` (batch, obs_size): the next observation is still the true one, so that a change is to be predicted which
        undoes the shift."""
        inputs = jnp.concatenate([batch.obs + shift, latent, batch.action], axis=1)
        mean, log_variance, _ = jax.vmap(self.moments, in_axes=(None, 0, 0))(member, inputs, keys)
        missed = self.misses(mean, scale, batch._replace(obs=batch.obs + shift))
        error = self.squared(missed, importance)
        if self.robust:
            error = error.at[:, -1].set(huber(missed[:, -1], weights.reward, missed.shape[1] - 1))
        of_reward = jnp.where(batch.terminated > 0, weights.last_reward, weights.reward)
        weight = importance[:, None] * jnp.ones(error.shape).at[:, -1].set(of_reward)
        if not self.gaussian:
            return (error * weight).mean(), mean
        low, high = member.log_variance
        likelihood = error * jnp.exp(-log_variance) + log_variance
        return (likelihood * weight).mean() + 0.01 * (high - low).mean(), mean


def _nothing(*_: PyTree) -> Array:
    return jnp.zeros(())


def _unless_none(any_yet: Array, tell: Callable[[Member, Array], Output], members: PyTree, obs: Array) -> RareEvents:
    def told(obs: Array) -> RareEvents:
        out = jax.vmap(lambda m: tell(m, obs))(members)
        return RareEvents(out.value, out.spikes, firing_rates(out.spikes))

    def skipped(obs: Array) -> RareEvents:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(told, obs))

    return jax.lax.cond(any_yet, told, skipped, obs)


def targets_of(scale: Array, steps: Transition) -> Array:
    """(rows, obs_size + 1) scaled state change and reward."""
    return jnp.concatenate([(steps.next_obs - steps.obs) / scale[None], steps.reward[:, None]], axis=1)
