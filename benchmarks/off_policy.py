"""What an update of an off-policy preset costs beside the matrix products that it cannot do without:
`python benchmarks/off_policy.py [PRESET]`.

Prints a JSON line for each precision: milliseconds of one update, in blocks as a run makes them; of the same products alone, one
after the other, those that the policy delay leaves out at their share; the ratio; and how many floating-point operations these are.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from spikedream import config as configuration
from spikedream.algorithm import Algorithm, TrainState
from spikedream.envs.make import spec_of
from spikedream.runs.provenance import processor
from spikedream.snn.product import Precision, precisely, product
from spikedream.types import Transition

Size = tuple[int, int, int]  # rows, summed, columns


def products(program: Jaxpr, share: float = 1.0) -> Counter[Size]:
    """How often products of each size are made; of a branch, `share` of what its larger side makes."""
    found: Counter[Size] = Counter()
    for equation in program.eqns:
        if equation.primitive.name in ("dot_general", "narrow_dot"):
            dimensions = equation.params.get("dimension_numbers", equation.params.get("dimensions"))
            (summed, _), (batch, _) = dimensions
            x, out = equation.invars[0].aval, equation.outvars[0].aval
            inner = int(np.prod([x.shape[i] for i in summed]))
            count = int(np.prod([x.shape[i] for i in batch]))
            rows = x.size // inner // count
            found[(rows, inner, out.size // rows // count)] += count
        several = [jaxprs(value) for value in equation.params.values()]
        branches = [products(each, share) for group in several for each in group]
        if equation.primitive.name == "cond":
            largest = max(branches, key=lambda c: sum(a * b * d * n for (a, b, d), n in c.items()))
            branches = [Counter({size: number * share for size, number in largest.items()})]
        for each in branches:
            found.update(each)
    return found


def jaxprs(value: Any) -> list[Jaxpr]:
    leaves = value if isinstance(value, tuple | list) else [value]
    return [x.jaxpr if isinstance(x, ClosedJaxpr) else x for x in leaves if isinstance(x, ClosedJaxpr | Jaxpr)]


def filled(algorithm: Algorithm, rows: int = 1024) -> TrainState:
    state, spec = algorithm.init(jax.random.key(0)), algorithm.spec
    rng, none = np.random.default_rng(0), np.zeros((rows, 1), np.float32)
    obs = rng.normal(size=(2, rows, 1, spec.obs_size)).astype(np.float32)
    action = np.tanh(rng.normal(size=(rows, 1, spec.action_size))).astype(np.float32)
    steps = Transition(*map(jnp.asarray, (obs[0], action, none + 1, obs[1], none, none, none)))
    state = replace(state, replay=algorithm.remember(state.replay, steps, np.int32(rows)))
    return algorithm.fit(state, np.int32(1))[0]


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    jax.block_until_ready(function())
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function())
        times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def measured(algorithm: Algorithm, repeats: int) -> dict[str, float]:
    state = filled(algorithm)
    program = jax.make_jaxpr(
        lambda s, k: algorithm.agent.update(s.agent, algorithm.world(s), s.replay, k)
    )(state, jax.random.key(0)).jaxpr  # fmt: skip
    found = products(program, share=1 / algorithm.agent.policy_delay)
    passing = [state]

    def block() -> Any:
        passing[0], metrics = algorithm.dream(passing[0])
        return metrics

    update = milliseconds(block, repeats) / algorithm.block
    with precisely(algorithm.precision):
        alone = milliseconds(products_alone({size: round(4 * number) for size, number in found.items()}), repeats) / 4
    operations = sum(2 * a * b * c * number for (a, b, c), number in found.items())
    return {
        "update_ms": round(update, 2), "products_ms": round(alone, 2), "ratio": round(update / alone, 2),
        "gflop": round(operations / 1e9, 2),
    }  # fmt: skip


def products_alone(found: dict[Size, int]) -> Callable[[], Any]:
    """A compiled call that makes so many products of each size and nothing else."""
    factors = [(jnp.ones((a, b)), jnp.ones((b, c)), number) for (a, b, c), number in found.items()]

    def run(factors: Any) -> list[Any]:
        def several(x: Any, y: Any, number: int) -> Any:
            return jax.lax.fori_loop(0, number, lambda _, done: product(x + 0 * done[0, 0], y), product(x, y))

        return [several(x, y, number - 1)[0, 0] for x, y, number in factors]

    numbers = [number for *_, number in factors]
    compiled = jax.jit(lambda pairs: run([(*pair, number) for pair, number in zip(pairs, numbers, strict=True)]))
    pairs = [(x, y) for x, y, _ in factors]
    return lambda: compiled(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", nargs="?", default="halfcheetah")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    spiking = configuration.named(options.preset)
    spec = spec_of(spiking.env, spiking.env_kwargs, None)
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for name, config in (("spiking", spiking), ("twin", configuration.twin(spiking))):
        for precision in precisions:
            algorithm = replace(config.algorithm(spec), precision=precision)
            line = {"preset": options.preset, "actor": name, "precision": precision, **measured(algorithm, options.repeats)}
            print(json.dumps(line | {"processor": processor()}), flush=True)


if __name__ == "__main__":
    main()
