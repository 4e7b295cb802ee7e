"""Learned representations of observations and actions, which critics and actors of off-policy agents may see."""

from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents.actor_critic import apply_gradient
from spikedream.bounds import check_bounds
from spikedream.snn.conventional import MLP
from spikedream.snn.networks import AnyNetwork
from spikedream.spec import Spec
from spikedream.types import PyTree


def average_l1(x: Array) -> Array:
    """x over the mean of its magnitudes (Fujimoto et al. 2023, eq. 3); last axis."""
    return x / jnp.maximum(jnp.abs(x).mean(-1, keepdims=True), 1e-8)


class Embedders(eqx.Module):
    state: PyTree  # observation to z_s
    pair: PyTree  # z_s and action to z_sa, which predicts the next z_s


# With the weights of a uniform distribution within 1 / sqrt(inputs), as the source has them: a third of their variance.
EMBEDDER = MLP(hidden=(256, 256), activation="elu", gain=3**-0.5, hidden_gain=3**-0.5)


@dataclass(frozen=True)
class SALE:
    """State-action learned embeddings (Fujimoto et al. 2023, "For SALE: state-action representation learning for deep reinforcement
    learning"): z_s = average_l1(f(s)); z_sa = g(z_s, a) is fitted to the z_s of the next observation."""

    size: int = 256
    state: AnyNetwork = EMBEDDER
    pair: AnyNetwork = EMBEDDER
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        check_bounds(self, size=(1, None), learning_rate=(0, None))

    def init(self, spec: Spec, key: Array) -> Embedders:
        state_key, pair_key = jax.random.split(key)
        return Embedders(
            self.state.init(spec.obs_size, self.size, state_key),
            self.pair.init(self.size + spec.action_size, self.size, pair_key),
        )

    def embed(self, params: Embedders, obs: Array) -> Array:
        """z_s, (size,), of an observation (obs_size,)."""
        return average_l1(self.state(params.state, obs).value)

    def embed_pair(self, params: Embedders, embedded: Array, action: Array) -> Array:
        """z_sa, (size,), of z_s (size,) and an action (action_size,)."""
        return self.pair(params.pair, jnp.concatenate([embedded, action])).value

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def update(
        self, params: Embedders, moments: PyTree, obs: Array, action: Array, next_obs: Array
    ) -> tuple[Embedders, PyTree, Array]:
        """Parameters and moments after one step on transitions, fields (batch, ...), and their mean loss, ()."""

        def loss(params: Embedders) -> Array:
            return jax.vmap(partial(self.loss, params))(obs, action, next_obs).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        return *apply_gradient(self.optimizer, gradient, moments, params), value

    def loss(self, params: Embedders, obs: Array, action: Array, next_obs: Array) -> Array:
        """() of one transition."""
        wanted = jax.lax.stop_gradient(self.embed(params, next_obs))
        return jnp.square(self.embed_pair(params, self.embed(params, obs), action) - wanted).mean()
