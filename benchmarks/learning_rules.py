"""What each learning rule costs for a layer whose neurons hear each other, and how near its gradient is to the exact one.

    python benchmarks/learning_rules.py [--neurons 64] [--ticks 20] [--seed 0]

One layer under input that changes from tick to tick; the loss is a random weighing of its spikes at every tick. Densities are those
of the recurrent weights. A compact surrogate leaves neurons out whose membranes are far from the threshold: "active" is the share
of neurons and ticks that pass influence on. Times are medians, after compilation, relative to dense exact RTRL of the same
surrogate.
"""

import argparse
import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp

from spikedream.snn.affine import affine
from spikedream.snn.learning_rules.rtrl import kept
from spikedream.snn.networks import BPTT, RTRL, EProp, SnAp
from spikedream.snn.neurons import LIF, firing_threshold
from spikedream.snn.surrogates import AnySurrogate, ArcTan, Rectangular

INPUTS = 16


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--neurons", type=int, default=64)
    parser.add_argument("--ticks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def layer_of(neuron: LIF, options: argparse.Namespace):
    """Synapse, parameters, input (ticks, inputs) and the loss's weights (ticks, neurons)."""
    keys = jax.random.split(jax.random.key(options.seed), 4)
    synapse = affine(INPUTS, options.neurons, keys[0], 0.7)
    entering = jax.random.normal(keys[2], (options.ticks, INPUTS))
    return synapse, neuron.init(options.neurons, keys[1]), entering, jax.random.normal(keys[3], (options.ticks, options.neurons))


def gradient_of(rule, neuron: LIF, options: argparse.Namespace):
    def loss(synapse, params, entering, weights):
        state = neuron.start(options.neurons)
        return (rule.window(neuron, synapse, params, entering, state, None, options.ticks).spikes * weights).sum()

    return jax.jit(jax.grad(loss, (0, 1)))


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


def active_share(neuron: LIF, options: argparse.Namespace) -> float:
    synapse, params, entering, _ = layer_of(neuron, options)
    state, found = neuron.start(options.neurons), []
    for current in synapse(entering):
        charge = replace(neuron, threshold=1.0).step(replace(params, threshold=jnp.full(options.neurons, 50.0)), state, current).v
        found.append((neuron.surrogate.derivative(charge - firing_threshold(params)) != 0).mean())
        state = neuron.step(params, state, current)
    return float(jnp.stack(found).mean())


def main() -> None:
    options = parsed()
    surrogates: tuple[AnySurrogate, ...] = (ArcTan(), Rectangular(1.0), Rectangular(0.25))
    print(
        "| surrogate | active | density | rule | influence kept | ms | of dense RTRL | cosine |\n|---|--:|--:|---|--:|--:|--:|--:|"
    )
    for surrogate in surrogates:
        dense = None
        for density in (1.0, 0.5, 0.2, 0.1):
            fan_in = None if density == 1 else max(1, round(density * options.neurons))
            neuron = LIF(recurrent=True, recurrent_gain=1.0, recurrent_fan_in=fan_in, surrogate=surrogate)
            arguments = layer_of(neuron, options)
            exact = gradient_of(BPTT(), neuron, options)(*arguments)
            rules = {"RTRL": RTRL(), "SnAp-2": SnAp(2), "SnAp-1": SnAp(1), "e-prop": EProp(), "BPTT": BPTT()}
            if density == 1:
                del rules["SnAp-2"]  # is RTRL, where all hear all
            for name, rule in rules.items():
                function = gradient_of(rule, neuron, options)
                taken = seconds(function, arguments)
                dense = taken if dense is None else dense
                hops = {"RTRL": options.neurons, "SnAp-2": 1}.get(name, 0)
                share = getattr(kept(neuron, options.neurons, 1, hops), "most", options.neurons if hops else 1) / options.neurons
                told = f"{share:.0%}" if name != "BPTT" else "-"
                row = (f"{active_share(neuron, options):.0%}", f"{density:.0%}", name, told, f"{1000 * taken:.2f}")
                print(f"| {surrogate} | {' | '.join(row)} | {taken / dense:.3f} | {cosine(exact, function(*arguments)):.4f} |")


if __name__ == "__main__":
    main()
