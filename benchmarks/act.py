"""The greedy action for one observation, called from Python: `python benchmarks/act.py RUN [--record NAME]`, which writes
`results/act-NAME.json`."""

import argparse
import statistics
import time

import numpy as np

import spikedream
from spikedream.experiments.record import record_scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a run directory")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--record", metavar="NAME")
    options = parser.parse_args()
    run = spikedream.load(options.run)
    obs = np.zeros(run.spec.obs_size, np.float32)
    policy = run.policy
    policy(obs)
    times = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        for _ in range(500):
            policy(obs)
        times.append((time.perf_counter() - start) / 500 * 1e3)
    print(f"{statistics.median(times):.3f} ms an action (lowest {min(times):.3f}, highest {max(times):.3f})")
    if options.record:
        record_scores(f"act-{options.record}", {"ms an action": times})


if __name__ == "__main__":
    main()
