"""What the parallel runner costs and gains; one JSON line for each measurement.

    python benchmarks/parallel.py cartpole --seeds 3     # wall time and real steps beside the synchronous runner's
    python benchmarks/parallel.py collect                # an environment that takes 20 ms a step, 1, 4, 16 and 64 of them
    python benchmarks/parallel.py intake --seconds 60    # transitions a second through the driver
    python benchmarks/parallel.py kills --number 50 --budget 500      # SIGKILL at random moments in one run

With `--record` what is found becomes rows `results/parallel-*.json`; kills only where the run was solved. Needs
`pip install 'spikedream[ray]'`. Wall times are of this machine with all else that runs on it, whose load is told.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.experiments.record import record_scores
from spikedream.runners.account import Account
from spikedream.runners.crew import Crew
from spikedream.runners.intake import Intake
from spikedream.runners.lanes import Handover
from spikedream.runners.schedule import Schedule
from spikedream.runs.provenance import commit, processor
from spikedream.runs.run import Run
from spikedream.spec import Spec
from spikedream.types import Transition

PARTS = ("Collecting", "Modelling", "Dreaming", "Evaluating")


class Slow(gymnasium.Env):
    """17 numbers observed, 6 acted with, 20 ms a step."""

    observation_space, action_space = Box(-np.inf, np.inf, (17,), np.float32), Box(-1, 1, (6,), np.float32)

    def __init__(self, seconds: float = 0.02):
        self._seconds = seconds

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(17, np.float32), {}

    def step(self, action: Any) -> Any:
        time.sleep(self._seconds)
        return np.zeros(17, np.float32), 0.0, False, False, {}


gymnasium.register("Slow-v0", Slow, max_episode_steps=1000)


def keep(name: str, **found: float) -> None:
    """As a row of results, where that is asked for."""
    keep_all(name, {score: [value] for score, value in found.items()})


def keep_all(name: str, found: Mapping[str, Sequence[float]]) -> None:
    """Of several repetitions."""
    if asked.record:
        print(record_scores(f"parallel-{name}", found))


def tell(what: str, **found: Any) -> None:
    load = os.getloadavg()[0]
    print(json.dumps({"what": what, **found, "load": round(load, 1), "processor": processor(), "commit": commit()}), flush=True)


# ---- beside the synchronous runner


def cartpole(seeds: int) -> None:
    """The preset, a process a run, as from the command line; the first of each kind warms the compilation cache and is left out."""
    for runner in ("Sync", "Parallel"):
        found = []
        for seed in range(100, 101 + seeds):
            with tempfile.TemporaryDirectory() as home:
                out = Path(home) / "run"
                command = [sys.executable, "-m", "spikedream", "train", "cartpole", "--runner", runner, "--seed", str(seed)]
                start, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
                seconds, now = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
                found.append({"seconds": round(seconds, 1), "cpu": round(cpu, 1)} | json.loads((out / "result.json").read_text()))
        told = ("seconds", "wall_seconds", "real_steps_to_solve", "real_steps", "fresh_return_mean")
        rows = [{name: row[name] for name in told} for row in found[1:]]
        # What was not solved counts as all its steps.
        each = {name: [row["real_steps"] if row[name] is None else row[name] for row in rows] for name in told}
        tell(f"cartpole {runner}", median={name: statistics.median(values) for name, values in each.items()}, runs=rows)
        keep_all(f"cartpole-{runner.lower()}", {name.replace("_", " "): values for name, values in each.items()})


# ---- collecting


def collect(seconds: float) -> None:
    """Steps a second of collectors that are asked by a driver, without learning; linear is 50 for each environment."""
    from spikedream.envs.registration import copied
    from spikedream.runners.newest import Newest
    from spikedream.runners.parts import Collecting, Seat, Task

    crew = Crew(None)
    try:
        for collectors, environments in ((1, 1), (2, 2), (2, 8), (4, 16)):
            chosen = slow(collectors, environments)
            spec = configuration_spec(chosen)
            algorithm = chosen.algorithm(spec)
            import jax

            policy = Newest(algorithm, algorithm.init(jax.random.key(0)), 0, 0).policy.acting
            names = [f"collector {i}" for i in range(collectors)]
            for i, name in enumerate(names):
                crew.start(name, Collecting, Task(chosen, spec, copied(chosen.env, chosen)[0]), Seat(i, 0))
            intake = begun(chosen, spec)
            shared = crew.put(policy)
            given = dict.fromkeys(names, shared)

            def ask(names=names, intake=intake, crew=crew, given=given) -> None:
                idle = [i for i, name in enumerate(names) if crew.asked(name) < 2]
                for i, request in intake.requests(idle, 10**9):
                    crew.ask(names[i], "collect", given[names[i]], 0, request, within=300)
                    given[names[i]] = None

            ask()
            while any(given.values()) or intake.account.progress.real_steps < 40 * collectors * environments:  # all have compiled
                for name, handover in crew.wait(1.0):
                    assert intake.receive(names.index(name), handover, 0) is None, handover
                ask()
            start, before = time.perf_counter(), intake.account.progress.real_steps
            while time.perf_counter() - start < seconds:
                for name, handover in crew.wait(1.0):
                    assert intake.receive(names.index(name), handover, 0) is None, handover
                ask()
            rate = (intake.account.progress.real_steps - before) / (time.perf_counter() - start)
            number = collectors * environments
            linear = rate / (50 * number)
            tell("collect", environments=number, collectors=collectors, rate=round(rate, 1), linear=round(linear, 3))
            keep(f"collect-{number}", **{"steps a second": rate, "of linear": linear})
            for name in names:
                crew.stop(name)
    finally:
        crew.close()


def slow(collectors: int, environments: int) -> Config:
    return configuration.merge(
        configuration.named("Slow-v0"),
        {
            "budget": 10**9,
            "action_repeat": 1,
            "collect": {"seed_episodes": 0, "environments": environments, "threads": True, "steps": 10**8, "growth": 0.0},
            "replay": {"capacity": 100_000},
            "runner": {"kind": "Parallel", "collectors": collectors, "seconds": 0.2},
        },
    )


def configuration_spec(chosen: Config) -> Spec:
    from spikedream.envs.make import spec_of

    return spec_of(chosen.env, chosen.env_kwargs, None)


def begun(chosen: Config, spec: Spec) -> Intake:
    class Nobody:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    account = Account(chosen, Path(tempfile.gettempdir()), Nobody())
    intake = Intake(chosen, spec, account, Schedule(chosen), ["learner"])
    intake.replay = intake.algorithm.buffer.init(spec, chosen.environments)
    intake.unsent = {"learner": []}
    return intake


# ---- through the driver


class Source:
    """A collector without an environment: hands over as fast as it is asked."""

    def __init__(self, rows: int, environments: int):
        rng = np.random.default_rng(0)

        def field(*size: int) -> Any:
            return rng.normal(size=(rows, environments, *size)).astype(np.float32)

        zero = np.zeros((rows, environments), np.float32)
        self._steps = Transition(field(17), field(6), field(), field(17), zero, zero, zero)  # pyright: ignore[reportArgumentType]

    def collect(self, given: Any, version: int, request: Any) -> Handover:
        rows, environments = self._steps.reward.shape
        return Handover(request.serial, self._steps, np.zeros(environments, bool), rows * environments, (), version, 0.0)


def intake(seconds: float) -> None:
    """Transitions of 17 + 6 numbers that two collectors bring and the driver checks, puts into its replay and hands to two
    learners, which take what is new once a second; and the memory of the driver."""
    chosen = slow(2, 16)
    spec = configuration_spec(chosen)
    taken = begun(chosen, spec)
    taken.unsent = {"model": [], "agent": []}
    crew = Crew(None)
    try:
        for i in range(2):
            crew.start(f"collector {i}", Source, chosen.runner.rows, 16)  # pyright: ignore[reportAttributeAccessIssue]
        start = told = time.perf_counter()
        begin, memory, before = start, [], 0
        while (now := time.perf_counter()) - begin < seconds + 10:
            idle = [i for i in range(2) if crew.asked(f"collector {i}") < 2]
            for i, request in taken.requests(idle, 10**9):
                crew.ask(f"collector {i}", "collect", None, 0, request, within=60)
            for name, handover in crew.wait(0.1):
                assert taken.receive(int(name[-1]), handover, 0) is None
            if now - told >= 1.0:
                told = now
                for learner in taken.unsent:
                    taken.new_to(learner)
                memory.append(_resident())
                if now - begin < 10:  # started, compiled, and the first replay filled
                    start, before, memory = now, taken.account.progress.real_steps, []
        rate = (taken.account.progress.real_steps - before) / (time.perf_counter() - start)
        tell("intake", transitions_a_second=round(rate), seconds=seconds, memory_mb=[memory[0], max(memory), memory[-1]])
        told = {"transitions a second": rate, "MB at first": memory[0], "MB at most": max(memory), "MB at the end": memory[-1]}
        keep("intake", **told)
    finally:
        crew.close()


def _resident() -> int:
    return next(int(line.split()[1]) // 1024 for line in Path("/proc/self/status").read_text().splitlines() if "VmRSS" in line)


# ---- kills


def kills(number: int, seed: int, budget: int) -> None:
    """CartPole to the end of its budget, solved or not; what was lost, and whether it is solved at the end."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "run"
        settings = ["--runner", "Parallel", "--runner.collectors", "2", "--budget", str(budget), "--evaluation.stop", "False"]
        settings += ["--runner.failures", "20", "--seed", str(seed)]
        command = [sys.executable, "-m", "spikedream", "train", "cartpole", *settings, "--out", str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        killed, start = 0, time.perf_counter()
        while process.poll() is None and killed < number:
            time.sleep(rng.uniform(0.5, 6.0))
            victims = [pid for pid, name in _children(process.pid).items() if name.startswith(tuple(f"ray::{p}" for p in PARTS))]
            for pid in rng.sample(victims, min(len(victims), rng.choice((1, 1, 1, 2, 4)), number - killed)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        error = process.communicate()[1]
        if process.returncode:
            return tell("kills", number=killed, failed=error.strip())
        run = Run(out)
        assert run.result is not None
        steps = run.experience().in_order()
        follows = (np.asarray(steps.next_obs)[:-1] == np.asarray(steps.obs)[1:]).all(-1)
        wrong = int((~(follows | (np.maximum(steps.terminated, steps.truncated)[:-1] > 0))).sum())
        counted, solved_at = run.counters["real_steps"], run.result["real_steps_to_solve"]
        found = {
            "killed": killed, "steps lost": counted - steps.reward.size - _waiting(run), "steps out of order": wrong,
            "restarts": run.metrics[-1]["parallel/restarts"], "real steps": counted, "steps to solve": solved_at,
            "fresh return": run.result["fresh_return_mean"], "seconds": round(time.perf_counter() - start),
        }  # fmt: skip
        tell("kills", **found)
        if solved_at is not None:
            keep("kills", **found)


def _waiting(run: Run) -> int:
    """Steps that fill no row."""
    from spikedream.runs import checkpoint

    arrays = checkpoint.load(run.directory / "checkpoints").arrays
    return sum(x.size for name, x in arrays.items() if name.startswith("lane.") and name.endswith(".reward"))


def _children(root: int) -> dict[int, str]:
    parents, names = {}, {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(entry.name)
            parents[pid] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            names[pid] = (entry / "cmdline").read_bytes().decode(errors="replace")
    found, front = set(), {root}
    while front:
        front = {pid for pid, parent in parents.items() if parent in front and pid not in found}
        found |= front
    return {pid: names[pid] for pid in found}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cartpole", "collect", "intake", "kills"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--number", type=int, default=50)
    parser.add_argument("--budget", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    if asked.what == "cartpole":
        cartpole(asked.seeds)
    elif asked.what == "collect":
        collect(asked.seconds)
    elif asked.what == "intake":
        intake(asked.seconds)
    else:
        kills(asked.number, asked.seed, asked.budget)
