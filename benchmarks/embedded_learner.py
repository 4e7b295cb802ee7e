"""Learning on a small computer: CartPole-v1 from nothing, with the environment inside, on a board that QEMU emulates.

    python benchmarks/embedded_learner.py [--seeds 10] [--first-seed 0] [--board cortex-m4] [--hidden 32] [--dyna] [--host]
        [--record NAME]

For each seed a network is drawn here, exported as a learner, and learns there and on this machine: the hash of all that was learned
must be the same. With --dyna it also learns a model there, and dreams. Steps are those until 100 greedy episodes reach 475 in the
mean, looked at every 250. With --host it learns on this machine alone, the same bits, and goes on: is what was learned still there
in each of the four evaluations that follow, and when did five in a row begin? With --record the figures become
results/embedded-NAME-BOARD.json. `make test-embedded` installs what is needed.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import spikedream
from spikedream.experiments.record import record_scores
from spikedream.export.emulator import BOARDS, train_on

EVERY, STEPS, SOLVED, IN_A_ROW = 250, 20000, 475, 5
# The surrogate lets neurons that are far from firing be passed over.
NETWORK = {"hidden": [32], "neuron": {"surrogate": "Triangular"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--board", choices=BOARDS, default="cortex-m4")
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--dyna", action="store_true")
    parser.add_argument("--host", action="store_true")
    parser.add_argument("--record", metavar="NAME")
    options = parser.parse_args()
    network = NETWORK | {"hidden": [options.hidden]}
    agent = {"actor": network, "critic": network}
    drawn = {"budget": 1, "collect": {"steps": 1}, "evaluation": {"episodes": 1}, "agent": agent}
    scores: dict[str, list[float]] = {}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        with tempfile.TemporaryDirectory() as place:
            preset = "dyna-cartpole" if options.dyna else "online-cartpole"
            run = spikedream.train(preset, seed=seed, out=Path(place) / "run", settings=drawn, report=False)
            directory = spikedream.export_learner(run, vectors=1, dyna=options.dyna).directory
            found = kept(directory, seed) if options.host else learned(directory, seed, options.board)
        print(seed, found, flush=True)
        for name, value in found.items():
            scores.setdefault(name, []).append(value)
    if float("inf") in scores["steps"]:
        sys.exit("a seed was not solved: no row is recorded")
    if options.record:
        record_scores(
            f"embedded-{options.record}-{'host' if options.host else options.board}",
            scores,
        )


def learned(directory: Path, seed: int, board: str) -> dict[str, float]:
    there = train_on(directory, BOARDS[board], seed + 1, STEPS, EVERY)
    assert int(here(directory, seed, 1)[-1]) == there.hash, f"{board} learns other bits"
    return {
        "steps": float("inf") if there.solved is None else there.solved,
        "instructions a step": there.instructions, "instructions at most": there.most,
        "instructions a decision": there.deciding,
        "code, bytes": there.code, "flash, bytes": there.flash, "RAM, bytes": there.ram,
    }  # fmt: skip


def here(directory: Path, seed: int, in_a_row: int) -> list[str]:
    """The words that the same program prints on this machine."""
    flags = f"CFLAGS=-O2 -DSEED={seed + 1}u -DSTEPS={STEPS} -DEVERY={EVERY} -DIN_A_ROW={in_a_row}"
    subprocess.run(["make", "-s", "-B", "train", flags], cwd=directory, check=True)
    return subprocess.run(["./train"], cwd=directory, capture_output=True, text=True).stdout.split()


def kept(directory: Path, seed: int) -> dict[str, float]:
    """Steps to the first evaluation that is good, steps to the first of five in a row, and whether these are the same."""
    words = here(directory, seed, IN_A_ROW)
    good = [int(words[i + 1]) for i in range(0, len(words) - 4, 4) if int(words[i + 3]) >= SOLVED]
    first, row = float(good[0]) if good else float("inf"), float(words[-3]) or float("inf")
    return {"steps": first, "steps to five in a row": row, "stays": float(first == row < float("inf"))}


if __name__ == "__main__":
    main()
