"""What the first experience of an environment gives reason to doubt."""

import sys
from pathlib import Path

import numpy as np
import pytest
from test_resume import Notes

from spikedream import cli
from spikedream import config as configuration
from spikedream.config import ConfigError
from spikedream.envs.host import HostEnvironments
from spikedream.envs.make import may_be_endless
from spikedream.envs.spaces import BrokenEnvironment, random_action
from spikedream.runners.account import Account
from spikedream.runners.sync import Trainer
from spikedream.runs.doubts import ENOUGH, doubts
from spikedream.runs.evaluate import Evaluated
from spikedream.types import Transition

sys.path.insert(0, str(Path(__file__).parent))


def steps(number: int = 200, late: int = 0, **changes) -> list[Transition]:
    """Of a point that two actions push, `late` steps after they were chosen; `changes` of what is told of each, by its field."""
    rng, found, x, speed = np.random.default_rng(0), [], 0.0, 0.0
    pushes = rng.choice([-1.0, 1.0], number + late)
    for now in range(number):
        speed = 0.9 * speed + pushes[now]
        told = {
            "obs": np.array([[x, 1.0 + now % 2]]), "action": np.eye(2)[[int(pushes[now + late] > 0)]], "reward": np.array([-x]),
            "next_obs": np.array([[x + speed, 1.0 + (now + 1) % 2]]), "terminated": np.zeros(1), "truncated": np.zeros(1),
            "log_prob": np.zeros(1),
        }  # fmt: skip
        x += speed
        found.append(Transition(**(told | {name: change(told[name]) for name, change in changes.items()})))
    return found


def observed(change) -> dict:
    return {"obs": change, "next_obs": change}


@pytest.mark.parametrize(
    ("experience", "says"),
    [
        (steps(reward=lambda r: 0 * r + 3.0), "the reward has been 3 in all of the first 200 steps"),
        (steps(reward=lambda r: 1e7 * r - 1e7), "a reward reached"),
        (steps(reward=lambda r: 1e-9 * r), "no reward was larger than"),
        (steps(**observed(lambda x: x * [[1, 1e-7]])), "entry 1 of the observation changed by less than 1e-06, which is not seen"),
        (steps(**observed(np.zeros_like)), "the observation has been the same in all of the first 200 steps"),
        (steps(**observed(lambda x: x * [[1, 0]])), "entry 1 of the observation never changed"),
        (steps(**observed(lambda x: x * [[1, 1e9]])), "entry 1 of the observation reached 2e+09"),
        (
            steps(**observed(lambda x: x + np.array([[0, 9e5]]))),
            "entry 1 of the observation changed by less than 1e-05 of what it is",
        ),
        (steps(action=lambda a: np.eye(2)[np.random.default_rng().integers(2, size=1)]), "no action has made a difference"),
    ],
)
def test_what_looks_wrong_is_told_in_a_line(experience: list[Transition], says: str) -> None:
    assert [doubt for doubt in doubts(experience, False) if doubt.text.startswith(says)], doubts(experience, False)


def test_targets_that_a_value_cannot_follow_are_told_once(tmp_path: Path) -> None:
    notes, result = Notes(), Evaluated(np.zeros(1), np.ones(1), 0.0, None)
    account = Account(configuration.Config(), tmp_path, notes)
    account.open()
    for share in (None, 0.01, 0.45, 0.9):
        account.progress.measured = {} if share is None else {"targets_beyond_limit": share}
        account.write_row(result, [])
    account.close()
    (told,) = notes.texts
    assert told.startswith("45% of the targets lie beyond agent.value.limit") and "set it to the largest return" in told


@pytest.mark.parametrize("late", [0, 3])
def test_nothing_is_said_of_an_environment_that_answers_even_late(late: int) -> None:
    assert doubts(steps(late=late), False) == []


def test_a_constant_reward_tells_something_where_episodes_terminate_and_ends_no_run_where_a_bonus_is_paid() -> None:
    flat = {"reward": lambda r: 0 * r + 1.0}
    assert doubts(steps(**flat, terminated=lambda x: x + 1.0), False) == []
    (curious,) = doubts(steps(**flat), True)
    assert "curiosity alone leads" in curious.text and not curious.grave


def test_episodes_that_nothing_is_known_to_end_are_doubted_until_one_has_ended() -> None:
    (doubt,) = doubts(steps(), False, may_be_endless=True)
    assert "no episode has ended in the first 200 steps" in doubt.text and "--max-episode-steps" in doubt.text and not doubt.grave
    assert doubts(steps(terminated=lambda x: x + 1.0), False, may_be_endless=True) == []
    assert may_be_endless("environments:SelfTruncating-v0", None)
    for env, limit in (("environments:SelfTruncating-v0", 40), ("CartPole-v1", None), ("spikedream:INICartPoleSwingUp-v0", None)):
        assert not may_be_endless(env, limit)


def test_too_few_steps_say_nothing() -> None:
    assert doubts(steps(ENOUGH - 1, **observed(np.zeros_like)), False) == []


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "MountainCarContinuous-v0", "spikedream:CartPoleHiddenVelocity-v0"])
def test_nothing_is_said_of_environments_that_are_as_they_should_be(env: str) -> None:
    host, rng, found = HostEnvironments(env, {}, None, 0), np.random.default_rng(0), []
    for _ in range(100):
        host.begin()
        found.append(host.step(random_action(host.spec, rng)[None], np.zeros(1, np.float32))[0])
    host.close()
    assert doubts(found, False) == []


def test_what_is_doubted_of_the_steps_that_measured_for_how_long_actions_are_held_is_told_although_they_are_not_kept(
    tmp_path: Path,
) -> None:
    notes, settings = Notes(), {"env": "environments:Tide-v0", "action_repeat": None, "budget": 500, "strict": True}
    config = configuration.merge(configuration.named("debug"), settings)
    with pytest.raises(BrokenEnvironment, match=r"given up \(strict\): no action has made a difference"):
        Trainer(config, tmp_path / "run", notes, alone=False)
    assert "actions are held for" in notes.texts[0] and not (tmp_path / "run" / "config.yaml").exists()


def test_a_budget_that_measuring_uses_up_leaves_nothing_to_learn_from(tmp_path: Path) -> None:
    config = configuration.merge(configuration.named("debug"), {"env": "environments:Tide-v0", "action_repeat": None, "budget": 60})
    with pytest.raises(ConfigError, match=r"^budget is 60, all of which .* is held; set it above 100, or action_repeat to \d+$"):
        Trainer(config, tmp_path / "run", Notes(), alone=False)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_strict_run_ends_in_one_line_before_anything_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "environments:Deaf-v0", "--strict", "True", "--threshold", "1e9", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "was given up (strict): no action has made a difference" in told and "Traceback" not in told
    assert not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text()
