"""A NIR graph (Pedersen et al. 2024, "Neuromorphic intermediate representation") of a policy's spiking layers, and beside it, as
JSON, what a graph of spikes does not hold: how an observation enters, how the last layer's spikes become an action, the ticks, the
length of one, and how neurons reset.

Readers of NIR step its equations by v <- v + (r x - v) dt / tau, so that tau = dt / (1 - b) and r = 1 / (1 - b) give the decay b
exactly, and a LIF is a CubaLIF whose current lasts one step. They spike above the threshold, spikedream at it.
"""

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from spikedream.export.vectors import Vector
from spikedream.integers import FixedWindow
from spikedream.nodes import Charges, Current, Layer, Neurons, Node, Unexportable, Window

DT = 1e-4  # seconds: the step of snnTorch's reader; others are told


def _window(nodes: Sequence[Node]) -> Window:
    """Raises Unexportable where there is none that NIR can hold."""
    window = next((node for node in nodes if isinstance(node, Window)), None)
    if window is None:
        raise Unexportable("NIR holds spiking layers, and this policy has none; --to c exports conventional networks")
    if isinstance(window, FixedWindow):
        raise Unexportable("NIR has no fixed point; --to c exports it, and a run without fixed_point can be exported --to nir")
    if isinstance(window.reading, Charges):
        raise Unexportable(
            "NIR puts out spikes, and MembraneReadout reads the membranes; RateReadout, PopulationReadout and LeakyReadout read"
            " spikes, and --to c exports all of them"
        )
    return window


def _spiking(window: Window) -> list[tuple[str, Layer, Neurons]]:
    """The layers that the graph holds, by name. A file gives nodes in the order of their names, and not every reader follows the
    edges: names are in the order in which nodes are computed."""
    width = len(str(len(window.layers)))
    return [
        (f"layer_{i + 1:0{width}}", layer, layer.neurons)
        for i, layer in enumerate(window.layers)
        if isinstance(layer.neurons, Neurons)
    ]


def graph(nodes: Sequence[Node]) -> Any:
    """A `nir.NIRGraph` of the spiking layers, recurrent ones as graphs of their own.

    Raises:
        ImportError: the package `nir` is not installed.
        Unexportable: NIR has nothing for a part.
    """
    try:
        import nir  # pyright: ignore[reportMissingImports] - an extra
    except ImportError as error:
        raise ImportError("NIR graphs need the package nir: pip install 'spikedream[nir]'") from error
    layers = _spiking(_window(nodes))
    made: dict[str, Any] = {"input": nir.Input(_shape("input", layers[0][1].synapses.weight.shape[0]))}
    for name, layer, neurons in layers:
        made[f"{name}_affine"] = nir.Affine(weight=layer.synapses.weight.T.copy(), bias=layer.synapses.bias)
        made[f"{name}_neurons"] = _primitive(nir, neurons)
    made["output"] = nir.Output(_shape("output", layers[-1][1].size))
    names = list(made)
    return nir.NIRGraph(nodes=made, edges=list(itertools.pairwise(names)))


def _shape(side: str, size: int) -> dict[str, ndarray]:
    return {side: np.array([size])}


def _primitive(nir: Any, neurons: Neurons) -> Any:
    if neurons.adaptation_decay is not None:
        raise Unexportable("NIR has no neuron whose threshold adapts, as AdaptiveLIF's does; LIF and CubaLIF can be exported")
    size, kept = neurons.decay.size, neurons.decay.astype(np.float64)
    current = np.zeros(size) if neurons.synapse_decay is None else neurons.synapse_decay.astype(np.float64)
    neuron = nir.CubaLIF(
        tau_syn=DT / (1 - current), w_in=1 / (1 - current), tau_mem=DT / (1 - kept), r=1 / (1 - kept),
        v_leak=np.zeros(size), v_threshold=neurons.threshold.astype(np.float64), v_reset=np.zeros(size),
    )  # fmt: skip
    if neurons.recurrent is None:
        return neuron
    inner = {
        "input": nir.Input(_shape("input", size)),
        "neurons": neuron,
        "recurrent": nir.Linear(weight=neurons.recurrent.T.copy()),
        "output": nir.Output(_shape("output", size)),
    }
    edges = [("input", "neurons"), ("neurons", "recurrent"), ("recurrent", "neurons"), ("neurons", "output")]
    return nir.NIRGraph(nodes=inner, edges=edges)


def beside(nodes: Sequence[Node]) -> dict[str, Any]:
    """What the graph does not hold, as plain data, in the order in which it is computed."""
    window = _window(nodes)
    place = list(nodes).index(window)
    rest = [layer for layer in window.layers if not isinstance(layer.neurons, Neurons)]
    return {
        "dt": DT,
        "ticks": window.ticks,
        "starts_from_rest": not window.persistent,
        "reset": {f"{name}_neurons": neurons.reset for name, _, neurons in _spiking(window)},
        "before": [_plain(node) for node in nodes[:place]],
        "encoder": _plain(window.encoder),
        "layers": [_plain(layer) for layer in rest],
        "reading": _plain(window.reading),
        "after": [_plain(node) for node in nodes[place + 1 :]],
    }


def _plain(node: Any) -> dict[str, Any]:
    fields = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
    values = {
        name: value.tolist() if isinstance(value, ndarray) else _plain(value) if dataclasses.is_dataclass(value) else value
        for name, value in fields.items()
    }
    return {"kind": type(node).__name__, **values}


def entering(nodes: Sequence[Node], observation: ndarray) -> ndarray:
    """(ticks, inputs): what an observation in the environment's own units puts into the graph."""
    window = _window(nodes)
    x = observation
    for node in nodes[: list(nodes).index(window)]:
        x = node(x)
    if isinstance(window.encoder, Current):
        return np.tile(x, (window.ticks, 1))
    return np.stack([spikes for spikes, _ in window.encoder.trains(x, window.ticks)])


def save(graph: Any, beside: dict[str, Any], vectors: list[Vector], nodes: Sequence[Node], directory: Path) -> int:
    """`policy.nir`, `policy.json` and `vectors.npz`; answers the bytes of the graph's file."""
    import nir  # pyright: ignore[reportMissingImports]

    nir.write(directory / "policy.nir", graph)
    (directory / "policy.json").write_text(json.dumps(beside, indent=1) + "\n")
    names = [f"{name}_neurons" for name, _, _ in _spiking(_window(nodes))]
    arrays = {name: np.stack([vector.trains[i] for vector in vectors]).astype(np.uint8) for i, name in enumerate(names)}
    arrays |= {
        "observation": np.stack([vector.observation for vector in vectors]),
        "entering": np.stack([entering(nodes, vector.observation) for vector in vectors]),
        "begins": np.array([vector.begins for vector in vectors]),
        "action": np.array([vector.action for vector in vectors]),
    }
    np.savez(directory / "vectors.npz", allow_pickle=False, **arrays)
    return (directory / "policy.nir").stat().st_size
