"""NeuroBench's measures of a network (Yik et al. 2025, "The neurobench framework for benchmarking neuromorphic computing algorithms
and systems"), from what its parts tell of their operations, in the definitions of the package `neurobench` 2.3.

They differ from `energy` in two ways: an input that is the same at every tick is multiplied anew at each, and neither biases nor
what a neuron or an activation computes are operations. Membrane updates are here those of every neuron at every tick; the package
leaves out a neuron whose potential stays exactly as it was, which one with a leak and a bias does not.
"""

from collections.abc import Sequence
from typing import TypedDict

from spikedream.snn.operations import Operations, memory
from spikedream.types import PyTree


class NeuroBench(TypedDict):
    footprint: int  # bytes of the parameters
    connection_sparsity: float | None  # share of the weights that are zero; None where there are none
    activation_sparsity: float | None  # share of outputs of neurons and activations that are zero; None where there are none
    effective_macs: float  # of one call: pairs of a real input and a weight, both not zero
    effective_acs: float  # of a spike and a weight
    dense: float  # of all inputs and weights
    membrane_updates: float


def neurobench(found: Sequence[Operations], params: PyTree) -> NeuroBench:
    """Of one call with the operations `found`, or of the mean of several."""
    products = [(each, each.connections) for each in found if each.connections is not None]
    activities = [each.activity for each in found if each.activity is not None]
    weights = sum(c.weights for _, c in products)
    outputs = sum(a.outputs for a in activities)
    return {
        "footprint": memory(params),
        "connection_sparsity": 1 - sum(float(c.nonzero) for _, c in products) / weights if weights else None,
        "activation_sparsity": 1 - sum(float(a.nonzero) for a in activities) / outputs if outputs else None,
        "effective_macs": sum(float(c.effective) for each, c in products if not each.spiking),
        "effective_acs": sum(float(c.effective) for each, c in products if each.spiking),
        "dense": float(sum(c.weights * c.rows * c.repeats for _, c in products)),
        "membrane_updates": sum(float(each.number) for each in found if each.kind == "neuron_update"),
    }
