"""One rule for when a run counts as solved and for what it says of itself."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from spikedream import config as configuration
from spikedream.agents.ppo import PPO
from spikedream.config import Config, Evaluation
from spikedream.envs.host import CONFIRM, EVALUATE
from spikedream.runs import outcome, provenance
from spikedream.runs.checkpoint import CheckpointError
from spikedream.runs.evaluate import Evaluated


class Player:
    """Plays episodes whose mean returns are told beforehand, and notes what it was asked for."""

    def __init__(self, *means: float):
        self.means, self.asked = list(means), []

    def __call__(self, *asked: int) -> Evaluated:
        self.asked.append(asked)
        mean = self.means[len(self.asked) - 1]
        return Evaluated(np.array([mean - 1, mean + 1]), np.array([5, 5]), 0.0, None)


@pytest.mark.parametrize(
    ("means", "confirmations", "solved", "asked"),
    [
        ((90,), 0, True, [(EVALUATE, 7)]),
        ((89.9,), 2, False, [(EVALUATE, 7)]),
        ((90, 91, 92), 2, True, [(EVALUATE, 7), (CONFIRM, 7, 0), (CONFIRM, 7, 1)]),
        ((90, 50), 2, False, [(EVALUATE, 7), (CONFIRM, 7, 0)]),
        ((90, 91, 50), 2, False, [(EVALUATE, 7), (CONFIRM, 7, 0), (CONFIRM, 7, 1)]),
    ],
)
def test_a_run_is_solved_when_the_evaluation_and_all_confirmations_reach_the_threshold(means, confirmations, solved, asked) -> None:
    play = Player(*means)
    verdict = outcome.judge(90.0, confirmations, play, 7)
    assert verdict.solved is solved and play.asked == asked and verdict.evaluated.mean() == means[-1]


def test_without_a_threshold_nothing_is_solved_and_nothing_confirmed() -> None:
    play = Player(1e9)
    assert not outcome.judge(None, 3, play, 0).solved and play.asked == [(EVALUATE, 0)]


ROW = {
    "turn": 3, "real_steps": 40, "imagined_steps": 0, "updates": 2, "eval_return_mean": 9.0, "eval_return_std": 1.0,
    "firing_rate/actor": 0.25,
}  # fmt: skip


def test_a_result_tells_of_fresh_episodes_and_of_what_made_it(tmp_path: Path) -> None:
    config = Config(preset="p", seed=5, budget=40, evaluation=Evaluation(2))
    outcome.begin(config, tmp_path / "run")
    told = {"threshold": 9.0, "solved_at": None, "wall_seconds": 1.0, "packages": ["scipy"]}
    outcome.write_result(tmp_path / "run", config, ROW, (8.5, 1.0), **told)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert (result["fresh_return_mean"], result["fresh_return_std"]) == (8.5, 1.0)
    assert (result["solved"], result["real_steps_to_solve"], result["budget"]) == (False, None, 40)
    assert result["firing_rate"] == {"actor": 0.25} and result["decision_ms"] is None
    assert result["version"] == result["versions"]["spikedream"] == provenance.version() and result["versions"]["scipy"]
    assert result["commit"] == provenance.commit() and result["processor"] == provenance.processor() != ""


def test_the_processor_is_named_with_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1}, raising=False)
    assert provenance.processor.__wrapped__().endswith(", 1 core")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 3}, raising=False)
    assert provenance.processor.__wrapped__().endswith(", 3 cores")


def test_a_configuration_names_what_began_the_run_and_loads_as_it_was(tmp_path: Path) -> None:
    config = Config(seed=5)
    outcome.begin(config, tmp_path / "deep/run")
    text = (tmp_path / "deep/run/config.yaml").read_text()
    assert text.startswith(f"# spikedream {provenance.version()}, commit ")
    assert configuration.load(tmp_path / "deep/run/config.yaml") == config


def test_a_run_directory_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot make the run directory .*file/run: Not a directory"):
        outcome.begin(Config(), tmp_path / "file/run")


def git(place: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(place), *identity, *arguments], check=True, capture_output=True)


def told_commit(place: Path) -> str:
    """What `provenance.commit` says where spikedream is imported from `place`."""
    program = "from spikedream.runs import provenance; print(provenance.__file__, provenance.commit())"
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    file, commit = done.stdout.split()
    assert file.startswith(str(place))
    return commit


def test_the_commit_is_of_the_working_copy_that_is_imported_and_of_no_other(tmp_path: Path) -> None:
    """A package inside somebody else's repository, such as an environment's, has no commit of its own."""
    package = Path(provenance.__file__).parents[1]
    git(tmp_path, "init")
    shutil.copytree(package, tmp_path / "src/spikedream", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "src/spikedream/__init__.py").write_text("")  # of which it would import all
    (tmp_path / ".gitignore").write_text("__pycache__/\nlib/\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "all of it")
    head = subprocess.run(["git", "-C", str(tmp_path), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert told_commit(tmp_path / "src") == head
    (tmp_path / "README.md").write_text("words")  # changes no number
    assert told_commit(tmp_path / "src") == head
    (tmp_path / "src/spikedream/new.py").write_text("")
    assert told_commit(tmp_path / "src") == f"{head}+dirty"
    shutil.copytree(tmp_path / "src", tmp_path / "lib")
    assert told_commit(tmp_path / "lib") == "None"


def test_the_hash_of_the_source_disregards_what_changes_no_number() -> None:
    before = '"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1  # why\n'
    assert provenance.program(before) == provenance.program("def f( x ):\n    return (x +\n  1)\n")
    assert provenance.program(before) != provenance.program(before.replace("+ 1", "+ 2"))
    assert provenance.program(before) == provenance.program(before.replace("Doc", "Words"))


def test_a_source_says_the_same_under_each_version_of_python() -> None:
    tree = ast.parse("def f(x):\n    return f'{x}'")
    function = cast(ast.FunctionDef, tree.body[0])
    written, returned = provenance.told(tree), cast(ast.JoinedStr, cast(ast.Return, function.body[0]).value)
    function.type_params = []  # Python 3.12 knows type parameters, which no older one does
    returned.values.append(ast.Constant(""))  # and ends formatted strings with an empty piece
    assert provenance.told(tree) == written
    returned.values.append(ast.Constant("!"))
    assert provenance.told(tree) != written


def test_a_result_depends_on_the_source_of_its_own_parts() -> None:
    assert provenance.code(Config()) == provenance.code(Config(seed=3)) != provenance.code(Config(agent=PPO()))
    assert provenance.code("a baseline") != provenance.code(Config())
    own = provenance._imported({"runners/sync.py", "agents/dreamer.py"})
    assert {"algorithm.py", "agents/actor_critic.py", "ops/dream.py", "snn/neurons.py", "envs/host.py"} <= own
    assert not {name for name in own if name.startswith(("experiments", "reports", "planners", "config", "agents/ppo"))}


def _forget() -> None:
    """What was read of the source."""
    provenance._program.cache_clear()
    provenance._code.cache_clear()


def _with_changed(file: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the source be as it is, but for one file that says more."""
    sources = {name: directory / str(i) for i, name in enumerate(provenance._sources())}
    for name, copy in sources.items():
        copy.write_text((provenance.PACKAGE / name).read_text() + ("new = 1\n" if name == file else ""))
    monkeypatch.setattr(provenance, "_sources", lambda: sources)
    _forget()


@pytest.mark.parametrize(("file", "changes"), [("snn/neurons.py", True), ("agents/ppo.py", False), ("config.py", False)])
def test_a_hash_changes_with_the_source_that_it_is_of(file: str, changes: bool, tmp_path: Path, monkeypatch) -> None:
    before = provenance.code(Config())
    _with_changed(file, tmp_path, monkeypatch)
    assert (provenance.code(Config()) != before) is changes
    _forget()


@pytest.mark.parametrize(
    ("script", "file", "changes"),
    [("act", "snn/neurons.py", True), ("act", "export/emulator.py", False), ("embedded", "export/emulator.py", True)],
)
def test_a_measurement_depends_on_what_its_script_measures(script: str, file: str, changes: bool, tmp_path, monkeypatch) -> None:
    measuring = Path(__file__).parents[1] / "benchmarks" / f"{script}.py"
    before = provenance.code_of_script(measuring)
    _with_changed(file, tmp_path, monkeypatch)
    assert (provenance.code_of_script(measuring) != before) is changes
    _forget()
