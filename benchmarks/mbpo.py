"""MBPO of mbrl-lib beside ours on one environment, in one run, one after the other: real steps, return and wall time.

    python benchmarks/mbpo.py --mbrl PYTHON [--preset halfcheetah] [--steps 30000] [--out DIRECTORY] [--record]

PYTHON is a Python that has mbrl-lib, which wants an environment of its own:

    python -m venv ENV && ENV/bin/pip install torch && ENV/bin/pip install --no-deps mbrl==0.2.0
    ENV/bin/pip install gym 'gymnasium[mujoco]' 'mujoco<4' hydra-core omegaconf termcolor imageio tqdm

mbrl-lib's settings are its own for the environment, but that it keeps all real steps, and is evaluated as often and on as many
episodes as ours: 10 greedy ones by the policy of that moment. Real steps count the first ones too, before it learns. Wall seconds
include evaluation, and ours compilation; imports count for neither. Prints JSON lines, which `--out` keeps
(`runs/mbpo/PRESET-STEPS-sSEED`).

It may be stopped at any time and started again with the same arguments: what is through is not done again, our training goes on
where it was, and mbrl-lib's, which keeps no state to go on from, begins anew. With others in the same directory it is refused.
`--record` writes `results/mbpo-PRESET-ours.json` and `-mbrl.json`.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from called import called

PRESETS = ("halfcheetah", "hopper")  # for which mbrl-lib has settings in the same environment
EPISODES = 10
DECISIVE = ("preset", "steps", "every", "seed", "first")  # the arguments that results depend on


def ours(given: argparse.Namespace, directory: Path) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "spikedream"]
    if any((directory / "checkpoints").glob("*")):
        command += ["resume", str(directory)]
    else:
        first = [] if given.first is None else [f"--collect.seed-steps={given.first}"]
        command += ["train", given.preset, "--seed", str(given.seed), "--budget", str(given.steps), "--out", str(directory)]
        command += ["--evaluation.every", str(given.every), "--evaluation.episodes", str(EPISODES), *first]
    subprocess.run(command, check=True, stdout=sys.stderr)
    rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{"real_steps": r["real_steps"], "return": r["eval_return_mean"], "wall_seconds": r["wall_seconds"]} for r in rows]


def theirs(given: argparse.Namespace, file: Path) -> list[dict[str, Any]]:
    """Their lines, which are also in `file` as soon as they are there."""
    names = [name for name in DECISIVE if getattr(given, name) is not None]
    numbers = [f"--{name}={getattr(given, name)}" for name in names]
    found = []
    with (
        subprocess.Popen([str(given.mbrl), __file__, "--serve", *numbers], stdout=subprocess.PIPE, text=True) as process,
        file.open("w") as kept,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", file=sys.stderr)
            print(line, end="", file=kept, flush=True)
            found.append(json.loads(line))
    if process.returncode:
        raise SystemExit(f"mbrl-lib's training ended with {process.returncode}; {file} has what it had reached")
    return found


def serve(given: argparse.Namespace) -> None:
    """In the other Python: mbrl-lib's own training, which tells each evaluation."""
    import gymnasium
    import mbrl.algorithms.mbpo as mbpo
    import mbrl.env.termination_fns as termination
    import torch
    from omegaconf import OmegaConf

    groups = {"algorithm": "mbpo", "dynamics_model": "gaussian_mlp_ensemble", "overrides": f"mbpo_{given.preset}"}
    files = Path(mbpo.__file__).parents[1] / "examples" / "conf"
    parts = {group: OmegaConf.load(files / group / f"{name}.yaml") for group, name in groups.items()}
    settings = OmegaConf.create({"seed": given.seed, "device": "cpu", "log_frequency_agent": 1000, **parts})
    settings.dynamics_model["_recursive_"] = False  # it makes its activation function itself
    algorithm, overrides = settings.algorithm, settings.overrides
    first = algorithm.initial_exploration_steps if given.first is None else given.first
    algorithm.update(initial_exploration_steps=first, num_eval_episodes=EPISODES, dataset_size=given.steps)
    overrides.num_steps = given.steps - first
    overrides.epoch_length = min(overrides.epoch_length, given.every)

    class Counting(gymnasium.Wrapper):
        steps = 0

        def step(self, action: Any) -> Any:
            self.steps += 1
            return self.env.step(action)

    name = {"halfcheetah": "HalfCheetah-v4", "hopper": "Hopper-v4"}[given.preset]
    env, test = Counting(gymnasium.make(name)), gymnasium.make(name)
    # In place of a class that gym no longer has; the bounds of these environments are the same for all actions.
    low, high, shape = float(env.action_space.low[0]), float(env.action_space.high[0]), list(env.action_space.shape)
    algorithm.agent.action_space = {"_target_": "gymnasium.spaces.Box", "low": low, "high": high, "shape": shape}
    env.reset(seed=given.seed)
    test.reset(seed=given.seed + 10_000)
    torch.manual_seed(given.seed)
    evaluate, out, begun, told = mbpo.evaluate, sys.stdout, time.perf_counter(), 0

    def evaluated(*arguments: Any) -> float:
        """At the end of each of its epochs."""
        nonlocal told
        if env.steps // given.every == told // given.every and env.steps < given.steps:
            return float("nan")
        told, value = env.steps, float(evaluate(*arguments))
        line = {"real_steps": told, "return": value, "wall_seconds": round(time.perf_counter() - begun, 1)}
        print(json.dumps(line), file=out, flush=True)
        return value

    mbpo.evaluate = evaluated
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        mbpo.train(env, test, getattr(termination, overrides.term_fn), settings, silent=True, work_dir=directory)


def keep_arguments(given: argparse.Namespace, directory: Path) -> None:
    """Beside the results, which are those of no others."""
    directory.mkdir(parents=True, exist_ok=True)
    file, own = directory / "arguments.json", {name: getattr(given, name) for name in DECISIVE}
    if not file.exists():
        if any(directory.iterdir()):
            raise SystemExit(f"{directory} holds files of which nobody knows the arguments; choose another --out")
        file.write_text(json.dumps(own))
    before = json.loads(file.read_text())
    if before != own:
        different = ", ".join(
            f"--{name} {before.get(name)} and not {own[name]}" for name in DECISIVE if before.get(name) != own[name]
        )
        raise SystemExit(f"{directory} holds results with {different}; choose another --out")


def record(given: argparse.Namespace, command: str, party: str, lines: list[dict[str, Any]]) -> None:
    from spikedream.experiments.record import record_scores

    scores = {f"return at {line['real_steps']}": [line["return"]] for line in lines} | {"wall_seconds": [lines[-1]["wall_seconds"]]}
    record_scores(f"mbpo-{given.preset}-{party}", scores, command=command)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbrl", type=Path, metavar="PYTHON", help="a Python that has mbrl-lib; without, ours alone is trained")
    parser.add_argument("--preset", choices=PRESETS, default="halfcheetah")
    parser.add_argument("--steps", type=int, default=30_000, help="real steps")
    parser.add_argument("--every", type=int, default=5_000, help="real steps between evaluations")
    parser.add_argument("--first", type=int, help="real steps before learning begins; as each has it, unless given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="runs/mbpo/PRESET-STEPS-sSEED, unless given")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        return serve(given)
    from spikedream.runs.provenance import processor

    out = given.out or Path("runs/mbpo") / f"{given.preset}-{given.steps}-s{given.seed}"
    keep_arguments(given, out)
    for party in ("ours", "mbrl") if given.mbrl else ("ours",):
        done = out / f"{party}.json"
        if not done.exists():
            lines = ours(given, out / "ours") if party == "ours" else theirs(given, out / "mbrl-so-far.jsonl")
            done.write_text(json.dumps(lines))
        lines = json.loads(done.read_text())
        for line in lines:
            print(json.dumps({"party": party, "preset": given.preset, **line, "processor": processor()}), flush=True)
        if given.record:
            record(given, called(__file__, parser, given, ("record", "out")), party, lines)


if __name__ == "__main__":
    main()
