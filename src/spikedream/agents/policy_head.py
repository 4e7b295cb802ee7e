"""What the output of an off-policy agent's actor means: a deterministic action with noise, or a distribution of its own.

A head is a frozen dataclass; `out` is the actor's output, (parameters(size),), for actions of `size` dimensions in [-1, 1].
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.agents.actor_critic import apply_gradient
from spikedream.bounds import check_bounds
from spikedream.nodes import Squash
from spikedream.ops.distributions import TanhNormal
from spikedream.types import PyTree


@dataclass(frozen=True)
class Temperature:
    """What a unit of entropy is worth as reward, learned so that the entropy is `entropy` for each dimension of the action
    (Haarnoja et al. 2018, "Soft actor-critic algorithms and applications", eq. 18)."""

    entropy: float = -1.0
    first: float = 0.1
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        check_bounds(self, first=(1e-9, None), learning_rate=(0, None))

    @property
    def _optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.learning_rate)

    def init(self) -> tuple[Array, PyTree]:
        """Its logarithm, (), and the optimiser's moments."""
        logarithm = jnp.asarray(jnp.log(self.first), jnp.float32)
        return logarithm, self._optimizer.init(logarithm)

    def update(self, logarithm: Array, moments: PyTree, log_prob: Array, size: int) -> tuple[Array, PyTree]:
        """What `init` gives, after one step."""
        return apply_gradient(self._optimizer, jax.grad(self.loss)(logarithm, log_prob, size), moments, logarithm)

    def loss(self, logarithm: Array, log_prob: Array, size: int) -> Array:
        """() by the temperature's logarithm (), from the mean log-density of actions of `size` dimensions."""
        return -logarithm * (log_prob + self.entropy * size)


@dataclass(frozen=True)
class Deterministic:
    """tanh(out), explored with Gaussian noise; targets are smoothed with clipped noise (Fujimoto et al. 2018, TD3, eq. 14)."""

    noise: float = 0.1  # standard deviation, of exploration
    target_noise: float = 0.2  # likewise, of the actions that targets are computed with
    target_clip: float = 0.5  # its largest magnitude

    def __post_init__(self) -> None:
        check_bounds(self, noise=(0, None), target_noise=(0, None), target_clip=(0, None))

    @property
    def slow(self) -> bool:
        """Whether targets are computed with the slow copy of the actor."""
        return True

    @property
    def temperature(self) -> None:
        return None

    def parameters(self, size: int) -> int:
        return size

    def mode(self, out: Array) -> Array:
        return jnp.tanh(out)

    def describe(self, size: int) -> Squash:
        """`mode` of `size` dimensions, for export."""
        return Squash(size)

    def sample(self, out: Array, key: Array) -> tuple[Array, Array]:
        """An action to explore with, and its log-density, which nothing asks of a deterministic policy."""
        return self._near(out, self.noise * jax.random.normal(key, out.shape))

    def improve(self, out: Array, key: Array) -> tuple[Array, Array]:
        """The action by whose value the actor learns, differentiable, and its log-density."""
        return self.mode(out), jnp.zeros(())

    def target(self, out: Array, key: Array) -> tuple[Array, Array]:
        """The action that follows in a target, and its log-density."""
        noise = self.target_noise * jax.random.normal(key, out.shape)
        return self._near(out, jnp.clip(noise, -self.target_clip, self.target_clip))

    def _near(self, out: Array, noise: Array) -> tuple[Array, Array]:
        return jnp.clip(self.mode(out) + noise, -1, 1), jnp.zeros(())


@dataclass(frozen=True)
class SquashedGaussian:
    """A squashed normal distribution whose entropy counts as reward (Haarnoja et al. 2018, SAC)."""

    min_std: float = 0.01
    max_std: float = 2.0
    temperature: Temperature = Temperature()

    def __post_init__(self) -> None:
        check_bounds(self, min_std=(1e-6, None))
        if self.max_std <= self.min_std:
            raise ValueError(f"max_std is {self.max_std}; it must be above min_std ({self.min_std})")

    @property
    def slow(self) -> bool:
        return False

    def _distribution(self, out: Array) -> TanhNormal:
        return TanhNormal(out.shape[-1] // 2, self.min_std, self.max_std)

    def parameters(self, size: int) -> int:
        return 2 * size

    def mode(self, out: Array) -> Array:
        return self._distribution(out).mode(out)

    def describe(self, size: int) -> Squash:
        return TanhNormal(size, self.min_std, self.max_std).describe()

    def sample(self, out: Array, key: Array) -> tuple[Array, Array]:
        distribution = self._distribution(out)
        action = distribution.sample(out, key)
        return action, distribution.log_prob(out, action)

    improve = target = sample


AnyPolicyHead = Deterministic | SquashedGaussian
