"""Surrogate gradients: a spike is a step function whose derivative is replaced by a smooth or compact bump.

Review: Neftci, Mostafa & Zenke, "Surrogate gradient learning in spiking neural networks", IEEE SPM 2019.
Every surrogate is scaled to integrate to one over the membrane axis, like the delta function that it stands for, save
`FastSigmoid`, which keeps SuperSpike's peak of one.
"""

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds


class Surrogate(Protocol):
    def derivative(self, excess: Array) -> Array:
        """d spike / d excess, where `excess` is the membrane potential above threshold; any shape, same shape out."""
        ...


@dataclass(frozen=True)
class ArcTan:
    """Fang et al. 2021 (PLIF): derivative of atan(pi/2 a x)/pi + 1/2."""

    sharpness: float = 2.0

    def __post_init__(self) -> None:
        check_bounds(self, sharpness=(1e-6, None))

    def derivative(self, excess: Array) -> Array:
        return self.sharpness / 2 / (1 + jnp.square(jnp.pi / 2 * self.sharpness * excess))


@dataclass(frozen=True)
class FastSigmoid:
    """SuperSpike (Zenke & Ganguli 2018): 1 / (1 + a|x|)^2."""

    sharpness: float = 10.0

    def __post_init__(self) -> None:
        check_bounds(self, sharpness=(1e-6, None))

    def derivative(self, excess: Array) -> Array:
        return 1 / jnp.square(1 + self.sharpness * jnp.abs(excess))


@dataclass(frozen=True)
class Rectangular:
    """1/w where |x| < w/2 and exactly zero elsewhere (Wu et al. 2018), so that inactive neurons need no backward work."""

    width: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, width=(1e-6, None))

    def derivative(self, excess: Array) -> Array:
        return jnp.where(jnp.abs(excess) < self.width / 2, 1 / self.width, 0.0)


@dataclass(frozen=True)
class Triangular:
    """max(0, 1 - |x|/w) / w, zero beyond w (Bellec et al. 2018)."""

    width: float = 1.0

    def __post_init__(self) -> None:
        check_bounds(self, width=(1e-6, None))

    def derivative(self, excess: Array) -> Array:
        return jnp.maximum(0.0, 1 - jnp.abs(excess) / self.width) / self.width


AnySurrogate = ArcTan | FastSigmoid | Rectangular | Triangular


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def spike(excess: Array, surrogate: Surrogate) -> Array:
    """1.0 where the membrane potential has reached the threshold (`excess` >= 0), else 0.0; differentiated by `surrogate`."""
    return (excess >= 0).astype(excess.dtype)


@spike.defjvp
def _spike_jvp(surrogate: Surrogate, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (excess,), (tangent,) = primals, tangents
    return spike(excess, surrogate), surrogate.derivative(excess) * tangent
