"""What a policy loses and saves when it is compressed: return, firing rate, energy of a decision, and what it takes on a Cortex-M4.

    python benchmarks/compress.py cartpole --seeds 0-9 --density 0.4 --rate 0.1 --bits 8 [--record NAME] [--agent.actor.ticks 3 ...]

Every seed is trained, compressed, and measured before and after on the same fresh episodes. Energies are of a decision, before and
after, by the table for 32-bit floats and by that for 8-bit integers, beside the conventional twin of the same widths and a linear
policy; what a table does not know of a twin (exponentials of integers) is left out of its sum, in the twin's favour. An actor that
is conventional already is only measured: so smaller twins are found that do as well. Where compiler and emulator are installed,
the actor runs on the emulated board.
"""

import argparse
import tempfile
from pathlib import Path

import spikedream
from spikedream.cli import parse_train
from spikedream.experiments.record import record_scores
from spikedream.export import prices
from spikedream.export.emulator import BOARDS, emulate, missing
from spikedream.export.energy import EnergyUse, measure, priced
from spikedream.runners.compress import compressed
from spikedream.runs.run import Run
from spikedream.snn.networks import SpikingNetwork

TABLES = ("45nm", "45nm-int8")


def energies(measured: EnergyUse, when: str, who: tuple[str, ...]) -> dict[str, float]:
    """Picojoules of a decision, by table."""
    found = {table: priced(measured, prices.load(table))["decision"] for table in TABLES}
    return {f"pJ {name} {when}, {table}": found[table][name]["known_picojoules"] for table in TABLES for name in who}


def decided(run: Run, when: str) -> dict[str, float]:
    measured, played = measure(run, 3, learning=False), run.evaluate(100)
    scores = {f"return {when}": played.mean(), f"rate {when}": played.firing_rate}
    return scores | energies(measured, when, ("policy", "twin", "linear"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("preset")
    parser.add_argument("--seeds", default="0-9", help="as 0-9 or 1000,1001")
    parser.add_argument("--density", type=float)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--bits", type=int)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--record", metavar="NAME")
    options, settings = parser.parse_known_args()
    first, dash, last = options.seeds.partition("-")
    seeds = list(range(int(first), int(last) + 1)) if dash else [int(seed) for seed in options.seeds.split(",")]
    config = parse_train([options.preset, *settings]).config
    board, scores = BOARDS["cortex-m4"], {}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as place:
            run = spikedream.train(config, seed=seed, out=Path(place) / "run", report=False)
            found = decided(run, "before")
            if isinstance(config.agent.actor, SpikingNetwork):
                changed = compressed(run, options.density, options.rate, options.bits, options.updates)
                run = spikedream.train(changed, out=Path(place) / "compressed", report=False)
                found |= decided(run, "after")
            if missing(board) is None:
                done = spikedream.export_policy(run, "c", vectors=100)
                there = emulate(done.directory, board)
                assert there.passed, f"{board.name} computes other bits"
                mean = sum(there.instructions) / len(there.instructions)
                found |= {"instructions a decision": mean, "flash, bytes": there.flash, "RAM, bytes": there.ram}
        print(seed, {name: round(x, 3) for name, x in found.items()}, flush=True)
        for name, x in found.items():
            scores.setdefault(name, []).append(x)
    if options.record:
        record_scores(f"compress-{options.record}", scores)


if __name__ == "__main__":
    main()
