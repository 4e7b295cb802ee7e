"""What a trained policy takes on small computers: instructions a decision, flash and RAM, on boards that QEMU emulates.

    python benchmarks/embedded.py cartpole [--seed 0] [--record NAME] [--agent.actor.encoder GaussianPopulation ...]

A preset is trained, exported as C and compared, on every board, with the policy in JAX on test vectors; flash is of the least
complete program that acts, RAM of its data and of the stack that a decision takes. With --record each board's figures become
results/embedded-NAME-BOARD.json, a repetition for each test vector. `make test-embedded` installs what this needs.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import spikedream
from spikedream.cli import parse_train
from spikedream.experiments.record import record_scores
from spikedream.export.emulator import BOARDS, emulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vectors", type=int, default=100)
    parser.add_argument("--record", metavar="NAME")
    options, settings = parser.parse_known_args()
    config = parse_train([options.preset, *settings]).config
    with tempfile.TemporaryDirectory() as place:
        run = spikedream.train(config, seed=options.seed, out=Path(place) / "run", report=False)
        print(f"return over 100 fresh episodes: {run.evaluate(100).mean():.1f}")
        done = spikedream.export_policy(run, "c", vectors=options.vectors)
        print(f"{done.vectors} test vectors, {done.left_out} too close to call left out")
        here = subprocess.run(["make", "-s", "-C", str(done.directory), "test"], capture_output=True, text=True)
        for board in BOARDS.values():
            there = emulate(done.directory, board)
            assert here.returncode == 0 and there.passed and there.output == here.stdout, f"{board.name} computes other bits"
            scores = {"instructions a decision": there.instructions, "flash, bytes": there.flash, "RAM, bytes": there.ram}
            print(board.name, {name: x if isinstance(x, int) else (sum(x) / len(x), max(x)) for name, x in scores.items()})
            if options.record:
                each = {name: [x] * done.vectors if isinstance(x, int) else x for name, x in scores.items()}
                record_scores(f"embedded-{options.record}-{board.name}", each)


if __name__ == "__main__":
    main()
