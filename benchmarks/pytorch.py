"""Time of an update with a spiking actor, of one of a spiking ensemble, of dreams and of a training step, beside plain PyTorch:

    python benchmarks/pytorch.py --torch PYTHON [--record]

PYTHON is a Python that has torch, gymnasium and mujoco (`popsan_in_pytorch.py` runs there; nothing here needs torch):

    python -m venv ENV && ENV/bin/pip install torch 'gymnasium[mujoco]' 'mujoco<4'

Both learn HalfCheetah-v4 with the networks of the preset `popsan-halfcheetah`, and all but the step learns from random experience.
They take turns, each on all cores that this process may use, so that their ratio holds on a machine whose speed drifts; the first
turn is thrown away, with whatever it compiles. Ours is measured as a run does it: an update in a block of them, an update of the
ensemble in a whole fit, the step in the loop of `spikedream.runners.sync` over so many real steps that all of the preset's clocks
strike, without evaluation and checkpoints. Products are in the precision that a run of the preset would take, or `--precision`;
PyTorch's are in float32, or with `--autocast` in bfloat16 where `torch.autocast` makes them so.

Prints a JSON line for each part: milliseconds of both (lowest, median, highest), and the ratio of the medians. `--record` writes
them as `results/pytorch-PART-ours.json` and `-pytorch.json`, and of another preset as `results/pytorch-PRESET-PART-...`.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from called import called
from off_policy import filled

from spikedream import config as configuration
from spikedream.agents.dreams import Dreams
from spikedream.agents.off_policy import OffPolicy
from spikedream.algorithm import Algorithm
from spikedream.config import Checkpointing, Config, Evaluation
from spikedream.envs.make import spec_of
from spikedream.experiments.record import record_scores
from spikedream.runners.sync import Trainer
from spikedream.runs.provenance import processor
from spikedream.snn.product import fastest, precisely
from spikedream.spec import Spec
from spikedream.types import Decision

ROWS = 10_000  # of experience
NEVER = 2**30
PRESET = "popsan-halfcheetah"
THEIRS = {"env": "HalfCheetah-v4", "observation": 17, "actions": 6, "members": 3}  # as written into popsan_in_pytorch.py
Part = Callable[[], float]  # milliseconds of one unit, from one measurement
# Measurements of each party in a turn, and how many times as fast ours is to be.
PARTS = {"update": (3, 10, 5.0), "model update": (1, 3, 10.0), "dream": (3, 1, 10.0), "step": (1, 1, 8.0)}


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what it returned."""
    begun = time.perf_counter()
    out = jax.block_until_ready(call())
    return 1e3 * (time.perf_counter() - begun), out


def off_policy(config: Config) -> tuple[OffPolicy, Dreams]:
    """The agent and its dreams."""
    if not isinstance(config.agent, OffPolicy) or config.agent.dreams is None:
        raise SystemExit(f"{config.preset} has no OffPolicy agent that dreams, which is what the program in PyTorch does")
    return config.agent, config.agent.dreams


def same_sizes(config: Config, spec: Spec) -> None:
    """As the program in PyTorch has."""
    members = getattr(config.world_model, "members", None)
    own = {"env": config.env, "observation": spec.obs_size, "actions": spec.action_size, "members": members}
    different = ", ".join(f"{name} {own[name]} and not {value}" for name, value in THEIRS.items() if own[name] != value)
    if different:
        raise SystemExit(f"{config.preset} is not what the program in PyTorch learns: {different}")


def update(config: Config, algorithm: Algorithm) -> Part:
    """Of actor and critics, of those that the policy delay leaves out at their share; without dreams."""
    algorithm = replace(algorithm, agent=replace(off_policy(config)[0], dreams=None))
    state = filled(algorithm, ROWS)

    def measure() -> float:
        nonlocal state
        ms, (state, _) = timed(lambda: algorithm.dream(state))
        return ms / algorithm.block

    return measure


def model_update(config: Config, algorithm: Algorithm) -> Part:
    state, updates = filled(algorithm, ROWS), config.fit.then or config.world_model.updates

    def measure() -> float:
        nonlocal state
        ms, (state, metrics) = timed(lambda: algorithm.fit(state, np.int32(updates)))
        return ms / float(metrics["model_updates"])

    return measure


def dream(config: Config, algorithm: Algorithm) -> Part:
    """From all starts over all steps, kept in the ring."""
    state, (agent, dreams) = filled(algorithm, ROWS), off_policy(config)
    world = algorithm.world(state)

    @partial(jax.jit, donate_argnums=0)
    def dreamed(before: Any, learned: Any, key: Any) -> Any:
        def policy(carry: tuple[()], obs: Any, key: Any) -> Decision:
            return agent.act(agent.policy_of(learned), world, carry, obs, key, greedy=False)

        with precisely(algorithm.precision):
            return dreams.dream(before, world, state.replay, policy, key)

    ring, key = jax.tree.map(lambda x: x.copy(), state.agent.dreams), jax.random.key(1)

    def measure() -> float:
        nonlocal ring
        ms, ring = timed(lambda: dreamed(ring, state.agent, key))
        return ms

    return measure


def step(config: Config, directory: Path) -> Part:
    """The loop as it is, over so many real steps that all of its clocks strike."""
    agent, dreams = off_policy(config)
    config = replace(
        config, budget=NEVER, evaluation=Evaluation(NEVER), checkpoint=Checkpointing(NEVER),
        collect=replace(config.collect, seed_steps=1000), agent=replace(agent, dreams=replace(dreams, begin=0)),
    )  # fmt: skip
    trainer = Trainer(config, directory, Silence())
    steps = max(config.fit.every or 0, dreams.every, config.collect.steps)

    def turn() -> None:
        trainer.collect()
        trainer.fit()
        trainer.dream()
        trainer.turn_over()

    def measure() -> float:
        if trainer.progress.turn == 0:
            turn()
        before = trainer.progress.real_steps

        def turns() -> Any:
            while trainer.progress.real_steps < before + steps:
                turn()
            return trainer.state.agent

        return timed(turns)[0] / (trainer.progress.real_steps - before)

    return measure


class Silence:
    """A listener that says nothing."""

    def parts(self, doing: dict[str, str]) -> None: ...
    def phase(self, name: str, done: int, total: int) -> None: ...
    def progress(self, real_steps: int, budget: int) -> None: ...
    def record(self, row: Any) -> None: ...
    def note(self, text: str) -> None: ...


class Peer:
    """The program in PyTorch."""

    def __init__(self, python: Path, autocast: bool):
        program = str(Path(__file__).resolve().with_name("popsan_in_pytorch.py"))
        command = [str(python.absolute()), program, *(["--autocast"] if autocast else [])]
        elsewhere = tempfile.gettempdir()  # where MuJoCo's log of its warnings is in nobody's way
        self.process = subprocess.Popen(command, cwd=elsewhere, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the program in PyTorch ended; what it said is above")
        return json.loads(line)

    def measure(self, part: str, calls: int) -> list[float]:
        assert self.process.stdin is not None
        print(json.dumps([part, calls]), file=self.process.stdin, flush=True)
        return self._answer()


def summary(times: list[float]) -> dict[str, float]:
    return {name: round(f(times), 3) for name, f in (("min", min), ("median", statistics.median), ("max", max))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", type=Path, required=True, metavar="PYTHON", help="a Python that has torch")
    parser.add_argument("--preset", default=PRESET, help="whose networks PyTorch's are, or a YAML file")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--precision", choices=("float32", "bfloat16", "fastest"))
    parser.add_argument("--autocast", action="store_true", help="PyTorch's products in bfloat16 too")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    config = configuration.named(given.preset)
    precision = given.precision or config.precision
    precision = fastest() if precision == "fastest" else precision
    config = replace(config, precision=precision)
    spec = spec_of(config.env, config.env_kwargs, None)
    off_policy(config)
    same_sizes(config, spec)
    algorithm = config.algorithm(spec)
    row = "pytorch" if given.preset == PRESET else f"pytorch-{Path(given.preset).stem}"
    peer = Peer(given.torch, given.autocast)
    with tempfile.TemporaryDirectory() as directory:
        makers: dict[str, Callable[[], Part]] = {
            "update": lambda: update(config, algorithm),
            "model update": lambda: model_update(config, algorithm),
            "dream": lambda: dream(config, algorithm),
            "step": lambda: step(config, Path(directory)),
        }
        for part in given.parts:
            ours, (own_calls, peer_calls, target) = makers[part](), PARTS[part]
            times: dict[str, list[float]] = {"ours": [], "pytorch": []}
            for turn in range(given.turns + 1):
                measured = {"ours": [ours() for _ in range(own_calls)], "pytorch": peer.measure(part, peer_calls)}
                for name, values in measured.items() if turn else ():
                    times[name] += values
            told = {f"{name}_ms": summary(values) for name, values in times.items()}
            ratio = told["pytorch_ms"]["median"] / told["ours_ms"]["median"]
            line = {"part": part, **told, "ratio": round(ratio, 2), "target": target, "precision": precision}
            print(json.dumps(line | peer.about | {"autocast": given.autocast, "processor": processor()}), flush=True)
            for name, values in times.items() if given.record else ():
                record_scores(f"{row}-{part.replace(' ', '-')}-{name}", {"ms": values}, command=called(__file__, parser, given))


if __name__ == "__main__":
    main()
