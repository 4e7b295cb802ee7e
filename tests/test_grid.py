"""Studies, from their files to cells."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from small import CONTINUOUS
from written_runs import call

from spikedream import config as configuration
from spikedream.config import ConfigError
from spikedream.envs.make import spec_of
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.experiments import baselines, grid

TINY = """
name: tiny
seeds: [4, 2]
environments:
  debug: {threshold: 300}
  Pendulum-v1: {budget: 700, evaluation: {episodes: 3}}
methods:
  spiking: {base: debug, agent: {horizon: 7}, on: {Pendulum-v1: {agent: {gamma: 0.9}}}}
  twin: {base: debug, twin: true, only: [debug]}
  ppo: {sb3: PPO, evaluate_every: 50, settings: {gamma: 0.5}, on: {debug: {budget: 800}}}
"""


def test_a_study_expands_to_methods_environments_and_seeds(tmp_path: Path) -> None:
    cells = grid.expand(grid.parse(TINY, "tiny.yaml"), tmp_path)
    names = [(cell.environment, cell.method, cell.seed) for cell in cells]
    once = [("debug", "spiking"), ("debug", "twin"), ("debug", "ppo"), ("Pendulum-v1", "spiking"), ("Pendulum-v1", "ppo")]
    assert names == [(*pair, seed) for seed in (4, 2) for pair in once]
    spiking, twin, ppo, pendulum, pendulum_ppo = (cell.config for cell in cells[:5])
    assert cells[0].directory == tmp_path / "debug/spiking/s4"
    assert isinstance(spiking, configuration.Config) and isinstance(pendulum, configuration.Config)
    assert (spiking.env, spiking.preset, spiking.seed, spiking.agent.horizon, spiking.budget) == (
        "CartPole-v1",
        "spiking",
        4,
        7,
        60,
    )
    assert spiking.threshold == ppo.threshold == 300 and spiking.evaluation == ppo.evaluation
    assert isinstance(twin, configuration.Config) and type(twin.agent.actor).__name__ == "MLP"
    assert (
        pendulum.env == "Pendulum-v1" and pendulum.agent.horizon == 7 and pendulum.agent.gamma == 0.9 and pendulum.threshold is None
    )
    assert pendulum.budget == 700 and pendulum.evaluation.episodes == 3 and spiking.agent.gamma != 0.9
    assert isinstance(ppo, baselines.Baseline) and isinstance(pendulum_ppo, baselines.Baseline)
    assert ppo.budget == 800 and pendulum_ppo.budget == 700 and ppo.agent.environments == 8 and ppo.agent.evaluate_every == 50
    assert ppo.agent.settings["gamma"] == 0.5 and ppo.agent.settings["gae_lambda"] == 0.8  # ours, and RL Baselines3 Zoo's


def test_a_baseline_that_the_zoo_does_not_know_has_the_library_s_settings_and_its_own(tmp_path: Path) -> None:
    study = (
        "{name: x, seeds: [1], environments: {InvertedPendulum-v5: }, methods: {sac: {sb3: SAC, settings: %s, evaluate_every: 7}}}"
    )
    for written, settings in (("{}", {}), ("{gamma: 0.9}", {"gamma": 0.9})):
        [cell] = grid.expand(grid.parse(study % written, "x"), tmp_path)
        assert isinstance(cell.config, baselines.Baseline) and cell.config.budget == 100_000
        assert cell.config.agent == baselines.StableBaselines3("SAC", evaluate_every=7, settings=settings)


def test_a_baseline_s_settings_survive_their_file(tmp_path: Path) -> None:
    config = next(cell.config for cell in grid.expand(grid.parse(TINY, "tiny.yaml"), tmp_path) if cell.method == "ppo")
    configuration.save(config, tmp_path / "ppo.yaml")  # pyright: ignore[reportArgumentType]
    assert baselines.load(tmp_path / "ppo.yaml") == config


@pytest.mark.parametrize("name", grid.studies())
def test_a_study_that_comes_with_spikedream_is_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = grid.named(name)
    here = [environment for environment in named.environments if usable(environment)]
    if not here:  # of what it needs only the sizes are known here
        here = list(named.environments)
        monkeypatch.setattr(grid, "spec_of", lambda *_: CONTINUOUS)
    cells = grid.expand(named, tmp_path, here)
    assert named.name == name and {cell.method for cell in cells} == {*named.methods}
    assert {cell.environment for cell in cells} == {*here} and len(here) > len(named.environments) / 3


def usable(environment: str) -> bool:
    """Whether what it needs is installed."""
    config = configuration.named(environment)
    try:
        return bool(spec_of(config.env, config.env_kwargs, config.max_episode_steps))
    except BrokenEnvironment:
        return False


def test_an_environment_that_cannot_be_used_is_left_out_where_others_are_asked_for(tmp_path: Path) -> None:
    study = grid.parse("{name: x, seeds: 1, environments: {debug: , Missing-v0: }, methods: {a: }}", "x")
    assert [cell.environment for cell in grid.expand(study, tmp_path, ["debug"])] == ["debug"]
    for asked in ([], ["debug", "Missing-v0"]):
        with pytest.raises(BrokenEnvironment, match="Missing-v0"):
            grid.expand(study, tmp_path, asked)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 3}, "has an unknown key 'seed'; did you mean 'seeds'?"),
        ({"name": None}, "name takes a text"),
        ({"name": "../x"}, "name takes a text"),
        ({"seeds": None}, "seeds takes how many, or a list of whole numbers, not None"),
        ({"seeds": 0}, "has no seeds"),
        ({"seeds": []}, "has no seeds"),
        ({"seeds": [1, "two"]}, "seeds takes how many, or a list of whole numbers"),
        ({"seeds": True}, "seeds takes how many, or a list of whole numbers"),
        ({"seeds": [1, 1]}, "a seed is there twice"),
        ({"held_out": "debug"}, "held_out takes a list of environments, not 'debug'"),
        ({"held_out": ["debgu"]}, "held_out names 'debgu', which is not among the environments; did you mean 'debug'?"),
        ({"held_out": ["debug"]}, "all environments are held out"),
        ({"environments": {}}, "has no environments"),
        ({"environments": ["CartPole-v1"]}, "environments takes a mapping from names to settings"),
        ({"environments": {"debug": 3}}, "environments.debug takes a mapping of settings, not 3"),
        ({"environments": {"debgu": None}}, "environments.debgu: no preset 'debgu' (did you mean 'debug'?)"),
        ({"environments": {"CartPoll-v1": None}}, "nearest: CartPole-v1"),
        ({"environments": {"debug": {"budgte": 3}}}, "environments.debug: unknown setting 'budgte'; did you mean 'budget'?"),
        ({"statistic": "median"}, "statistic is one of iqm, mean, not 'median'"),
        ({"marks": [100, 0]}, "marks takes a list of real steps, at least 1 each, not [100, 0]"),
        ({"methods": None}, "has no methods"),
        ({"methods": {"a/b": {}}}, "a method's name takes letters"),
        (
            {"methods": {"m": {"agent": {"horizn": 3}}}},
            "methods.m on debug: unknown setting 'agent.horizn'; did you mean 'horizon'?",
        ),
        ({"methods": {"m": {"base": "carpole"}}}, "methods.m on debug: no preset 'carpole'"),
        ({"methods": {"m": {"threshold": 3}}}, "methods.m sets threshold, which must be the same for all methods"),
        ({"methods": {"m": {"on": {"debug": {"env": "x"}}}}}, "methods.m sets env, which must be the same for all methods"),
        ({"methods": {"m": {"on": {"debgu": {}}}}}, "names 'debgu', which is not among the environments; did you mean 'debug'?"),
        ({"methods": {"m": {"only": "debug"}}}, "methods.m.only takes a list of environments, not 'debug'"),
        ({"methods": {"m": {"agent": {"gradient": "model"}}}}, "methods.m on debug: "),
        ({"methods": {"m": {"sb3": "PPPO"}}}, "no Stable-Baselines3 algorithm 'PPPO'; known: PPO, DQN, SAC"),
        ({"methods": {"m": {"sb3": "SAC"}}}, "RL Baselines3 Zoo has no settings for SAC on CartPole-v1; it has: Pendulum-v1"),
        ({"methods": {"m": {"sb3": "SAC"}}}, "MountainCarContinuous-v0; `settings: {}` stands for the library's own"),
        ({"methods": {"m": {"sb3": "PPO", "evalute_every": 3}}}, "unknown setting 'evalute_every'; did you mean 'evaluate_every'?"),
    ],
)
def test_a_wrong_study_is_explained_before_anything_is_run(
    change: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"name": "x", "seeds": 1, "environments": {"debug": None}, "methods": {"m": {}}} | change
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(data))
    status, out, err = call(capsys, "study", str(file), "--out", str(tmp_path / "out"))
    assert status == 1 and says in err and err.startswith("spikedream: ") and err.count("\n") == 1
    assert out == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["nothing"],
            "no study 'nothing'; spikedream comes with debug, dreams-on-mujoco, embedded, model-based-against-model-free",
        ),
        (["no/such.yaml"], "cannot read no/such.yaml"),
        (["debug", "--jobs", "0"], "jobs is 0; it must be at least 1"),
    ],
)
def test_a_wrong_call_of_study_is_explained(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = call(capsys, "study", *arguments)
    assert status == 1 and says in err and err.count("\n") == 1


def test_a_study_that_is_no_yaml_is_explained(tmp_path: Path) -> None:
    for text, says in (("a: b: c", "is not valid YAML"), ("[1]", "is not a mapping with name, seeds")):
        with pytest.raises(ConfigError, match=says):
            grid.parse(text, "x.yaml")
