"""A feed-forward spiking network with a rate readout as a network of snnTorch, measured by the package `neurobench`: extras of the
tests, which nothing else imports."""

from typing import Any

import jax
import numpy as np
import snntorch  # pyright: ignore[reportMissingImports]
import torch  # pyright: ignore[reportMissingImports]
from neurobench.metrics.static import ConnectionSparsity  # pyright: ignore[reportMissingImports]
from neurobench.metrics.workload import (  # pyright: ignore[reportMissingImports]
    ActivationSparsity,
    MembraneUpdates,
    SynapticOperations,
)
from neurobench.models import TorchModel  # pyright: ignore[reportMissingImports]


class Twin(torch.nn.Module):
    """LIF layers with soft reset; the input is a constant current, which is multiplied anew at every tick."""

    def __init__(self, network: Any, params: Any):
        super().__init__()
        self.ticks = network.ticks
        self.synapses = torch.nn.ModuleList(_linear(layer.synapse) for layer in params.layers)
        self.neurons = torch.nn.ModuleList(
            snntorch.Leaky(
                beta=torch.tensor(np.asarray(jax.nn.sigmoid(layer.neuron.decay))),
                threshold=network.neuron.threshold,
                reset_mechanism="subtract",
                reset_delay=False,
            )
            for layer in params.layers
        )
        self.readout = _linear(params.readout)

    def forward(self, x: Any) -> Any:
        membranes, counts, trains = [neuron.reset_mem() for neuron in self.neurons], 0, []
        for _ in range(self.ticks):
            spikes = x
            for i, (synapse, neuron) in enumerate(zip(self.synapses, self.neurons, strict=True)):
                spikes, membranes[i] = neuron(synapse(spikes), membranes[i])
            counts = counts + spikes
            trains.append(spikes)
        self.trains = torch.stack(trains, 1)
        return self.readout(counts)


def _linear(affine: Any) -> Any:
    layer = torch.nn.Linear(*affine.weight.shape)
    layer.weight.data = torch.tensor(np.asarray(affine.weight).T.copy())
    layer.bias.data = torch.tensor(np.asarray(affine.bias))
    return layer


def measured(network: Any, params: Any, xs: np.ndarray) -> dict[str, Any]:
    """NeuroBench's measures by its names, over inputs (batch, in_size), and the last layer's spikes, (batch, ticks, neurons)."""
    model = TorchModel(Twin(network, params))
    model.add_activation_module(snntorch.SpikingNeuron)
    model.register_hooks()
    x = torch.tensor(xs)
    with torch.no_grad():
        preds = model(x)
        metrics = {
            kind.__name__: kind()(model, preds, (x, None)) for kind in (ActivationSparsity, MembraneUpdates, SynapticOperations)
        }
    return metrics | {"ConnectionSparsity": ConnectionSparsity()(model), "spikes": model.net.trains.numpy()}
