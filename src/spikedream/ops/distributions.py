"""Action and value distributions over the last axis of a network's output. A head is a frozen dataclass; its distribution is
given by the network output `logits`, so nothing but arrays crosses a `jit` boundary."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.nodes import Choice, Squash
from spikedream.spec import Spec


@dataclass(frozen=True)
class Categorical:
    """One-hot actions from unnormalised log-probabilities, (size,)."""

    size: int

    @property
    def parameters(self) -> int:
        return self.size

    def mode(self, logits: Array) -> Array:
        return jax.nn.one_hot(jnp.argmax(logits), self.size)

    def describe(self) -> Choice:
        """`mode`, for export."""
        return Choice()

    def sample(self, logits: Array, key: Array) -> Array:
        return jax.nn.one_hot(jax.random.categorical(key, logits), self.size)

    def log_prob(self, logits: Array, action: Array) -> Array:
        return (jax.nn.log_softmax(logits) * action).sum()

    def entropy(self, logits: Array) -> Array:
        log_p = jax.nn.log_softmax(logits)
        return -(jnp.exp(log_p) * log_p).sum()


@dataclass(frozen=True)
class TanhNormal:
    """tanh(N(mean, std)), actions in (-1, 1); parameters are the means and then the unsquashed deviations, (2 size,)."""

    size: int
    min_std: float = 0.05
    max_std: float = 1.0

    @property
    def parameters(self) -> int:
        return 2 * self.size

    def _normal(self, parameters: Array) -> tuple[Array, Array]:
        mean, raw = jnp.split(parameters, 2)
        # Means stay where the tanh still has a slope in float32: beyond +-4 the action no longer changes, only its log-density.
        return 4 * jnp.tanh(mean / 4), self.min_std + (self.max_std - self.min_std) * jax.nn.sigmoid(raw + 1.0)

    def mode(self, parameters: Array) -> Array:
        return jnp.tanh(self._normal(parameters)[0])

    def describe(self) -> Squash:
        """`mode`, for export."""
        return Squash(self.size, within=4)

    def sample(self, parameters: Array, key: Array) -> Array:
        mean, std = self._normal(parameters)
        # Held inside the open interval, so that log_prob can invert the tanh in float32.
        return jnp.clip(jnp.tanh(mean + std * jax.random.normal(key, mean.shape)), -0.9999, 0.9999)

    def log_prob(self, parameters: Array, action: Array) -> Array:
        mean, std = self._normal(parameters)
        x = jnp.arctanh(jnp.clip(action, -0.9999, 0.9999))
        normal = -0.5 * jnp.square((x - mean) / std) - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi)
        # log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2x)), stable for large |x|
        return (normal - 2 * (jnp.log(2.0) - x - jax.nn.softplus(-2 * x))).sum()

    def entropy(self, parameters: Array) -> Array:
        """Of the normal before squashing plus log |d tanh| at the mean: the tanh-normal's own has no closed form."""
        mean, std = self._normal(parameters)
        spread = 0.5 * jnp.log(2 * jnp.pi * jnp.e) + jnp.log(std)
        return (spread + 2 * (jnp.log(2.0) - mean - jax.nn.softplus(-2 * mean))).sum()


ActionDistribution = Categorical | TanhNormal


def action_distribution(spec: Spec) -> ActionDistribution:
    return Categorical(spec.action_size) if spec.discrete else TanhNormal(spec.action_size)


def symlog(x: Array) -> Array:
    """sign(x) log(1 + |x|) (Hafner et al. 2023, DreamerV3, eq. 9)."""
    return jnp.sign(x) * jnp.log1p(jnp.abs(x))


def symexp(x: Array) -> Array:
    return jnp.sign(x) * jnp.expm1(jnp.abs(x))


@dataclass(frozen=True)
class TwoHot:
    """A categorical distribution over `bins` values that are evenly spaced in symlog; a scalar target is split between its
    two neighbours (DreamerV3, eq. 10-11). Targets beyond +-`limit` count as +-`limit`."""

    bins: int = 41
    limit: float = 1.5  # for Dreamer's returns, which are scaled; where they are not, the largest that an episode may have

    def __post_init__(self) -> None:
        check_bounds(self, bins=(2, None), limit=(1e-3, None))

    @property
    def parameters(self) -> int:
        return self.bins

    def _centres(self) -> Array:
        edge = math.log1p(self.limit)
        return symexp(jnp.linspace(-edge, edge, self.bins, dtype=jnp.float32))

    def mean(self, logits: Array) -> Array:
        return jax.nn.softmax(logits) @ self._centres()

    def loss(self, logits: Array, target: Array) -> Array:
        """Cross-entropy against the two-hot encoding of the scalar `target`."""
        edge = math.log1p(self.limit)
        position = (jnp.clip(symlog(target), -edge, edge) + edge) * ((self.bins - 1) / (2 * edge))
        low = jnp.clip(jnp.floor(position), 0, self.bins - 2).astype(jnp.int32)
        log_p = jax.nn.log_softmax(logits)
        # The split is linear in the value itself, so that the encoding's mean is the target exactly.
        centres = self._centres()
        value = jnp.clip(target, -self.limit, self.limit)
        share = (value - centres[low]) / (centres[low + 1] - centres[low])
        return -((1 - share) * log_p[low] + share * log_p[low + 1])


@dataclass(frozen=True)
class Regression:
    """A point estimate under squared error: the plain alternative to `TwoHot`."""

    @property
    def parameters(self) -> int:
        return 1

    def mean(self, logits: Array) -> Array:
        return logits[0]

    def loss(self, logits: Array, target: Array) -> Array:
        return 0.5 * jnp.square(logits[0] - target)


@dataclass(frozen=True)
class Huber:
    """A point estimate under squared error for errors up to `threshold`, under absolute error beyond."""

    threshold: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, threshold=(1e-6, None))

    @property
    def parameters(self) -> int:
        return 1

    def mean(self, logits: Array) -> Array:
        return logits[0]

    def loss(self, logits: Array, target: Array) -> Array:
        error = jnp.abs(logits[0] - target)
        inside = jnp.minimum(error, self.threshold)
        return 0.5 * jnp.square(inside) + self.threshold * (error - inside)


ValueDistribution = TwoHot | Regression | Huber
