"""The critics of an off-policy agent: what an action is worth where something is observed."""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.agents.representation import SALE, average_l1
from spikedream.ops.distributions import ValueDistribution
from spikedream.snn.codings import Affine, affine
from spikedream.snn.networks import AnyNetwork
from spikedream.types import PyTree, Spec


class CriticParams(eqx.Module):
    entry: Affine | None  # of observation and action, beside a representation
    network: PyTree


@dataclass(frozen=True)
class ActionValues:
    """Several critics; an agent makes one of its fields.

    With a representation a critic sees average_l1(linear(s, a)), z_sa and z_s (Fujimoto et al. 2023, SALE, eq. 5), without one
    observation and action.
    """

    critic: AnyNetwork
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
