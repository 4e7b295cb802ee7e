"""The critics of an off-policy agent: what an action is worth where something is observed."""

from dataclasses import dataclass
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.representation import SALE, average_l1
from spikedream.ops.distributions import TwoHot, ValueDistribution
from spikedream.snn.affine import Affine, affine
from spikedream.snn.batch_norm import BatchMoments, BatchNormMLP
from spikedream.snn.networks import AnyNetwork
from spikedream.spec import Spec
from spikedream.types import Metrics, PyTree

AnyCritic = AnyNetwork | BatchNormMLP
Pairs = tuple[Array, Array]  # observations (rows, obs_size) and actions (rows, action_size)


class CriticParams(eqx.Module):
    entry: Affine | None  # of observation and action, beside a representation
    network: PyTree


@dataclass(frozen=True)
class ActionValues:
    """Several critics; an agent makes one of its fields.

    With a representation a critic sees average_l1(linear(s, a)), z_sa and z_s (Fujimoto et al. 2023, SALE, eq. 5), without one
    observation and action.
    """

    critic: AnyCritic
    critics: int
    value: ValueDistribution
    representation: SALE | None

    def init(self, spec: Spec, key: Array) -> CriticParams:
        """Leaves (critics, ...)."""
        return jax.vmap(lambda k: self._init(spec, k))(jax.random.split(key, self.critics))

    def _init(self, spec: Spec, key: Array) -> CriticParams:
        entry_key, network_key = jax.random.split(key)
        size, outputs = spec.obs_size + spec.action_size, self.value.parameters
        if self.representation is None:
            return CriticParams(None, self.critic.init(size, outputs, network_key))
        embedded = self.representation.size
        return CriticParams(affine(size, embedded, entry_key), self.critic.init(3 * embedded, outputs, network_key))

    def __call__(self, params: CriticParams, encoder: PyTree, obs: Array, action: Array, key: Array) -> Array:
        """(batch, critics, value.parameters) of observations (batch, obs_size) and actions (batch, action_size), seen through the
        representation's `encoder`."""
        keys = jax.random.split(key, obs.shape[0])
        return jax.vmap(lambda o, a, k: self._criticise(params, encoder, o, a, k))(obs, action, keys)

    def joint(
        self, params: CriticParams, encoder: PyTree, first: Pairs, second: Pairs, key: Array
    ) -> tuple[Array, Array, BatchMoments | None]:
        """What `__call__` gives for `first` and for `second`, in one pass over the rows of both, as whose moments a
        `BatchNormMLP` standardises (Bhatt et al. 2024, CrossQ); and its running moments, leaves (critics, ...)."""
        obs, action = (jnp.concatenate(both) for both in zip(first, second, strict=True))
        if isinstance(self.critic, BatchNormMLP):
            seen, critic = jnp.concatenate([obs, action], axis=1), self.critic
            out, running = jax.vmap(lambda one: critic.on_batch(one.network, seen))(params)
            out = jnp.swapaxes(out, 0, 1)
        else:
            out, running = self(params, encoder, obs, action, key), None
        rows = first[0].shape[0]
        return out[:rows], out[rows:], running

    def bootstrapped(self, out: Array, pessimism: Literal["min", "mean"], subset: int | None, key: Array) -> Array:
        """(batch,) from `out` as `__call__` gives it: the least or the mean of all critics' values, or of `subset` drawn ones."""
        value = self.means(out)
        if subset is not None:
            value = value[:, jax.random.permutation(key, self.critics)[:subset]]
        return value.min(1) if pessimism == "min" else value.mean(1)

    def beyond(self, target: Array) -> Metrics:
        """The share of targets, (batch,), that `value` cannot follow; nothing where it follows any."""
        if not isinstance(self.value, TwoHot):
            return {}
        return {"targets_beyond_limit": (jnp.abs(target) > self.value.limit).astype(jnp.float32).mean()}

    def means(self, out: Array) -> Array:
        """(batch, critics) the values that `out` means."""
        return jax.vmap(jax.vmap(self.value.mean))(out)

    def _criticise(self, params: CriticParams, encoder: PyTree, obs: Array, action: Array, key: Array) -> Array:
        seen = jnp.concatenate([obs, action])
        if self.representation is None:
            return jax.vmap(lambda critic: self.critic(critic.network, seen, (), key).value)(params)
        embedded = self.representation.embed(encoder, obs)
        pair = self.representation.embed_pair(encoder, embedded, action)

        def one(critic: CriticParams) -> Array:
            assert critic.entry is not None
            entry = average_l1(critic.entry(seen[None])[0])
            return self.critic(critic.network, jnp.concatenate([entry, pair, embedded]), (), key).value

        return jax.vmap(one)(params)
