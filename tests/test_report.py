"""The report and the video of a tiny run."""

import html
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import imageio.v2 as imageio
import jax
import numpy as np
import pytest
from plotly.offline import get_plotlyjs
from small import DISCRETE

import spikedream
from spikedream import checkpoint, report
from spikedream import config as configuration
from spikedream.config import Config
from spikedream.envs.host import REPORT, BrokenEnvironment, episode_seed
from spikedream.run import Run
from spikedream.runners.sync import Progress

SECTIONS = ("summary", "learning", "world-model", "dream", "spikes", "settings")


def begun(config: Config, directory: Path) -> Run:
    """A run that has not done anything yet, made without compiling its phases."""
    algorithm = config.algorithm(DISCRETE)
    directory.mkdir()
    configuration.save(config, directory / "config.yaml")
    (directory / "metrics.jsonl").touch()
    arrays = checkpoint.flatten(algorithm.init(jax.random.key(config.seed)), "state")
    checkpoint.save(directory / "checkpoints", 0, arrays, asdict(Progress()))
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
    first, again = report._play(run), report._play(run)
    np.testing.assert_array_equal(first.obs, again.obs)
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    env.reset()
    env.state = first.obs[0].astype(np.float64)
    for obs, action in zip(first.obs[1:], first.actions, strict=True):
        np.testing.assert_allclose(env.step(int(action.argmax()))[0], obs, atol=1e-5)
    np.testing.assert_array_equal(first.actions.argmax(1), [run.policy(obs) for obs in first.obs[:-1]])
    env.close()


def test_dream_follows_every_member_from_the_first_observation(run):
    episode = report._play(run)
    imagined = report._imagine(run.algorithm, run.state, episode.obs[:5], episode.actions[:5])
    model, world, normalizer = run.algorithm.world_model, run.state.world, run.state.replay.normalizer
    assert imagined.obs.shape == (model.members, 5, 4)
    step = jax.jit(model.step)
    for member in range(model.members):
        carry = model.start(world, normalizer.obs(episode.obs[0]), run.state.key)._replace(member=np.int32(member))
        for t in range(5):
            carry, prediction = step(world, carry, episode.actions[t], run.state.key)
            raw = normalizer.raw_obs(prediction.obs)
            np.testing.assert_allclose(imagined.obs[member, t], raw, rtol=1e-3, atol=1e-3)
    assert [train.shape for train in imagined.spikes] == [(5, 3, 8), (5, 3, 8)]
    assert all(set(np.unique(train)) <= {0.0, 1.0} for train in imagined.spikes)


def test_twin_has_no_rasters(tmp_path):
    page = written(begun(configuration.twin(configuration.named("debug")), tmp_path / "run"))
    assert page.count("conventional network: no spikes") == 2
    assert "heatmap" not in page.split('<section id="spikes">')[1] and "Firing rates" not in page
    assert "not finished" in page and "No turn is finished yet" in page


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
