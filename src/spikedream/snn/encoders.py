"""Encoders turn a real vector into input for the first spiking layer.

The output has shape (ticks, channels), or (1, channels) when it is the same at every tick, which lets the layer behind it do one
matrix product instead of `ticks`.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.nodes import Current, GaussianCurrents, GaussianFields, Unexportable, numbers
from spikedream.snn.operations import ACTIVATION_ARITHMETIC, Operations, firing, tally
from spikedream.snn.surrogates import ArcTan, spike
from spikedream.types import PyTree


class Encoding(NamedTuple):
    """An encoder in effective values, for export."""

    before: tuple[GaussianCurrents, ...]  # what becomes of the numbers first
    entering: Any  # Current, GaussianFields, or what gives currents as they do


class Encoder(Protocol):
    def init(self, in_size: int) -> PyTree: ...
    def channels(self, in_size: int) -> int: ...
    def encode(self, params: PyTree, x: Array, ticks: int, key: Array | None) -> Array: ...
    def describe(self, params: PyTree) -> Encoding:
        """In effective values, for export."""
        ...

    @property
    def spiking(self) -> bool:
        """Whether it puts out spikes."""
        ...

    def operations(self, params: PyTree, encoded: Array) -> tuple[Operations, ...]:
        """Of a call of `encode` that made `encoded`."""
        ...


@dataclass(frozen=True)
class DirectCurrent:
    """Each input value is a constant current into the first layer, weighted like a synapse (the first layer does
    multiply-accumulates, once for all ticks)."""

    def init(self, in_size: int) -> None:
        return None

    def channels(self, in_size: int) -> int:
        return in_size

    def encode(self, params: None, x: Array, ticks: int, key: Array | None) -> Array:
        return x[None]

    def describe(self, params: None) -> Encoding:
        return Encoding((), Current())

    @property
    def spiking(self) -> bool:
        return False

    def operations(self, params: None, encoded: Array) -> tuple[Operations, ...]:
        return ()


class ReceptiveFields(eqx.Module):
    mean: Array  # (in_size, fields)
    width: Array  # (in_size, fields) logarithm of the standard deviation


@dataclass(frozen=True)
class GaussianPopulation:
    """PopSAN's encoder (Tang et al. 2020, eq. 2-3): `fields` Gaussian receptive fields per input dimension, learnable.

    The activation A = exp(-(x - mean)^2 / (2 width^2)) drives, at every tick, either an integrator that fires when it passes 1 and
    resets by subtraction ("deterministic") or a Bernoulli draw ("poisson", which needs a key). As a "current" it enters as it is,
    the same at every tick: the first layer then does multiply-accumulates, once for all ticks.
    """

    fields: int = 10
    span: float = 3.0  # the means lie evenly in [-span, span], in standard deviations of the input
    width: float = 0.5  # initial standard deviation of the fields, not their variance
    mode: Literal["deterministic", "poisson", "current"] = "deterministic"
    squash: bool = False  # encodes tanh(x), which no outlier drives beyond the fields
    currents: int = 0  # inputs, the last ones, that enter as they are, as constant currents

    def __post_init__(self) -> None:
        check_bounds(self, fields=(2, None), span=(1e-6, None), width=(1e-6, None), currents=(0, None))

    def init(self, in_size: int) -> ReceptiveFields:
        """Raises ValueError where no input is left to be encoded."""
        if self.currents >= in_size:
            raise ValueError(f"currents is {self.currents}; of the network's {in_size} inputs at least one must be encoded")
        encoded = in_size - self.currents
        mean = jnp.tile(jnp.linspace(-self.span, self.span, self.fields, dtype=jnp.float32), (encoded, 1))
        return ReceptiveFields(mean, jnp.full_like(mean, jnp.log(self.width)))

    def channels(self, in_size: int) -> int:
        return (in_size - self.currents) * self.fields + self.currents

    def encode(self, params: ReceptiveFields, x: Array, ticks: int, key: Array | None) -> Array:
        encoded = x.size - self.currents
        train = self._population(params, x[:encoded], ticks, key)
        if not self.currents:
            return train
        return jnp.concatenate([train, jnp.broadcast_to(x[encoded:], (train.shape[0], self.currents))], axis=1)

    def _population(self, params: ReceptiveFields, x: Array, ticks: int, key: Array | None) -> Array:
        """(ticks, size * fields), or (1, size * fields) as a current, of x (size,)."""
        x = jnp.tanh(x) if self.squash else x
        drive = jnp.exp(-0.5 * jnp.square((x[:, None] - params.mean) * jnp.exp(-params.width))).ravel()
        if self.mode == "current":
            return drive[None]
        if self.mode == "poisson":
            if key is None:
                raise ValueError("a Poisson encoder draws spikes and needs a key; none was given")
            # Straight-through: the gradient of a Bernoulli draw is that of its probability.
            draws = jax.random.bernoulli(key, drive[None], (ticks, drive.size)).astype(drive.dtype)
            return draws + (drive - jax.lax.stop_gradient(drive))[None]

        def tick(v: Array, _: None) -> tuple[Array, Array]:
            v = v + drive
            fired = spike(v - 0.999, ArcTan())
            return v - jax.lax.stop_gradient(fired), fired

        # Not unrolled: XLA's CPU back end would compute the drive anew for each tick, one entry at a time (a third of the speed).
        return jax.lax.scan(tick, jnp.zeros_like(drive), length=ticks)[1]

    def describe(self, params: ReceptiveFields) -> Encoding:
        fields = numbers(params.mean), numbers(jnp.exp(-params.width)), self.squash
        if self.mode == "current":
            return Encoding((GaussianCurrents(*fields),), Current())
        if self.mode == "poisson" or self.currents:
            what = "mode poisson" if self.mode == "poisson" else "currents beside its spikes"
            can = "with mode current, or mode deterministic and no currents, it can"
            raise Unexportable(f"GaussianPopulation with {what} cannot be exported; {can}")
        return Encoding((), GaussianFields(*fields))

    @property
    def spiking(self) -> bool:
        """With currents beside the spikes, a tick's whole input is taken as real numbers, which counts too much."""
        return self.mode != "current" and not self.currents

    def operations(self, params: ReceptiveFields, encoded: Array) -> tuple[Operations, ...]:
        fields = (tally("encoder", "receptive_field", params.mean.size, {"add": 1, "multiply": 3, "exponential": 1}),)
        if self.squash:
            fields += (tally("encoder", "activation", params.mean.shape[0], ACTIVATION_ARITHMETIC["tanh"]),)
        if self.mode == "current":
            return fields
        encoded = encoded[:, : params.mean.size]
        if self.mode == "poisson":
            return *fields, tally("encoder", "random_number", encoded.size), tally("encoder", "add", encoded.size)
        return *fields, *firing("encoder", encoded, {"add": 2}, reset=1)


AnyEncoder = DirectCurrent | GaussianPopulation
