"""What every network offers.

`init` makes the parameters, `start` the carry of one sample, `__call__` maps one input to one output. Map with `jax.vmap` over
samples, members or seeds.
"""

from typing import NamedTuple, Protocol

from jax import Array

from spikedream.nodes import Node
from spikedream.snn.operations import Operations
from spikedream.types import PyTree


class Output(NamedTuple):
    value: Array  # (out_size,)
    carry: PyTree  # state for the next environment step; empty when nothing is kept
    spikes: tuple[Array, ...]  # spike train per layer, (ticks, neurons); sum over axis 0 for the counts


class Network(Protocol):
    def init(self, in_size: int, out_size: int, key: Array) -> PyTree: ...
    def start(self, params: PyTree) -> PyTree:
        """The carry at the start of an episode."""
        ...

    def __call__(self, params: PyTree, x: Array, carry: PyTree = (), key: Array | None = None) -> Output: ...
    def curvature(self, params: PyTree) -> Array:
        """Mean square of the weights by which the network departs from a linear map; a penalty on it is a prior for smoothness."""
        ...

    def readout_l1(self, params: PyTree) -> Array:
        """Sum of the magnitudes of the readout's weights; a penalty on it leaves few hidden neurons in use."""
        ...

    def additive(self, params: PyTree, share: Array) -> PyTree:
        """With weights of the first layer as if `fan_in` were 1 where `share`, (), is 1; as they are where it is 0. Raises
        ValueError where there is no such layer."""
        ...

    def operations(self, params: PyTree, x: Array, carry: PyTree = (), key: Array | None = None) -> tuple[Operations, ...]:
        """Of one call with the same arguments, by the spikes that occur in it."""
        ...

    def state(self, params: PyTree) -> PyTree:
        """What it must hold between its ticks."""
        ...

    def twin(self) -> "Network":
        """The conventional network of the same widths, with a memory where this one has one."""
        ...

    def describe(self, params: PyTree) -> tuple[Node, ...]:
        """In effective values, for export; a network that has no such method cannot leave Python."""
        ...
