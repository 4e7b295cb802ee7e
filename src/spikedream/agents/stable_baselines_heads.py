"""What the output of an actor of Stable-Baselines3 means, as that library has it: each of its algorithms explores in its own way.

A head is a frozen dataclass of the action's size; `out` is the actor's output, (parameters,), and `spread` what the library keeps
beside the actor to explore with. Actions are encoded: one-hot, or in [-1, 1].
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.nodes import Choice, Node, Squash
from spikedream.ops.distributions import Categorical

LOG_STD = (-20.0, 2.0)  # bounds of SAC's


@dataclass(frozen=True)
class Logits:
    """Of a categorical distribution: PPO and A2C."""

    size: int

    @property
    def parameters(self) -> int:
        return self.size

    def spread(self, noise: float) -> Array:
        """At first, from the deviation of the noise that is set beside."""
        return jnp.zeros(0)

    def mode(self, out: Array) -> Array:
        return Categorical(self.size).mode(out)

    def sample(self, out: Array, spread: Array, key: Array) -> tuple[Array, Array]:
        """An action, and its log-density or -probability."""
        action = Categorical(self.size).sample(out, key)
        return action, Categorical(self.size).log_prob(out, action)

    def describe(self) -> tuple[Node, ...]:
        """`mode`, for export."""
        return (Choice(),)


@dataclass(frozen=True)
class Values:
    """Of the actions, of which the best is taken, and with a probability `spread`, (), any: DQN."""

    size: int

    @property
    def parameters(self) -> int:
        return self.size

    def spread(self, noise: float) -> Array:
        return jnp.ones(())

    def mode(self, out: Array) -> Array:
        return Categorical(self.size).mode(out)

    def sample(self, out: Array, spread: Array, key: Array) -> tuple[Array, Array]:
        whether, which = jax.random.split(key)
        any_of_them = jax.nn.one_hot(jax.random.randint(which, (), 0, self.size), self.size)
        best = self.mode(out)
        action = jnp.where(jax.random.uniform(whether) < spread, any_of_them, best)
        return action, jnp.log(spread / self.size + (1 - spread) * (action * best).sum())

    def describe(self) -> tuple[Node, ...]:
        return (Choice(),)


@dataclass(frozen=True)
class Normal:
    """Means of a normal distribution, whose logarithmic deviations are `spread`, (size,); cut off at the bounds: PPO and A2C."""

    size: int

    @property
    def parameters(self) -> int:
        return self.size

    def spread(self, noise: float) -> Array:
        return jnp.zeros(self.size)

    def mode(self, out: Array) -> Array:
        return jnp.clip(out, -1, 1)

    def sample(self, out: Array, spread: Array, key: Array) -> tuple[Array, Array]:
        noise = jax.random.normal(key, out.shape)
        log_prob = (-0.5 * jnp.square(noise) - spread - 0.5 * jnp.log(2 * jnp.pi)).sum()
        return jnp.clip(out + jnp.exp(spread) * noise, -1, 1), log_prob

    def describe(self) -> tuple[Node, ...]:
        return ()  # the bounds of the environment cut it off


@dataclass(frozen=True)
class SquashedNormal:
    """Means and logarithmic deviations of a normal distribution, squashed by a tanh; further noise of deviation `spread`, (size,):
    SAC."""

    size: int

    @property
    def parameters(self) -> int:
        return 2 * self.size

    def spread(self, noise: float) -> Array:
        return jnp.full(self.size, noise, jnp.float32)

    def mode(self, out: Array) -> Array:
        return jnp.tanh(out[: self.size])

    def sample(self, out: Array, spread: Array, key: Array) -> tuple[Array, Array]:
        noise_key, more_key = jax.random.split(key)
        log_std = jnp.clip(out[self.size :], *LOG_STD)
        noise = jax.random.normal(noise_key, (self.size,))
        x = out[: self.size] + jnp.exp(log_std) * noise
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2x)), stable for large |x|
        change = 2 * (jnp.log(2.0) - x - jax.nn.softplus(-2 * x))
        log_prob = (-0.5 * jnp.square(noise) - log_std - 0.5 * jnp.log(2 * jnp.pi) - change).sum()
        return jnp.clip(jnp.tanh(x) + spread * jax.random.normal(more_key, x.shape), -1, 1), log_prob

    def describe(self) -> tuple[Node, ...]:
        return (Squash(self.size),)


@dataclass(frozen=True)
class DeterministicHead:
    """An action before its tanh, with noise of deviation `spread`, (size,): TD3. Its log-density is 0."""

    size: int

    @property
    def parameters(self) -> int:
        return self.size

    def spread(self, noise: float) -> Array:
        return jnp.full(self.size, noise, jnp.float32)

    def mode(self, out: Array) -> Array:
        return jnp.tanh(out)

    def sample(self, out: Array, spread: Array, key: Array) -> tuple[Array, Array]:
        return jnp.clip(self.mode(out) + spread * jax.random.normal(key, out.shape), -1, 1), jnp.zeros(())

    def describe(self) -> tuple[Node, ...]:
        return (Squash(self.size),)


Head = Logits | Values | Normal | SquashedNormal | DeterministicHead
HEADS: Mapping[str, Mapping[bool, type[Head]]] = {  # algorithm, whether the actions are discrete
    "PPO": {True: Logits, False: Normal},
    "A2C": {True: Logits, False: Normal},
    "DQN": {True: Values},
    "SAC": {False: SquashedNormal},
    "TD3": {False: DeterministicHead},
}
