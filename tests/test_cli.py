"""The command line from the outside: what works, and one clear line for what cannot."""

import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import spikedream
from spikedream.cli import COMMANDS, main
from spikedream.experiments import record
from spikedream.export.energy import of_newest
from spikedream.runners.energy_told import EnergyTold
from spikedream.runs.evaluate import Evaluator

sys.path.insert(0, str(Path(__file__).parent))  # for ids such as `environments:Walk-v0`

TINY = ["--improve.first", "2", "--improve.then", "2"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of `spikedream ARGUMENTS`."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    captured = capsys.readouterr()
    return stop.value.code if isinstance(stop.value.code, int) else 1, captured.out, captured.err


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cli") / "run"
    with pytest.raises(SystemExit) as stop:
        main(["train", "debug", "--seed", "3", "--out", str(directory)])
    assert stop.value.code == 0
    return directory


def test_a_run_s_world_is_an_environment_that_begins_in_its_experience(run: Path) -> None:
    opened = spikedream.load(run)
    env = opened.dream_env(5, spikedream.SteppedDreams(horizon=3))
    obs, _ = env.reset(seed=0)
    real = np.asarray(opened.experience().in_order().obs[:, 0])
    assert all(np.isclose(real, row[None], rtol=1e-4, atol=1e-5).all(1).any() for row in obs)
    after, reward, *_, infos = env.step(env.action_space.sample())
    assert env.observation_space.contains(after) and np.isfinite(reward).all() and infos["imagined"].all()


def test_a_run_directory_holds_what_the_design_promises(run: Path) -> None:
    assert {f.name for f in run.iterdir()} == {
        "config.yaml", "result.json", "metrics.jsonl", "tensorboard", "checkpoints", "report.html",
    }  # fmt: skip
    result = json.loads((run / "result.json").read_text())
    assert result["env"] == "CartPole-v1" and result["preset"] == "debug" and result["seed"] == 3
    assert result["real_steps"] == 60 and result["solved"] is False and result["real_steps_to_solve"] is None
    assert result["imagined_steps"] > 0 and result["updates"] > 0 and result["eval_episodes"] == 4
    assert result["wall_seconds"] > result["compile_seconds"] > 0
    assert 0 < result["firing_rate"]["actor"] < 1 and 0 < result["firing_rate"]["world_model"] < 1
    assert result["versions"]["jax"] and result["processor"] and result["version"] == result["versions"]["spikedream"]
    fresh = spikedream.load(run).evaluate(4)  # on the seeds of repetition 0
    assert (result["fresh_return_mean"], result["fresh_return_std"]) == (fresh.mean(), fresh.std())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["real_steps"] == 60 and [row["turn"] for row in rows] == list(range(len(rows)))


def test_evaluate_is_repeatable_and_another_repetition_differs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = call(capsys, "evaluate", str(run), "--episodes", "7")
    again = call(capsys, "evaluate", str(run), "--episodes", "7")
    other = call(capsys, "evaluate", str(run), "--episodes", "7", "--repetition", "1")
    assert first == again and first[0] == 0 and "over 7 greedy episodes" in first[1]
    assert other[1] != first[1]


def test_evaluate_says_how_many_succeeded_where_the_environment_tells(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Evaluator._call

    def telling(self: Evaluator, what: str, *args: Any, **kwargs: Any) -> Any:
        *rest, info = plain(self, what, *args, **kwargs)
        return *rest, info | {"is_success": np.arange(self.batch) < 3}

    assert "succeeded" not in call(capsys, "evaluate", str(run), "--episodes", "7")[1]
    monkeypatch.setattr(Evaluator, "_call", telling)
    assert "; 3 of 7 succeeded" in call(capsys, "evaluate", str(run), "--episodes", "7")[1]


def test_resume_of_a_finished_run_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "result.json").read_bytes()
    assert call(capsys, "resume", str(run))[0] == 0
    assert (run / "result.json").read_bytes() == before


def test_energy_is_counted_priced_and_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((run / "result.json").read_text())
    assert result["energy"]["table"] == "45nm" and result["energy"]["learning_picojoules"] == {}
    report = (run / "report.html").read_text()
    assert 'id="energy"' in report and "<th>dreaming" not in report
    status, out, _ = call(capsys, "energy", str(run), "--json", "--episodes", "2")
    assert "<th>dreaming" in (run / "report.html").read_text()
    found = json.loads(out)
    assert status == 0 and found["decisions"] > 2 and set(found["decision"]) >= {"policy", "twin", "linear"}
    for counted in found["decision"].values():
        assert counted["picojoules"] > 0
        assert counted["picojoules"] == pytest.approx(sum(row["picojoules"] for row in counted["rows"]))
    # An MLP of 4, 8 and 2 units with silu, each of which takes an exponential, an addition, a division and a multiplication.
    macs, biases, units = 4 * 8 + 8 * 2, 8 + 2, 8
    twin = macs * (3.7 + 0.9) + biases * 0.9 + units * (36.8 + 0.9 + 26.3 + 3.7)
    assert found["decision"]["twin"]["picojoules"] == pytest.approx(twin)
    assert found["decision"]["linear"]["picojoules"] == pytest.approx(8 * 4.6 + 2 * 0.9)
    counters = spikedream.load(run).counters
    acted = counters["real_steps"] - counters["first_turn"]
    phases = found["learning"]["policy"]
    assert phases["acting"]["picojoules"] == pytest.approx(acted * found["decision"]["policy"]["picojoules"])
    assert set(phases) == {"acting", "fitting", "dreaming", "learning", "total"}
    assert phases["total"]["picojoules"] == pytest.approx(sum(phases[p]["picojoules"] for p in phases if p != "total"))
    steps = {row["network"]: row["number"] for row in phases["learning"]["rows"] if row["operation"] == "optimizer"}
    actor = sum(x.size for x in jax.tree.leaves(spikedream.load(run).state.agent.actor))
    assert steps["actor"] == 2 * 2 * counters["updates"] * actor  # passes, mini-batches
    kept = json.loads((run / "result.json").read_text())["energy"]["learning_picojoules"]
    assert kept["policy"]["total"] == phases["total"]["picojoules"]


def test_whoever_watches_a_run_is_told_what_a_decision_takes_on_what_it_saw_last(run: Path) -> None:
    opened, rows = spikedream.load(run), []
    state, result = replace(opened.state, replay=opened.experience()), opened.result
    listener: Any = SimpleNamespace(record=rows.append, phase=None, parts=None, progress=None, note=None)
    EnergyTold(listener, opened.algorithm, lambda: state).record({"turn": 0})
    (row,) = rows
    assert result is not None and row["turn"] == 0
    # There, over greedy episodes: the spikes are others, the rest is the same.
    assert row["decision_picojoules"] == pytest.approx(result["energy"]["decision"]["policy"]["picojoules"], rel=0.3)
    nothing = replace(state, replay=opened.algorithm.buffer.init(opened.spec, 1))
    assert of_newest(opened.algorithm, nothing) is None


def test_what_suits_embedded_systems_is_counted_of_finished_runs_and_says_which_tool_it_lacks(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "out" / "debug" / "debug" / "s3"
    shutil.copytree(run, place)
    study = tmp_path / "one.yaml"
    study.write_text("{name: one, seeds: [3], environments: {debug: {}}, methods: {debug: {}}}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("spikedream.export.emulator.shutil.which", lambda tool: None)
    status, out, _ = call(capsys, "embedded", str(study), "--out", "out", "--record", "row")
    assert status == 0 and "(kept)" in out and "0 of 1 in 60" in out
    assert "debug: no figures of cortex-m4: arm-none-eabi-gcc is not installed" in out and "gcc-arm-none-eabi" in out
    kept = json.loads((place / "embedded.json").read_text())["scores"]
    row = record.load("row-debug")
    assert row.scores["pJ to learn"] == [kept["pJ to learn"]] and 0 < kept["pJ a decision"] < kept["pJ to learn"]
    assert kept["operations to learn"] > 1e6 and row.scores["firing rate"] == [kept["firing rate"]]
    assert kept["instructions a decision"] is None and "instructions a decision" not in row.scores  # unknown is no number
    assert "has no method 'debgu'; did you mean 'debug'?" in call(capsys, "embedded", str(study), "--methods", "debgu")[2]
    assert call(capsys, "embedded", "--board", "z80")[2].startswith("spikedream: there is no board 'z80'")
    table = tmp_path / "mine.yaml"
    table.write_text("source: mine\noperations: {add: 1, multiply: 2, synaptic_operation: 1}\n")
    status, _, error = call(capsys, "embedded", str(study), "--out", "new", "--table", str(table))
    foreign = tmp_path / "foreign.yaml"
    foreign.write_text("{name: x, seeds: [3], environments: {debug: {}}, methods: {ppo: {sb3: PPO}, debug: {}}}")
    assert "nothing of ppo can be counted or put on a device" in call(capsys, "embedded", str(foreign), "--out", "new")[2]
    assert status == 1 and "mine.yaml has no price for divide, square_root, exponential, random_number; name" in error
    assert not Path("new").exists()


def test_energy_by_another_table(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "result.json").read_bytes()
    status, out, _ = call(capsys, "energy", str(run), "--table", "loihi")
    assert status == 0 and "IEEE Micro" in out and re.search(r"policy +> \d", out) and "unknown" in out
    assert (run / "result.json").read_bytes() == before
    table = tmp_path / "mine.yaml"
    table.write_text("source: mine\noperations: {add: 1}\n")
    status, _, error = call(capsys, "energy", str(run), "--table", str(table))
    assert status == 1 and "mine.yaml has no price for 'multiply', of which 'multiply_accumulate' consists" in error
    assert call(capsys, "energy", str(run), "--episodes", "0")[2].startswith("spikedream: decisions are counted in at least one")


def test_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "presets")
    assert status == 0
    from spikedream import config

    assert [line.split()[0] for line in out.splitlines() if line[:1] != " "] == list(config.presets())
    assert "spikedream[dm-control]" in out, "brackets are not taken for markup"


def test_flags_reach_the_configuration_and_parts_can_be_swapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from spikedream import config

    out = tmp_path / "run"
    status, *_ = call(
        capsys, "train", "debug", *TINY, "--out", str(out), "--agent.actor", "MLP", "--agent.actor.hidden", "6", "5",
        "--agent.horizon", "3", "--world-model.dynamics.neuron", "AdaptiveLIF", "--budget", "40", "--threshold", "9000",
        "--agent.critic", "MLP", "--world-model.ending", "MLP",
    )  # fmt: skip
    assert status == 0
    saved = config.load(out / "config.yaml")
    assert type(saved.agent.actor).__name__ == "MLP" and saved.agent.actor.hidden == (6, 5)
    assert saved.agent.horizon == 3 and saved.budget == 40 and saved.threshold == 9000
    assert type(saved.world_model.dynamics.neuron).__name__ == "AdaptiveLIF"


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_only_fit_together_are_set_together(order: int) -> None:
    from spikedream.cli import parse_train

    flags = [["--agent.policy", "None"], ["--agent.proposals=0"], ["--seed", "3"]][::order]
    config = parse_train(["cem-cartpole", *(x for flag in flags for x in flag)]).config
    assert config.agent.policy is None and config.agent.proposals == 0 and config.seed == 3


@pytest.mark.parametrize("order", [1, -1])
def test_a_part_and_its_own_settings_come_in_any_order(order: int) -> None:
    from spikedream.cli import parse_train

    flags = [["--world-model.dynamics.readout", "RateReadout"], ["--world-model.dynamics.hidden", "256"]]
    flags += [["--world-model.dynamics.readout.gain", "0.5"], ["--env-kwargs.g", "9.8"]]
    config = parse_train(["cartpole", *(x for flag in flags[::order] for x in flag)]).config
    assert config.world_model.dynamics.hidden == (256,) and config.world_model.dynamics.readout.gain == 0.5
    assert type(config.world_model.dynamics.readout).__name__ == "RateReadout" and config.env_kwargs == {"g": 9.8}


def test_the_twin_and_learning_on_once_it_is_solved_are_a_flag_each() -> None:
    from spikedream.cli import parse_train
    from spikedream.config import ConfigError, named, twin

    config = parse_train(["cartpole", "--twin", "--keep-improving", "--evaluation.episodes", "7"]).config
    assert config.evaluation.stop is False and config.evaluation.episodes == 7
    with pytest.raises(ConfigError, match="--keep-improving takes no value, and 'False' is given; leave the flag out"):
        parse_train(["cartpole", "--keep-improving", "False"])
    assert config.agent == twin(named("cartpole")).agent and config.world_model == twin(named("cartpole")).world_model
    actor = parse_train(["halfcheetah", "--twin", "--agent.learning-rate", "1e-4"]).config.agent.actor
    assert type(actor).__name__ == "MLP" and actor.hidden == (256, 256)


def test_the_commands_in_the_documentation_are_understood() -> None:
    from spikedream.cli import parse_train

    root = Path(__file__).parent.parent
    text = "".join((root / name).read_text() for name in ("README.md", "docs/parts.md"))
    found = re.findall(r"^ {4}spikedream train (.+?)(?: +#.*)?$", text, re.MULTILINE)
    assert len(found) >= 7
    for arguments in found:
        parse_train(arguments.split())


SMALL = [
    *TINY, "--budget", "30", "--collect.seed-episodes", "1", "--collect.steps", "10", "--evaluation.episodes", "2",
]  # fmt: skip
CONVENTIONAL = ["--world-model.dynamics", "MLP", "--world-model.ending", "MLP"]  # programs of half the length


def test_optional_parts_are_chosen_by_their_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from spikedream import config

    out = tmp_path / "run"
    status, said, err = call(
        capsys, "train", "debug", *SMALL, "--out", str(out), "--agent", "MPC", "--agent.policy", "Dreamer",
        "--agent.policy.horizon", "3", "--agent.policy.trajectories", "4",
        "--agent.policy.actor", "MLP", "--agent.policy.critic", "MLP",
        "--agent.horizon", "2", "--agent.search", "RandomShooting", "--agent.search.candidates", "6", "--agent.when", "evaluate",
        "--bonus", "RandomNetworkDistillation", "--bonus.fitting.updates", "3", "--bonus.weight.start", "0.02",
        "--replay.priority", "td_error", "--replay.alpha", "0.7", *CONVENTIONAL,
        "--bonus.target", "MLP", "--bonus.predictor", "MLP",
    )  # fmt: skip
    assert status == 0, said + err
    saved = config.load(out / "config.yaml")
    assert type(saved.agent).__name__ == "MPC" and type(saved.agent.policy).__name__ == "Dreamer"
    assert saved.agent.policy.horizon == 3 and saved.agent.search.candidates == 6 and saved.agent.when == "evaluate"
    assert type(saved.bonus).__name__ == "RandomNetworkDistillation" and saved.bonus.weight.start == 0.02
    assert saved.replay.priority == "td_error" and saved.replay.alpha == 0.7
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["bonus_mean"] > 0 and rows[-1]["beta"] > 0


@pytest.mark.learning
def test_a_hidden_velocity_is_learned_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    status, said, err = call(
        capsys, "train", "CartPoleHiddenVelocity-v0", *SMALL, "--improve.block", "1", "--out", str(out),
        "--world-model", "Recurrent", "--world-model.network", "GRU", "--world-model.network.hidden", "4",
        "--world-model.ensemble.updates", "2",
        "--world-model.ensemble.check-every", "2", "--world-model.ensemble.dynamics", "MLP", "--world-model.ensemble.ending", "MLP",
        "--agent.actor", "MLP", "--agent.critic", "MLP", "--agent.trajectories", "4", "--agent.horizon", "2",
    )  # fmt: skip
    assert status == 0, said + err
    result = json.loads((out / "result.json").read_text())
    assert result["env"] == "CartPoleHiddenVelocity-v0" and result["threshold"] == 475 and result["real_steps"] == 30
    status, said, _ = call(capsys, "evaluate", str(out), "--episodes", "3")
    assert status == 0 and "over 3 greedy episodes" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "cartpoel"], "did you mean 'cartpole'"),
        (["train", "CartPoll-v1"], "nearest: CartPole-v1"),
        (["train", "no_such_module_here:Walk-v0"], "cannot import the module"),
        (["train", "no/such/file.yaml"], "cannot read no/such/file.yaml"),
        (["train", "environments:Images-v0"], "supported are flat Box observations"),
        (["train", "environments:TextObservation-v0"], "supported are flat Box observations"),
        (["train", "environments:TooManyActions-v0"], "900 combinations, and supported are up to 512"),
        (["train", "environments:DictActions-v0"], "supported are Discrete, MultiDiscrete, MultiBinary and bounded Box"),
        (["train", "environments:Unbounded-v0"], "supported are bounded Box actions"),
        (["train", "debug", "--agent.actor", "MPL"], "did you mean 'MLP'"),
        (["train", "debug", "--agent.gradient", "model"], "needs a continuous action space"),
        (["train", "debug", "--bonus", "RandomNetworkDestillation"], "did you mean 'RandomNetworkDistillation'"),
        (["train", "debug", "--bonus", "Boredom"], "bonus has no kind 'Boredom'"),
        (["train", "debug", "--agent", "MPC", "--agent.policy", "Dreamr"], "did you mean 'Dreamer'"),
        (["train", "ppo-cartpole", "--world-model", "Recurrent"], "no memory of an episode, which Recurrent needs"),
        (
            ["train", "debug", "--agent", "PPO"],
            "PPO learns once from each 256 steps of its own policy; set collect.seed_episodes to 0",
        ),
        (["train", "ppo-cartpole", "--budget", "1000"], "PPO learns from 256 steps at a time (agent.rollout); set budget to 1024"),
        (["train", "ppo-cartpole", "--replay.capacity", "100"], "PPO learns from the newest 256 steps"),
        (["train", "ppo-cartpole", "--replay.priority", "td_error"], "nothing here draws by it"),
        (["train", "cem-pendulum", "--replay.priority", "td_error"], "needs a value function"),
        (["train", "debug", "--bonus", "Disagreement", "--world-model.members", "1"], "a world model of at least 2 members"),
        (["train", "ppo-cartpole", "--collect.seed-steps", "9"], "set collect.seed_steps to None (it is 9)"),
        (["train", "debug", "--replay.priority", "loss"], "which Dreamer does not tell; OffPolicy does"),
        (
            ["train", "CartPole-v1", "--agent", "OffPolicy"],
            "needs a continuous action space; Dreamer, PPO and MPC act in discrete ones",
        ),
        (
            [
                "train",
                "Pendulum-v1",
                "--agent",
                "OffPolicy",
                "--agent.dreams",
                "Dreams",
                "--world-model.members",
                "1",
                "--bonus",
                "None",
            ],
            "asks whether the members of an ensemble agree, but the world model has one; set world_model.members to 2",
        ),
        (
            ["train", "Pendulum-v1", "--agent", "OffPolicy", "--agent.dreams", "Dreams", "--agent.dreams.capacity", "2000000000"],
            "its largest array is agent.dreams.ring.obs; lower replay.capacity, or agent.dreams.capacity",
        ),
        (["bench", "debug", "--seeds", "0"], "seeds is 0; it must be at least 1"),
    ],
)
def test_bad_input_gets_one_clear_line(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, _, err = call(capsys, *arguments)
    assert status == 1 and says in err
    assert err.startswith("spikedream: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train", "debug", "--agent.horizn", "3"], "unknown setting 'agent.horizn'; did you mean 'horizon'?"),
        (["train", "debug", "--agent.horizon", "long"], "agent.horizon takes a whole number, not 'long'"),
        (["train", "debug", "--agent.horizon"], "--agent.horizon takes a value; without the flag it is"),
        (["train", "debug", "--agent.actor"], "--agent.actor takes a value; without the flag it is SpikingNetwork"),
        (["train", "debug", "--wandb"], "unknown setting 'wandb'; did you mean 'logging.wandb'?"),
        (["train", "debug", "--wandb", "mine"], "unknown setting 'wandb'; did you mean 'logging.wandb'?"),
        (["train", "debug", "--agent", "MPC", "--agent.serch"], "unknown setting 'agent.serch'; did you mean 'search'?"),
        (
            ["train", "debug", "--runner.collectors", "2"],
            "unknown setting 'runner.collectors' of Sync; it is one of Parallel (--runner Parallel)",
        ),
        (["train", "debug", "--runner.collectors"], "it is one of Parallel (--runner Parallel)"),
        (["train", "debug", "--runner.colectors", "2"], "unknown setting 'runner.colectors'; Sync has none"),
        (["train", "debug", "--world-model.burn-in", "3"], "it is one of Recurrent (--world-model Recurrent)"),
        (["train", "RemoteEnvironment-v0"], "--env-kwargs.address HOST:PORT of `spikedream serve-env`"),
        (["train", "debug", "--realtime.tick"], "--realtime.tick takes a value; without the flag it is None"),
        (["train", "debug", "--out", "a", "b"], "--out takes one value"),
        (["train", "debug", "fast"], "'fast' is no setting"),
        (["train", "debug", "--evaluation.every", "0"], "evaluation.every is 0; it must be at least 1"),
        (["train", "debug", "--improve.ratio", "-0.5"], "improve.ratio is -0.5; it must be at least 0"),
        (["train", "debug", "--agent.gamma", "1.5"], "gamma is 1.5; it must be"),
        (["train", "debug", "--agent.gradient", "model", "--agent.imagined-share.end", "0.5"], "imagined_share is below 1"),
        (
            ["train", "debug", "--agent", "MPC", "--agent.policy", "Dreamer", "--agent.policy.imagined-share.end", "0.5"],
            "policy.imagined_share is below 1",
        ),
        (["train"], "Required options"),
        (["evaluate"], "Required options"),
        (["dance"], "there are train, evaluate"),
    ],
)
def test_a_wrong_flag_is_named(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, *arguments)
    assert status == (2 if says in ("Required options", "there are train, evaluate") else 1) and says in out + err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("agent: {horizn: 3}", "unknown setting 'agent.horizn'; did you mean 'horizon'?"),
        ("agent: {horizon: long}", "agent.horizon takes a whole number, not 'long'"),
        ("agent: {horizon: 2.5}", "agent.horizon takes a whole number, not 2.5"),
        ("collect: 3", "collect takes a mapping"),
        ("world_model: {kind: Ensembel}", "did you mean 'Ensemble'?"),
        ("agent: {actor: {hidden: many}}", "agent.actor.hidden takes a list of whole numbers"),
        ("agent: {trajectories: 0}", "agent.trajectories is 0; it must be at least 1"),
        ("bonus: Boredom", "bonus has no kind 'Boredom'"),
        ("bonus: {kind: Disagreement, weigth: 1}", "unknown setting 'bonus.weigth'; did you mean 'weight'?"),
        ("bonus: 3", "bonus takes a mapping of settings, not 3"),
        ("agent: {kind: MPC, when: never}", "agent.when is 'never'"),
        ("agent: {kind: MPC, when: evaluate}", 'when = "evaluate" needs a policy'),
        ("replay: {priority: surprise}", "replay.priority is 'surprise'"),
        ("world_model: {kind: Recurrent, ensemble: {holdout: 0.1}}", "ensemble.holdout must be 0"),
        ("world_model: {kind: Recurrent, burn_in: 6}", "burn_in is 6; a sequence has 6 steps"),
        ("agent: {kind: MPC, policy: Dreamer, proposals: 125}", "the policy proposes 125 sequences"),
        ("[1, 2]", "is not a mapping of settings"),
        ("a: b: c", "is not valid YAML"),
    ],
)
def test_a_wrong_configuration_file_is_explained(text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    status, _, err = call(capsys, "train", str(file), "--out", str(tmp_path / "run"))
    assert status == 1 and says in err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ("Raises", "raised RuntimeError in step(): the motor is on fire"),
        ("NanObservation", "an observation that is not finite"),
        ("NanReward", "a reward that is not finite"),
        ("WrongShape", "an observation of shape (3,)"),
    ],
)
def test_an_environment_that_breaks_stops_the_run_and_loses_nothing(
    env: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    status, _, err = call(
        capsys, "train", "debug", *TINY, "--env", f"environments:{env}-v0", "--collect.seed-episodes", "5", "--out", str(out)
    )
    assert status == 1 and says in err and err.count("\n") == 1
    assert list((out / "checkpoints").glob("*.json")), "the checkpoint before the failure is still there"


def test_a_directory_with_a_run_in_it_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "config.yaml").read_bytes()
    status, _, err = call(capsys, "train", "debug", "--out", str(run))
    assert status == 1 and "holds a run already" in err and (run / "config.yaml").read_bytes() == before


def test_a_run_directory_that_cannot_be_made_is_told_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    status, _, err = call(capsys, "train", "debug", "--out", str(tmp_path / "file/run"))
    assert status == 1 and err == f"spikedream: cannot make the run directory {tmp_path / 'file/run'}: Not a directory\n"


@pytest.mark.parametrize(
    "arguments",
    [["evaluate"], ["export"], ["energy"], ["compress"], ["resume"], ["watch"], ["train", "debug", "--start-from"]],
    ids=" ".join,
)
def test_a_file_where_a_run_is_wanted_is_named(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, other = tmp_path / "foreign.nir", tmp_path / "notes"
    for file in (graph, other):
        file.write_bytes(b"")
    writes = "; NIR graphs are what spikedream writes of policies, and it does not read them"
    for file, more in ((graph, writes), (other, "")):
        status, _, error = call(capsys, *arguments, str(file))
        assert (status, error) == (1, f"spikedream: {file} is a file, not a run directory{more}\n")


def newest(run: Path, ending: str) -> Path:
    return sorted((run / "checkpoints").glob(f"*{ending}"))[-1]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda run: newest(run, ".safetensors").write_bytes(newest(run, ".safetensors").read_bytes()[:-7]), "SHA-256 differs"),
        (lambda run: newest(run, ".safetensors").unlink(), "cannot be read"),
        (lambda run: newest(run, ".json").write_text("{"), "cannot be read"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "no checkpoint in"),
        (lambda run: (run / "config.yaml").unlink(), "it has no config.yaml"),
        (lambda run: (run / "config.yaml").write_text("agent: {actor: {hidden: [9]}}"), "in the checkpoint,"),
    ],
    ids=["truncated", "arrays gone", "head broken", "no checkpoints", "no config", "another config"],
)
def test_a_damaged_run_is_refused(damage, says: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    damage(copy)
    status, _, err = call(capsys, "evaluate", str(copy))
    assert status == 1 and says in err and err.count("\n") == 1


def test_a_bench_runs_seeds_with_further_settings_and_sums_them_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--budget", "45", "--collect.seed-episodes", "1", "--evaluation.episodes", "2", *TINY]
    for network in ("agent.actor", "agent.critic", "world-model.dynamics", "world-model.ending"):
        settings += [f"--{network}", "MLP"]  # which compile quickly
    status, out, _ = call(capsys, "bench", "debug", "--seeds", "1", "--first-seed", "4", "--out", str(tmp_path), "--", *settings)
    assert status == 0 and "0 of 1" in out
    (summary,) = json.loads((tmp_path / "bench.json").read_text()).values()
    assert summary["seeds"] == [4] and summary["solved"] == 0 and summary["failed"] == 0
    assert json.loads((tmp_path / "spiking" / "s4" / "result.json").read_text())["real_steps"] == 45
    # What is there is kept, what was stopped goes on, and other settings are not taken for these.
    (tmp_path / "spiking" / "s4" / "result.json").unlink()
    again = ["bench", "debug", "--seeds", "1", "--first-seed", "4", "--out", str(tmp_path), "--"]
    assert call(capsys, *again[:-1], "--record", "mine", "--", *settings)[0] == 0
    row = record.load("mine")
    assert row.command.startswith("spikedream bench debug --seeds 1 --first-seed 4 --record mine -- --budget 45")  # no --out
    assert (row.seeds, row.budget, row.witness, row.preset, row.stale) == ([4], 45, 4, None, False)
    assert json.loads((tmp_path / "bench.json").read_text())["spiking"]["solved"] == 0
    status, _, err = call(capsys, *again, *settings, "--budget", "55")
    assert status == 1 and "s4 holds a run with other settings (budget is 45 there, 55 is wanted); delete it" in err
    status, _, err = call(capsys, *again, "--no-such-setting", "1")
    assert status == 1 and "unknown setting 'no_such_setting'" in err
    for behind in (["--seed", "3"], ["--out", "elsewhere"]):
        status, _, err = call(capsys, *again, *behind)
        assert status == 1 and "--seeds, --first-seed and --out stand before --" in err


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train", "interrupted; `spikedream resume RUN` goes on from the newest checkpoint"),
        ("bench", "interrupted; the same command goes on with what is not done"),
        ("evaluate", "interrupted"),
    ],
)
def test_a_command_that_is_interrupted_says_how_it_goes_on(command: str, says: str, capsys, monkeypatch) -> None:
    def stopped(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, command, stopped)
    status, _, told = call(capsys, command)
    assert status == 130 and told == f"spikedream: {says}\n"
