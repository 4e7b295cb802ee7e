"""The report and the video of tiny runs, and what is shown while they learn."""

import html
import io
import json
import re
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gymnasium
import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console
from small import CONTINUOUS, DISCRETE, small

import spikedream
from spikedream import config as configuration
from spikedream.agents.dreamer import Dreamer
from spikedream.agents.dreams import Dreams
from spikedream.agents.mpc import MPC
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.policy_head import SquashedGaussian
from spikedream.agents.ppo import PPO
from spikedream.agents.representation import SALE
from spikedream.bonuses.random_network_distillation import RandomNetworkDistillation
from spikedream.config import Config
from spikedream.envs.host import EVALUATE, REPORT, episode_seed
from spikedream.envs.real_time import Timing
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.ops.distributions import TwoHot
from spikedream.ops.imagination import Imagination
from spikedream.ops.slow_copy import HardCopy
from spikedream.planners.cem import CEM
from spikedream.reports import drawing, episode, report
from spikedream.reports.curves import GROUPS, curves, learning_curve
from spikedream.reports.display import LivePanel, PlainLines, StepRate, duration
from spikedream.runners.status import Status, StatusLog
from spikedream.runners.sync import Progress
from spikedream.runs import checkpoint, evaluate, metrics
from spikedream.runs.replay_log import ReplayLog
from spikedream.runs.run import Run
from spikedream.snn.conventional import MLP
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.recurrent import Recurrent

KEY = jax.random.key(0)
SECTIONS = ("summary", "learning", "world-model", "dreams", "agent", "dream", "spikes", "settings")
TURN = {"turn": 0, "real_steps": 50, "imagined_steps": 0, "updates": 0, "wall_seconds": 1.0}
TURN |= {"eval_return_mean": 9.0, "eval_return_std": 1.0, "decision_ms": 0.02, "train_episodes": 0}


def begun(config: Config, directory: Path, *rows: dict[str, Any]) -> Run:
    """A run that has not done anything yet, made without compiling its phases; `rows` as if it had."""
    algorithm = config.algorithm(DISCRETE)
    directory.mkdir()
    configuration.save(config, directory / "config.yaml")
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    state = algorithm.init(jax.random.key(config.seed))
    log = ReplayLog(directory / "checkpoints").save(state.replay)
    arrays = checkpoint.flatten(replace(state, replay=replace(state.replay, data=None)), "state")
    checkpoint.save(directory / "checkpoints", 0, arrays, asdict(Progress()) | {"replay": log._asdict()}, log.file)
    return Run(directory)


def written(run: Run) -> str:
    """The report without the library that it carries."""
    page = report.write_report(run).read_text()
    library = get_plotlyjs()
    assert page.count(library) == 1
    return page.replace(library, "")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    directory = tmp_path_factory.mktemp("report") / "run"
    return spikedream.train("debug", out=directory, settings={"preset": "<b>bold & bad</b>"}, report=False)


@pytest.fixture(scope="module")
def page(run) -> str:
    return written(run)


def test_report_needs_no_network_and_no_other_file(page):
    assert "src=" not in page and "href=" not in page and "@import" not in page


def test_report_has_its_sections_in_order(page):
    places = [page.index(f'<section id="{name}">') for name in SECTIONS]
    assert places == sorted(places)
    assert page.count(" neurons, 3 ticks each step") == 4 and "Firing rates" in page


def test_report_tells_the_run_s_own_numbers(run, page):
    def tile(name: str, value: str) -> bool:
        return f"<dt>{name}</dt><dd>{value}</dd>" in page

    result = run.result
    assert tile("environment", "CartPole-v1") and tile("solved", "no") and tile("real steps to solve", "–")
    assert tile("real steps", str(result["real_steps"])) and tile("imagined steps", str(result["imagined_steps"]))
    assert tile("firing rate, critic", f"{result['firing_rate']['critic']:.3g}")
    assert tile("threshold", "475")
    assert f"{result['eval_return_mean']:.3g} ± {result['eval_return_std']:.3g}" in page


def test_report_escapes_what_the_user_wrote(run, page):
    assert "<b>" not in page
    assert html.escape(run.config.preset) in page


def test_episode_is_real_greedy_and_repeatable(run):
    first, again = episode.play(run), episode.play(run)
    np.testing.assert_array_equal(first.obs, again.obs)
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    env.reset()
    env.state = first.obs[0].astype(np.float64)
    for obs, action in zip(first.obs[1:], first.actions, strict=True):
        np.testing.assert_allclose(env.step(int(action.argmax()))[0], obs, atol=1e-5)
    np.testing.assert_array_equal(first.actions.argmax(1), [run.policy(obs) for obs in first.obs[:-1]])
    env.close()


def test_dream_follows_every_member_from_the_first_observation(run):
    played = episode.play(run)
    imagined = episode.imagine(run.algorithm, run.state, played.obs[:5], played.actions[:5], 0)
    model, world, normalizer = run.algorithm.world_model, run.state.world, run.state.replay.normalizer
    assert imagined.obs.shape == (model.members, 5, 4)
    step = jax.jit(model.step)
    for member in range(model.members):
        carry = model.start(world, normalizer.obs(played.obs[0]), KEY)._replace(member=np.int32(member))
        for t in range(5):
            carry, prediction = step(world, carry, played.actions[t], KEY)
            raw = normalizer.raw_obs(prediction.obs)
            np.testing.assert_allclose(imagined.obs[member, t], raw, rtol=1e-3, atol=1e-3)
    assert [train.shape for train in imagined.spikes] == [(5, 3, 8), (5, 3, 8)]
    assert all(set(np.unique(train)) <= {0.0, 1.0} for train in imagined.spikes)


def test_twin_has_no_rasters(tmp_path):
    page = written(begun(configuration.twin(configuration.named("debug")), tmp_path / "run"))
    assert page.count("conventional network: no spikes") == 2
    assert "heatmap" not in page.split('<section id="spikes">')[1] and "Firing rates" not in page
    assert "not finished" in page and "No turn is finished yet" in page


def test_a_model_with_a_memory_follows_the_first_steps_before_it_dreams(tmp_path):
    config = replace(Config(), world_model=small(Recurrent(), context=2), agent=small(Config().agent, context=2))
    run = begun(config, tmp_path / "run")
    played, algorithm, state = episode.play(run), run.algorithm, run.state
    assert [episode.warm_up(algorithm, horizon) for horizon in (1, 6, 50)] == [0, 3, 10]
    obs, actions = played.obs[:6], played.actions[:6]
    imagined = episode.imagine(algorithm, state, obs, actions, 3)
    world, normalizer = algorithm.world(state), state.replay.normalizer
    belief, key = world.blank(run.spec), KEY
    for t in range(4):
        memory = world.follow(belief, normalizer.obs(obs[t]), key)
        belief = world.belief(memory, jnp.asarray(actions[t]))
    alone, memory = world.member(memory, jnp.asarray(1), alone=True)
    for t in range(3, 6):
        memory, prediction = alone.step(memory, jnp.asarray(actions[t]), key)
        np.testing.assert_allclose(imagined.obs[1, t - 3], normalizer.raw_obs(prediction.obs), rtol=1e-3, atol=1e-3)
    assert imagined.obs.shape == (2, 3, 4) and imagined.spikes[0].shape[0] == 6
    warm = episode.warm_up(algorithm, min(50, len(played.actions)))
    assert f"it follows the first {warm} real steps" in written(run)


def test_report_of_a_planner_shows_the_plans_that_it_made(tmp_path):
    agent = MPC(search=CEM(candidates=6, iterations=2, elites=2), horizon=3)
    run = begun(replace(Config(), world_model=small(Config().world_model), agent=agent), tmp_path / "run", TURN)
    played = episode.play(run)
    assert set(played.carries) == {step for step in (0, 10, 20, 30) if step < len(played.actions)}
    for step, carry in played.carries.items():
        actions, expected = episode.plan(run.algorithm, run.state, carry, played.obs[step], episode.step_key(run, step))
        np.testing.assert_array_equal(actions[0], played.actions[step])
        assert expected.shape == (2, 3, 4)
    page = written(run)
    assert '<section id="plans">' in page and "one plan in 10" in page and "Policy: plans, and has no network." in page
    assert "imagined steps" in page and "time of a decision</dt><dd>0.02 ms" in page


def test_report_of_plain_ppo_says_nothing_of_a_world_model_that_was_never_fitted(tmp_path):
    ppo = small(PPO(), actor=MLP(hidden=(4,)), critic=MLP(hidden=(4,)))
    page = written(begun(replace(Config(), agent=ppo), tmp_path / "run", TURN | {"entropy": 0.7, "approximate_kl": 0.01}))
    assert "orld model" not in page.split('<section id="settings">')[0]
    assert not re.search('<section id="(world-model|dreams|dream|plans|curiosity)">', page)
    assert '<section id="agent">' in page and "Change of the policy" in page and "Policy: conventional network" in page


def test_panels_stand_where_their_numbers_are():
    world, dreams, curiosity, agent, timed, parts = (lambda *rows, group=group: curves(group, list(rows)) for group in GROUPS)
    assert [group.anchor for group in GROUPS] == ["world-model", "dreams", "curiosity", "agent", "real-time", "parts"]
    assert not timed(TURN) and "Ticks without an action" in timed(TURN | {"realtime/missed": 0.1})
    told = TURN | StatusLog().measured(Status(90, 60, 8, 2, 3, 4, 0.5, 0, 2, 2, True, True, False))
    assert not parts(TURN) and "Policies that acted" in parts(told) and "real steps behind" in parts(told)
    assert "Faults" not in parts(told) and "Waiting" not in parts(told), "nothing has gone wrong, and nobody waited"
    assert "Faults" in parts(told, told | {"parallel/restarts": 1}) and "refusals" in parts(told | {"parallel/refused": 1})
    assert not world(TURN) and not dreams(TURN) and not curiosity(TURN) and "Time of a decision" in agent(TURN)
    assert "Confidence" in world(TURN | {"confidence": 0.5}) and "Error of one step" not in world(TURN | {"confidence": 0.5})
    assert "Error of one step" in world(TURN | {"model_error": 0.5})
    assert not dreams(TURN | {"imagined_share": 1.0}) and "Imagined data" in dreams(TURN, TURN | {"imagined_share": 0.5})
    uncertain = TURN | {"dream_uncertainty": 0.1, "dream_noise": 0.2}
    assert "aleatoric" in dreams(uncertain) and "aleatoric" not in dreams(uncertain | {"dream_noise": 0.0})
    reward = curiosity(TURN | {"bonus_mean": 0.1, "extrinsic_mean": 0.2})
    assert "intrinsic" in reward and "extrinsic" in reward and "beta" not in reward
    assert "aleatoric" not in world(TURN | {"model_disagreement": 0.1}), "one line needs no legend"
    levels = {f"calibration/coverage_{level}": (level + 5) / 100 for level in (10, 30, 50, 70, 90)}
    calibrated = world(TURN | {"calibration/coverage_10": 0.9}, TURN | levels)
    assert '"x":[0.1,0.3,0.5,0.7,0.9],"y":[0.15,0.35,0.55,0.75,0.95]' in calibrated, "reliability is the last turn's"
    assert '"y":[0.5,0.5]' in calibrated and '"y":[0.9,0.9]' in calibrated, "the levels that the coverage should have"


def test_what_was_not_measured_of_an_imagined_step_is_a_gap():
    dreams = GROUPS[1]
    row = TURN | {"dream_error/accepted_1": 0.1, "dream_error/accepted_2": None, "dream_error/accepted_3": 0.3}
    row |= {"dream_error/rejected_1": None, "dream_error/rejected_2": 0.5, "dream_error/rejected_3": None}
    unknown = TURN | dict.fromkeys(set(row) - set(TURN))
    page = curves(dreams, [unknown, row])
    assert '"y":[0.1,null,0.3]' in page and '"y":[null,0.5,null]' in page
    assert not curves(dreams, [unknown])


def test_every_panel_shows_something_that_a_part_measures():
    measured, model = set(TURN), small(Ensemble(gaussian=True, holdout=0.1))
    dreaming = Dreams(starts=2, capacity=20, stretches=2)
    td7 = OffPolicy(representation=SALE(), slow=HardCopy(), dreams=dreaming)
    for agent, bonus in (
        (Dreamer(), RandomNetworkDistillation()), (PPO(imagination=Imagination()), None), (td7, None),
        (OffPolicy(policy=SquashedGaussian(), value=TwoHot()), None),
    ):  # fmt: skip
        config = replace(Config(), world_model=model, agent=small(agent), bonus=small(bonus) if bonus else None)
        algorithm = config.algorithm(CONTINUOUS if isinstance(agent, OffPolicy) else DISCRETE)
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        measured |= set(jax.eval_shape(algorithm.fit, state, 1)[1]) | set(jax.eval_shape(algorithm.dream, state)[1])
    measured |= set(Timing(ticks=1, latency=[0.1], jitter=[0.1]).metrics())
    measured |= set(StatusLog().measured(Status(90, 60, 8, 2, 3, 4, 0.5, 0, 2, 2, True, True, False)))
    shown = {line.metric for group in GROUPS for panel in group.panels for line in panel.lines}
    assert shown - measured == set()


def test_training_episodes_stand_in_the_rows_and_in_the_learning_curve(run):
    steps, start = jax.device_get(run.experience().data), 0
    ends = np.flatnonzero(np.maximum(steps.terminated, steps.truncated)[:60, 0])
    returns = dict(zip(ends.tolist(), np.diff(ends, prepend=-1).tolist(), strict=True))  # a reward of 1 each step
    for row in run.metrics:
        ended = [total for step, total in returns.items() if start <= step < row["real_steps"]]
        assert row["train_episodes"] == len(ended) and row.get("train_return_mean") == (np.mean(ended) if ended else None)
        start = row["real_steps"]
    assert any("train_return_mean" in row for row in run.metrics) and 0 < run.metrics[0]["decision_ms"] < 1000
    assert "training episodes" in learning_curve(run.metrics, None) and "training episodes" not in learning_curve([TURN], None)


def test_decision_time_is_shared_by_the_running_episodes_and_leaves_out_the_first_call(monkeypatch):
    clock = SimpleNamespace(now=0.0, calls=0)

    def act(policy, carry, obs, key, greedy):
        clock.calls += 1
        clock.now += 100.0 if clock.calls == 1 else 1.0
        return SimpleNamespace(action=np.eye(2)[np.zeros(len(obs), int)], carry=None, rate=np.zeros(len(obs)), key=key)

    monkeypatch.setattr(evaluate, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    policy = SimpleNamespace(spec=DISCRETE, start=lambda state, batch: None, act=act)
    evaluator = evaluate.Evaluator(Config(), 5)
    result = evaluator(cast(Any, policy), cast(Any, None), KEY, EVALUATE, 0)
    evaluator.close()
    assert result.decision_ms == pytest.approx(1000 * (result.lengths.max() - 1) / (5 * (result.lengths.max() - 1)))


ROWS = {
    "dreamer": TURN | {"imagined_steps": 8_192_000, "model_loss": 0.01, "firing_rate/actor_greedy": 0.2, "beta": 0.005},
    "ppo": TURN | {"firing_rate/actor_greedy": 0.2},
    "priced": TURN | {"firing_rate/actor_greedy": 0.2, "decision_picojoules": 5380.0},
    "unpriced": TURN | {"decision_picojoules": None},
    "planner": TURN | {"model_loss": -1.2, "model_confidence": 0.98, "firing_rate/actor_greedy": 0.0, "decision_ms": 22.42},
}


def test_a_line_tells_what_matters_for_the_agent_and_fits():
    def line(row: dict[str, Any]) -> str:
        file = io.StringIO()
        PlainLines(Console(file=file, width=80)).record(row)
        return file.getvalue().rstrip("\n")

    large = {"turn": 999, "real_steps": 100_000, "eval_return_mean": -1234.5, "train_return_mean": -1234.5, "wall_seconds": 99999.9}
    assert all(len(line(row | large | {"train_episodes": 1})) <= 120 and "\n" not in line(row) for row in ROWS.values())
    lines = {name: line(row) for name, row in ROWS.items()}
    assert "imagined   8.2M" in lines["dreamer"] and "loss 0.0100" in lines["dreamer"] and "beta 0.0050" in lines["dreamer"]
    assert lines["ppo"] == "turn   0  real      50  return     9.0  train       -  firing 20%     1.0 s"
    assert "5.38 nJ/decision" in lines["priced"] and "      -/decision" in lines["unpriced"]
    assert "confidence 98%" in lines["planner"] and "22.4 ms/decision" in lines["planner"]
    assert not re.search("imagined|firing|loss", lines["planner"])


def test_the_live_panel_has_the_columns_that_its_rows_fill():
    def shown(*rows: dict[str, Any]) -> str:
        console = Console(file=io.StringIO(), width=200)
        panel = LivePanel(console, "title")
        for row in rows:
            panel.record(row)
        with console.capture() as capture:
            console.print(panel._draw())
        return capture.get()

    assert "a decision" in shown(ROWS["ppo"], ROWS["priced"]) and "a decision" not in shown(ROWS["ppo"])
    assert "imagined" not in shown(ROWS["ppo"]) and "imagined" not in shown()
    assert "imagined" in shown(ROWS["ppo"], ROWS["dreamer"]) and "ms/decision" in shown(ROWS["planner"])


def drive(listener: LivePanel | PlainLines, steps: int, budget: int = 1_000_000) -> float:
    """A run with evaluations every 10,000 steps, on a clock of its own, until `steps`; the seconds that the rest will take."""
    now, a_turn, an_evaluation = 0.0, 50 / 93, 22.0
    listener._pace._clock = lambda: now
    for turn, done in enumerate(range(10_000, steps + 1, 50)):
        now += a_turn
        if done % 10_000 == 0:
            now += an_evaluation
            listener.record(ROWS["dreamer"] | {"turn": turn, "real_steps": done, "wall_seconds": now})
        listener.progress(done, budget)
    return (budget - steps) / 50 * a_turn + (budget - steps) / 10_000 * an_evaluation


def test_a_long_run_tells_its_pace_and_the_time_that_is_left():
    file = io.StringIO()
    panel, lines = LivePanel(Console(file=io.StringIO(), width=100), "title"), PlainLines(Console(file=file, width=200))
    left = drive(panel, 430_000)
    assert panel._pace.seconds_left == pytest.approx(left, rel=0.03) and panel._pace.steps_a_second == pytest.approx(77.2, rel=0.03)
    assert len(panel._pace._seen) <= StepRate.WINDOW / StepRate.SPACING + 2
    panel.phase("dream", 1, 2)
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(panel._draw())
    assert "430,000 of 1,000,000 real steps" in capture.get() and re.search(r"7\d steps/s · 2:0\d:\d\d left", capture.get())
    drive(lines, 30_000)
    first, *_, last = file.getvalue().splitlines()
    assert first.endswith(" s") and re.search(
        r"  [78]\d steps/s  3:\d\d:\d\d left$", last
    )  # nothing is known before the second turn
    drive(PlainLines(Console(file=file, width=200)), 30_000, budget=30_100)
    assert file.getvalue().splitlines()[-1].endswith(" s")  # it will be over soon


@pytest.mark.parametrize(("seconds", "text"), [(59.6, "1:00"), (3599, "59:59"), (7384.4, "2:03:04"), (0, "0:00")])
def test_durations_are_told_in_hours_minutes_and_seconds(seconds: float, text: str):
    assert duration(seconds) == text


def test_columns_that_a_narrow_terminal_has_no_room_for_are_left_out_whole():
    row = ROWS["dreamer"] | {"dream_uncertainty": 0.12, "train_episodes": 1, "train_return_mean": -1234.5, "wall_seconds": 99999.9}
    shown = {}
    for width in (60, 80, 120):
        panel, console = LivePanel(Console(file=io.StringIO(), width=width), "title"), Console(file=io.StringIO(), width=width)
        panel.record(row)
        with console.capture() as capture:
            console.print(panel._draw())
        assert "…" not in capture.get() and max(map(len, capture.get().splitlines())) <= width
        shown[width] = {name for name in ("uncertainty", "training", "return", "real steps", "seconds") if name in capture.get()}
    assert shown == {60: {"return", "real steps", "seconds", "training"}, 80: shown[120] - {"uncertainty"}, 120: shown[120]}


def test_tensorboard_groups_the_metrics(run):
    assert (
        metrics.tag("eval_return_mean") == "evaluation/eval_return_mean" and metrics.tag("firing_rate/actor") == "firing_rate/actor"
    )
    assert metrics.tag("model_loss") == "world_model/model_loss" and metrics.tag("entropy") == "agent/entropy"
    (events,) = (run.directory / "tensorboard").iterdir()
    assert b"training/train_return_mean" in events.read_bytes()


@pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")  # imageio's reader forks
def test_video_shows_every_step(run):
    path = report.record_video(run)
    assert path == run.directory / "videos" / "episode-0.mp4" and path.stat().st_size > 0
    env = gymnasium.make("CartPole-v1")
    obs, done, steps = env.reset(seed=episode_seed(run.config.seed, REPORT, 0))[0], False, 0
    run.policy.reset()
    while not done:
        obs, _, terminated, truncated, _ = env.step(run.policy(obs))
        done, steps = terminated or truncated, steps + 1
    with closing(imageio.get_reader(path)) as reader:
        video: Any = reader
        assert video.count_frames() == steps + 1
        assert video.get_meta_data()["fps"] == env.metadata["render_fps"]
        frame = video.get_data(0)
        assert frame.shape == (400, 600, 3) and frame.std() > 0
    env.close()
    assert [file.name for file in path.parent.iterdir()] == ["episode-0.mp4"]


def test_frames_are_padded_to_even_sizes():
    frame = np.arange(5 * 3 * 3).reshape(5, 3, 3)
    padded = report._even(frame)
    assert padded.shape == (6, 4, 3)
    np.testing.assert_array_equal(padded[:5, :3], frame)


class Invisible(gymnasium.Env):
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, render_mode=None): ...


class Unaware(gymnasium.Env):
    def __init__(self): ...


@pytest.mark.parametrize("kind", [Invisible, Unaware])
def test_environment_without_a_picture_is_a_clear_error(run, kind, monkeypatch):
    name = f"{kind.__name__}-v0"
    gymnasium.register(name, kind, max_episode_steps=5)
    monkeypatch.setattr(run, "config", replace(run.config, env=name))
    with pytest.raises(BrokenEnvironment, match=f"{name} cannot be filmed"):
        report.record_video(run)
    gymnasium.registry.pop(name)


class Shown(gymnasium.Env):
    """Notes what is drawn; five steps long, each worth its number."""

    metadata = {"render_modes": ["human"], "render_fps": 50}  # noqa: RUF012
    events: list[Any] = []  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode, self.steps = render_mode, 0
        self.observation_space, self.action_space = gymnasium.spaces.Box(-1, 1, (4,)), gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        self.events.append((self.render_mode, seed))
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.steps += 1
        self.events.append(int(action))
        return np.zeros(4, np.float32), float(self.steps), self.steps == 5, False, {}


def test_episodes_are_shown_in_the_environments_own_window(run, monkeypatch):
    monkeypatch.setitem(gymnasium.registry, "Shown-v0", gymnasium.envs.registration.EnvSpec("Shown-v0", Shown, max_episode_steps=9))
    monkeypatch.setattr(run, "config", replace(run.config, env="Shown-v0", action_repeat=2))
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delitem(sys.modules, "glfw", raising=False)
    Shown.events.clear()
    assert drawing.show(run, 2, repetition=3).tolist() == [15.0, 15.0]
    seed = episode_seed(run.config.seed, REPORT, 3, 0)
    assert [event for event in Shown.events if isinstance(event, tuple)] == [("human", s) for s in (seed, seed, seed + 1)]
    actions = Shown.events[2:7]
    assert len(Shown.events) == 13 and actions[0] == actions[1] and actions[2] == actions[3]  # each is held for two steps
    with pytest.raises(ValueError, match="at least one episode"):
        drawing.show(run, 0)


def test_a_window_that_cannot_be_opened_is_a_clear_error(run, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(BrokenEnvironment, match=r"CartPole-v1 cannot open a window: there is no display .*; --video films instead"):
        drawing.show(run, 1)
    monkeypatch.setenv("DISPLAY", ":4321")
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    with pytest.raises(BrokenEnvironment, match=r"CartPole-v1 (cannot open a window: the display|failed while it)"):
        drawing.show(run, 1)
    monkeypatch.setitem(gymnasium.registry, "Unaware-v0", gymnasium.envs.registration.EnvSpec("Unaware-v0", Unaware))
    monkeypatch.setattr(run, "config", replace(run.config, env="Unaware-v0"))
    with pytest.raises(BrokenEnvironment, match="Unaware-v0 cannot open a window"):
        drawing.show(run, 1)
