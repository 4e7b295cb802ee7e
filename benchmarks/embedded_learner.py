"""Learning on a small computer: CartPole-v1 from nothing, with the environment inside, on a board that QEMU emulates.

    python benchmarks/embedded_learner.py [--seeds 10] [--first-seed 0] [--board cortex-m4] [--hidden 32] [--dyna]
        [--record NAME]

For each seed a network is drawn here, exported as a learner, and learns there and on this machine: the hash of all that was learned
must be the same. With --dyna it also learns a model there, and dreams. Steps are those until 100 greedy episodes reach 475 in the
mean, looked at every 250. With --record the figures become results/embedded-NAME-BOARD.json. `make test-embedded` installs what is
needed.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import spikedream
from spikedream.experiments.record import record_scores
from spikedream.export.emulator import BOARDS, train_on

EVERY, STEPS = 250, 20000
DYNA = {"dyna": {"kind": "Dyna"}, "entropy": 0.05}  # as the study `embedded` has it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--board", choices=BOARDS, default="cortex-m4")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--dyna", action="store_true")
    parser.add_argument("--record", metavar="NAME")
    options = parser.parse_args()
    # The surrogate lets neurons that are far from firing be passed over.
    network = {"hidden": [options.hidden], "neuron": {"surrogate": "Triangular"}}
    agent = {"actor": network, "critic": network} | (DYNA if options.dyna else {})
    drawn = {"budget": 1, "collect": {"steps": 1}, "evaluation": {"episodes": 1}, "agent": agent}
    scores: dict[str, list[float]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as place:
            run = spikedream.train("online-cartpole", seed=seed, out=Path(place) / "run", settings=drawn, report=False)
            directory = spikedream.export_learner(run, vectors=1, dyna=options.dyna).directory
            there = train_on(directory, BOARDS[options.board], seed + 1, STEPS, EVERY)
            flags = f"CFLAGS=-O2 -DSEED={seed + 1}u -DSTEPS={STEPS} -DEVERY={EVERY}"
            subprocess.run(["make", "-s", "train", flags], cwd=directory, check=True)
            here = subprocess.run(["./train"], cwd=directory, capture_output=True, text=True).stdout.split()
        assert int(here[-1]) == there.hash, f"{options.board} learns other bits"
        found = {
            "steps": float("inf") if there.solved is None else there.solved,
            "instructions a step": there.instructions, "instructions at most": there.most,
            "instructions a decision": there.deciding,
            "code, bytes": there.code, "flash, bytes": there.flash, "RAM, bytes": there.ram,
        }  # fmt: skip
        print(seed, found, flush=True)
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
    if float("inf") in scores["steps"]:
        sys.exit("a seed was not solved: no row is recorded")
    if options.record:
        record_scores(
            f"embedded-{options.record}-{options.board}",
            shlex.join(["python", "benchmarks/embedded_learner.py", *sys.argv[1:]]),
            scores,
        )


if __name__ == "__main__":
    main()
