"""What a turn of RUN costs: seconds of a fit of its world model, and of a block of its agent's updates in what was fitted, on its
own experience. Of two versions of the program the figures compare where both are asked about one RUN, in turn.

    python benchmarks/turn.py RUN [--repeats 3] [--record NAME]

Each figure is the median over repeated calls from the same state, compiled before, everything blocked on. `--record` writes
`results/turn-NAME.json`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

import spikedream
from spikedream.experiments.record import record_scores


def seconds(verb: Callable[..., Any], state: Any, *arguments: Any, repeats: int) -> tuple[Any, list[float], float]:
    """What `verb` leaves, the seconds of each call, and those of compiling it."""
    start = time.perf_counter()
    call = jax.jit(verb).lower(state, *arguments).compile()  # a verb by itself would take the state's buffers with it
    compiling, times, after = time.perf_counter() - start, [], state
    for _ in range(repeats):
        start = time.perf_counter()
        after = jax.block_until_ready(call(state, *arguments))[0]
        times.append(time.perf_counter() - start)
    return after, times, compiling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", metavar="NAME")
    options = parser.parse_args()
    run = spikedream.load(options.run)
    algorithm, config = run.algorithm, run.config
    state = replace(run.state, replay=run.experience())
    if algorithm.agent.online or algorithm.host_learner(state) is not None:
        raise SystemExit(
            f"{options.run}: {type(algorithm.agent).__name__} learns from each step or outside compiled programs; ask about a run"
            " whose agent learns in compiled blocks of updates, such as Dreamer or PPO"
        )
    fit, dream = f"s, a fit of {config.world_model.updates} steps", f"ms, one of {algorithm.block} updates"
    state, fits, compiling = seconds(algorithm.fit, state, np.int32(config.world_model.updates), repeats=options.repeats)
    print(f"{statistics.median(fits):8.2f} {fit}; {compiling:.0f} s to compile")
    _, blocks, compiling = seconds(algorithm.dream, state, repeats=options.repeats)
    updates = [1e3 * block / algorithm.block for block in blocks]
    print(f"{statistics.median(updates):8.2f} {dream}; {compiling:.0f} s to compile")
    if options.record:
        record_scores(f"turn-{options.record}", {fit: fits, dream: updates})


if __name__ == "__main__":
    main()
