"""What an update of an off-policy preset costs beside the matrix products that it cannot do without:
`python benchmarks/off_policy.py [PRESET]`.

Prints a JSON line for each precision: milliseconds of one update, in blocks as a run makes them; of the same products alone, one
after the other, those that the policy delay leaves out at their share; the ratio; and how many floating-point operations these are.

The products alone are the least that they could cost: their factors lie ready in the precision in which they are multiplied, and
stay in the processor's cache.
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from spikedream import config as configuration
from spikedream.algorithm import Algorithm, TrainState
from spikedream.envs.make import spec_of
from spikedream.runs.provenance import processor
from spikedream.snn.product import UNROLLED, Precision, precisely
from spikedream.types import Transition

SHARES = 4  # updates, over which the products that the policy delay leaves out come to whole numbers


class Size(NamedTuple):
    """Of a product."""

    rows: int
    summed: int
    columns: int
    narrow: bool  # its factors are rounded to bfloat16

    @property
    def operations(self) -> int:
        return 2 * self.rows * self.summed * self.columns


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
            narrow = equation.primitive.name == "narrow_dot" and count <= UNROLLED
            found[Size(rows, inner, out.size // rows // count, narrow)] += count
        several = [jaxprs(value) for value in equation.params.values()]
        branches = [products(each, share) for group in several for each in group]
        if equation.primitive.name == "cond":
            largest = max(branches, key=operations)
            branches = [Counter({size: number * share for size, number in largest.items()})]
        for each in branches:
            found.update(each)
    return found


def operations(found: Counter[Size]) -> float:
    return sum(size.operations * number for size, number in found.items())


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
    with precisely(algorithm.precision):
        program = jax.make_jaxpr(
            lambda s, k: algorithm.agent.update(s.agent, algorithm.world(s), s.replay, k)
        )(state, jax.random.key(0)).jaxpr  # fmt: skip
    found = products(program, share=1 / algorithm.agent.policy_delay)
    passing = [state]

    def block() -> Any:
        passing[0], metrics = algorithm.dream(passing[0])
        return metrics

    update = milliseconds(block, repeats) / algorithm.block
    alone = milliseconds(products_alone({size: round(SHARES * number) for size, number in found.items()}), repeats) / SHARES
    return {
        "update_ms": round(update, 2), "products_ms": round(alone, 2), "ratio": round(update / alone, 2),
        "gflop": round(operations(found) / 1e9, 2),
    }  # fmt: skip


def products_alone(found: dict[Size, int]) -> Callable[[], Any]:
    """A compiled call that makes so many products of each size and nothing else."""

    def factors(size: Size) -> tuple[jax.Array, jax.Array]:
        kind = jnp.bfloat16 if size.narrow else jnp.float32
        return jnp.ones((size.rows, size.summed), kind), jnp.ones((size.summed, size.columns), kind)

    def several(x: jax.Array, y: jax.Array, number: jax.Array) -> jax.Array:
        def again(_: int, before: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            # Each waits for the one before it, without which XLA would make but one of them; that costs nothing.
            x, y, _ = jax.lax.optimization_barrier(before)
            return x, y, jax.lax.dot(x, y, preferred_element_type=jnp.float32)

        # How many there are is told when it runs: known before, they would be made side by side, and so once.
        return jax.lax.fori_loop(0, number, again, (x, y, jnp.zeros((x.shape[0], y.shape[1]))))[2]

    compiled = jax.jit(lambda each: [several(*one) for one in each])
    each = [(*factors(size), jnp.int32(number)) for size, number in found.items()]
    return lambda: compiled(each)


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
