"""What each learning rule costs for a layer whose neurons hear each other, and how near its gradient is to the exact one.

    python benchmarks/learning_rules.py [--neurons 64] [--ticks 20] [--seeds 3] [--record]

One layer under input that changes from tick to tick; the loss is a random weighing of its spikes at every tick. Densities are those
of the recurrent weights. A compact surrogate leaves neurons out whose membranes are far from the threshold: "active" is the share
of neurons and ticks that pass influence on. Times are medians, after compilation; their ratio is to dense exact RTRL with ArcTan.
Each seed is another layer. `--record` writes `results/learning-rules-*.json`.
"""

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp

from spikedream.experiments.record import record_scores
from spikedream.snn.affine import affine
from spikedream.snn.learning_rules.protocol import SpikingLayer
from spikedream.snn.learning_rules.rtrl import kept
from spikedream.snn.networks import BPTT, RTRL, EProp, SnAp
from spikedream.snn.neurons import LIF, firing_threshold
from spikedream.snn.surrogates import AnySurrogate, ArcTan, Rectangular

INPUTS = 16
RULES = {"RTRL": RTRL(), "SnAp-2": SnAp(2), "SnAp-1": SnAp(1), "e-prop": EProp(), "BPTT": BPTT()}
SHOWN = {  # in docs/learning-rules.md
    "arctan-20-RTRL", "arctan-20-SnAp-2", "arctan-10-SnAp-2", "arctan-10-SnAp-1", "narrow-100-RTRL",
    "narrow-20-SnAp-2",
}  # fmt: skip


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=64)
    parser.add_argument("--ticks", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


def layer_of(neuron: LIF, options: argparse.Namespace, seed: int):
    """The layer, its input (ticks, inputs) and the loss's weights (ticks, neurons)."""
    keys = jax.random.split(jax.random.key(seed), 4)
    layer = SpikingLayer(affine(INPUTS, options.neurons, keys[0], 0.7), neuron.init(options.neurons, keys[1]))
    entering = jax.random.normal(keys[2], (options.ticks, INPUTS))
    return layer, entering, jax.random.normal(keys[3], (options.ticks, options.neurons))


def gradient_of(rule, neuron: LIF, options: argparse.Namespace):
    def loss(layer, entering, weights):
        state = neuron.start(options.neurons)
        return (rule.window(neuron, layer, entering, state, None, options.ticks).spikes * weights).sum()

    return jax.jit(jax.grad(loss))


def seconds(function, arguments, repeats: int = 9) -> float:
    jax.block_until_ready(function(*arguments))
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def cosine(a, b) -> float:
    a, b = (jnp.concatenate([x.reshape(-1) for x in jax.tree.leaves(tree)]) for tree in (a, b))
    return float(a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b))


def active_share(neuron: LIF, layer: SpikingLayer, entering: jax.Array) -> float:
    size, state, found = layer.neuron.decay.size, neuron.start(layer.neuron.decay.size), []
    silent = replace(layer.neuron, threshold=jnp.full(size, 50.0))
    for current in layer.synapse(entering):
        charge = neuron.step(silent, state, current).v
        found.append((neuron.surrogate.derivative(charge - firing_threshold(layer.neuron)) != 0).mean())
        state = neuron.step(layer.neuron, state, current)
    return float(jnp.stack(found).mean())


def measured(neuron: LIF, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, list[float]]]]:
    """Of each rule: scores by seed."""
    layers = [layer_of(neuron, options, seed) for seed in range(options.seeds)]
    exact = [gradient_of(BPTT(), neuron, options)(*layer) for layer in layers]
    for name, rule in RULES.items():
        if name == "SnAp-2" and neuron.recurrent_fan_in is None:
            continue  # is RTRL, where all hear all
        function = gradient_of(rule, neuron, options)
        hops = {"RTRL": options.neurons, "SnAp-2": 1}.get(name, 0)
        share = getattr(kept(neuron, options.neurons, 1, hops), "most", options.neurons if hops else 1) / options.neurons
        yield (
            name,
            {
                "active, %": [100 * active_share(neuron, *layer[:2]) for layer in layers],
                "influence kept": [0.0 if name == "BPTT" else share for _ in layers],
                "ms": [1000 * seconds(function, layer) for layer in layers],
                "cosine": [cosine(right, function(*layer)) for right, layer in zip(exact, layers, strict=True)],
            },
        )


def main() -> None:
    options = parsed()
    surrogates: dict[str, AnySurrogate] = {"arctan": ArcTan(), "rectangular": Rectangular(1.0), "narrow": Rectangular(0.25)}
    print(
        "| surrogate | density | rule | active | influence kept | ms | of dense RTRL | cosine |\n|---|--:|---|--:|--:|--:|--:|--:|"
    )
    dense: list[float] = []
    for shape, surrogate in surrogates.items():
        for density in (1.0, 0.5, 0.2, 0.1):
            fan_in = None if density == 1 else max(1, round(density * options.neurons))
            neuron = LIF(recurrent=True, recurrent_gain=1.0, recurrent_fan_in=fan_in, surrogate=surrogate)
            for name, scores in measured(neuron, options):
                dense = dense or scores["ms"]
                scores["of dense RTRL"] = [own / whole for own, whole in zip(scores["ms"], dense, strict=True)]
                active, share, ms, angle, ratio = (statistics.median(values) for values in scores.values())
                row = f"{active:.0f}% | {share:.0%} | {ms:.2f} | {ratio:.3f} | {angle:.4f}"
                print(f"| {surrogate} | {density:.0%} | {name} | {row} |", flush=True)
                key = f"{shape}-{round(100 * density)}-{name}"
                if options.record and key in SHOWN:
                    record_scores(f"learning-rules-{key}", {n: scores[n] for n in ("active, %", "of dense RTRL", "cosine")})


if __name__ == "__main__":
    main()
