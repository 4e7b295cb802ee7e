"""What is made of one run for people to look at: `report.html`, one page that needs no network, and videos."""

import html
import os
import sys
import warnings
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import imageio.v2 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import plotly.graph_objects as go
from jax import Array

from spikedream.algorithm import Algorithm, TrainState
from spikedream.envs.host import REPORT, BrokenEnvironment, HostEnvironment, episode_seed, make_arguments, reward_threshold
from spikedream.page import INK, MODEL, MUTED, POLICY, Section, band, figure_html, note, number, panels, tiles, write_page
from spikedream.run import Run
from spikedream.types import Belief, Decision, PyTree

SHOWN_STEPS = 50  # of the episode, in dreams and spike rasters
SHOWN_VARIABLES = 8


class Episode(NamedTuple):
    """One greedy episode in the real environment."""

    obs: np.ndarray  # (steps + 1, obs_size) in the environment's units
    actions: np.ndarray  # (steps, action_size) encoded
    rewards: np.ndarray  # (steps,)
    spikes: tuple[np.ndarray, ...]  # of the policy, per layer (steps, ticks, neurons)


class Imagined(NamedTuple):
    """What the world model says about the beginning of an episode."""

    obs: Array  # (members, horizon, obs_size) open loop from the first observation, in the environment's units
    spikes: tuple[Array, ...]  # of the first member along the real episode, per layer (horizon, ticks, neurons)


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's directory and return its path.

    Raises:
        BrokenEnvironment: the environment failed in the episode that the report shows.
    """
    rows, episode = run.metrics, _play(run)
    horizon = min(SHOWN_STEPS, len(episode.actions))
    imagined = jax.device_get(_imagine(run.algorithm, run.state, episode.obs[:horizon], episode.actions[:horizon]))
    config = html.escape((run.directory / "config.yaml").read_text())
    sections = [
        Section("summary", "Summary", tiles(_facts(run, rows))),
        Section("learning", "Learning curve", _learning_curve(rows, _threshold(run))),
        Section("world-model", "World model and dreams", _dream_curves(rows)),
        Section("dream", "Dream against reality", _dream_against_reality(run, episode, imagined.obs)),
        Section("spikes", "Spikes", _spikes(episode.spikes, imagined.spikes, horizon)),
        Section("settings", "Settings", f"<details><summary>config.yaml</summary><pre>{config}</pre></details>"),
    ]
    title = f"{run.config.preset}, seed {run.config.seed}"
    return write_page(run.directory / "report.html", title, run.config.env, sections)


# ---- what is shown


@partial(jax.jit, static_argnums=0)
def _decide(algorithm: Algorithm, state: TrainState, carry: PyTree, obs: Array, step: Array) -> Decision:
    """As `Algorithm.act` for one raw observation, with the spikes."""
    world, key = algorithm.world(state), jax.random.fold_in(state.key, step)
    return algorithm.agent.act(state.agent, world, carry, state.replay.normalizer.obs(obs), key, True)


@partial(jax.jit, static_argnums=0)
def _imagine(algorithm: Algorithm, state: TrainState, obs: Array, actions: Array) -> Imagined:
    """Of the real raw observations (horizon, obs_size) that were met and the actions (horizon, action_size) taken there."""
    world, normalizer = algorithm.world(state), state.replay.normalizer
    obs, start_key = normalizer.obs(obs), state.key
    keys = jax.random.split(start_key, obs.shape[0])

    def open_loop(member: Array) -> Array:
        alone, memory = world.member(world.start(obs[0], start_key), member)

        def step(memory: Any, inputs: tuple[Array, Array]) -> tuple[Any, Array]:
            memory, prediction = alone.step(memory, *inputs)
            return memory, prediction.obs

        return normalizer.raw_obs(jax.lax.scan(step, memory, (actions, keys))[1])

    def spikes(belief: Belief, now: tuple[Array, Array, Array]) -> tuple[Belief, tuple[Array, ...]]:
        obs, action, key = now
        memory = world.follow(belief, obs, key)
        trains = world.step(memory, action, key)[1].spikes
        return Belief(memory, action, jnp.ones(())), tuple(train.reshape(-1, *train.shape[-2:])[0] for train in trains)

    trains = jax.lax.scan(spikes, world.blank(algorithm.spec), (obs, actions, keys))[1]
    return Imagined(jax.vmap(open_loop)(jnp.arange(world.model.members)), trains)


def _play(run: Run) -> Episode:
    # An environment seeded from the report's own stream meets no episode of the learner.
    seed = episode_seed(run.config.seed, REPORT)
    env = HostEnvironment(run.config.env, run.config.env_kwargs, run.config.max_episode_steps, seed)
    try:
        obs, carry = [env.reset()], run.algorithm.agent.start(run.state.agent, run.algorithm.world(run.state))
        actions, rewards, spikes = [], [], []
        while env.position.obs is not None:
            decision = _decide(run.algorithm, run.state, carry, obs[-1], np.uint32(len(actions)))
            carry = decision.carry
            step = env.step(np.asarray(decision.action))
            obs.append(np.asarray(step.next_obs))
            actions.append(step.action)
            rewards.append(step.reward)
            spikes.append(decision.spikes)
    finally:
        env.close()
    trains = tuple(np.stack(layer) for layer in zip(*jax.device_get(spikes), strict=True))
    return Episode(np.stack(obs), np.stack(actions), np.asarray(rewards), trains)


def _threshold(run: Run) -> float | None:
    return run.config.threshold if run.config.threshold is not None else reward_threshold(run.config.env)


def _facts(run: Run, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Label and value of everything in the summary; of a run that is not finished, as far as it has come."""
    last = rows[-1] if rows else {}
    facts = run.result or {**last, **run.counters, "real_steps_to_solve": run.counters["solved_at"]}
    rates = facts.get("firing_rate") or {k.split("/")[1]: v for k, v in last.items() if k.startswith("firing_rate/")}
    solved = "not finished" if run.result is None else "yes" if facts["solved"] else "no"
    mean, std = facts.get("eval_return_mean"), facts.get("eval_return_std")
    return [
        ("environment", run.config.env),
        ("preset", run.config.preset),
        ("seed", str(run.config.seed)),
        ("solved", solved),
        ("real steps to solve", number(facts["real_steps_to_solve"])),
        ("real steps", number(facts["real_steps"])),
        ("imagined steps", number(facts["imagined_steps"])),
        ("agent updates", number(facts["updates"])),
        ("final return, mean ± std", "–" if mean is None else f"{number(mean)} ± {number(std)}"),
        ("threshold", number(_threshold(run))),
        ("wall time", f"{number(facts['wall_seconds'])} s"),
        ("of it compiling", f"{number(run.counters['compile_seconds'])} s"),
        *((f"firing rate, {name.replace('_', ' ')}", number(rate)) for name, rate in rates.items() if any(rates.values())),
    ]


# ---- pictures


def _learning_curve(rows: list[dict[str, Any]], threshold: float | None) -> str:
    if not rows:
        return note("No turn is finished yet.")
    x, mean, std = (np.array([row[name] for row in rows]) for name in ("real_steps", "eval_return_mean", "eval_return_std"))
    figure = panels([""], 1, 260, top=60)
    figure.add_trace(band(x, mean - std, mean + std, "± one standard deviation over episodes"))
    figure.add_trace(go.Scatter(x=x, y=mean, mode="lines+markers", line_color=MODEL, name="mean return of greedy episodes"))
    if threshold is not None:
        # A trace and not a shape: so the axis makes room for it.
        line = {"x": [0, x[-1]], "y": [threshold, threshold], "line": {"color": MUTED, "dash": "dash"}}
        figure.add_trace(go.Scatter(**line, mode="lines", name=f"solved at {number(threshold)}"))
    figure.update_xaxes(title_text="real environment steps", rangemode="tozero")
    figure.update_yaxes(title_text="return")
    return figure_html(figure)


def _dream_curves(rows: list[dict[str, Any]]) -> str:
    quantities = {
        "model_loss": ("Model error", "training loss"),
        "dream_uncertainty": ("Uncertainty in dreams", "disagreement"),
        "dream_return": ("Return of a dream", "sum of scaled rewards"),
        "dream_survival": ("Dreams alive at the horizon", "share"),
    }
    known = {name: texts for name, texts in quantities.items() if any(name in row for row in rows)}
    if not known:
        return note("No turn is finished yet.")
    figure = panels([title for title, _ in known.values()], 2, 160)
    for i, (name, (_, unit)) in enumerate(known.items()):
        place: dict[str, Any] = {"row": i // 2 + 1, "col": i % 2 + 1}
        x, y = [row["real_steps"] for row in rows], [row.get(name) for row in rows]
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", line_color=MODEL, showlegend=False), **place)
        figure.update_yaxes(title_text=unit, rangemode="tozero", **place)
        figure.update_xaxes(title_text="real environment steps", rangemode="tozero", **place)
    return figure_html(figure)


def _dream_against_reality(run: Run, episode: Episode, dreamed: np.ndarray) -> str:
    """`dreamed`: (members, horizon, obs_size)."""
    members, horizon, size = dreamed.shape
    shown = min(size, SHOWN_VARIABLES)
    # Both begin at the same observation.
    start = np.broadcast_to(episode.obs[0], (members, 1, size))
    dreamed, true = np.concatenate([start, dreamed], axis=1), episode.obs[: horizon + 1]
    scale, mean, x = np.asarray(run.state.replay.normalizer.scale), dreamed.mean(0), np.arange(horizon + 1)
    columns = 3 if shown % 3 == 0 else 2
    figure = panels([f"observation[{i}]" for i in range(shown)], columns, 160, top=75)
    for i in range(shown):
        place: dict[str, Any] = {"row": i // columns + 1, "col": i % columns + 1}
        legend: dict[str, Any] = {"showlegend": i == 0}
        low, high = dreamed[:, :, i].min(0), dreamed[:, :, i].max(0)
        if members > 1:
            figure.add_trace(band(x, low, high, f"range of the {members} members", **legend), **place)
        dream_line, true_line = {"color": MODEL, "width": 2}, {"color": INK, "width": 2, "dash": "dot"}
        name = "dream, mean of the ensemble" if members > 1 else "dream"
        figure.add_trace(go.Scatter(x=x, y=mean[:, i], mode="lines", line=dream_line, name=name, **legend), **place)
        figure.add_trace(go.Scatter(x=x, y=true[:, i], mode="lines", line=true_line, name="reality", **legend), **place)
        # A dream that runs away may leave the panel; the truth must stay readable.
        room = 1.5 * max(np.ptp(true[:, i]), scale[i])
        bottom, top = max(low.min(), true[:, i].min() - room), min(high.max(), true[:, i].max() + room)
        bottom, top = min(bottom, true[:, i].min()), max(top, true[:, i].max())
        figure.update_yaxes(range=[bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)], **place)
        figure.update_xaxes(title_text="environment step", **place)
    error = (np.abs(mean - true) / scale[None]).mean(1)
    marks = ", ".join(f"{error[t]:.2g} after {t}" for t in (1, 10, 25, 50) if t <= horizon)
    text = (
        f"One greedy episode of {len(episode.actions)} steps, return {number(float(episode.rewards.sum()))}. The world model"
        " starts at its first observation and gets its actions, but sees no later observation. All in the environment's units;"
        f" mean error in standard deviations of the experience: {marks} steps."
    )
    return note(text) + figure_html(figure)


def _spikes(policy: tuple[np.ndarray, ...], world: tuple[np.ndarray, ...], horizon: int) -> str:
    """Raster and rates; fields (steps, ticks, neurons)."""
    parts = {"Policy": (policy, POLICY), "World model": (world, MODEL)}
    silent = "".join(note(f"{part}: conventional network: no spikes.") for part, (trains, _) in parts.items() if not trains)
    layers = [(f"{part}, layer {i + 1}", t, colour) for part, (ts, colour) in parts.items() for i, t in enumerate(ts)]
    if not layers:
        return silent
    titles = [f"{name}: {t.shape[2]} neurons, {t.shape[1]} ticks each step" for name, t, _ in layers]
    raster = panels(titles, 1, 160, gap=45, shared_xaxes=True)
    for i, (_, trains, colour) in enumerate(layers):
        _, ticks, neurons = trains.shape
        image = trains[:horizon].reshape(-1, neurons).T.astype(np.uint8)
        scale = {"colorscale": [[0, "#ffffff"], [1, colour]], "zmin": 0, "zmax": 1, "showscale": False}
        hover = "step %{x:.2f}, neuron %{y}: %{z}<extra></extra>"
        heatmap = go.Heatmap(z=image, x0=0.5 / ticks, dx=1 / ticks, hovertemplate=hover, **scale)
        raster.add_trace(heatmap, row=i + 1, col=1)
        raster.update_yaxes(title_text="neuron", row=i + 1, col=1)
    raster.update_xaxes(title_text="environment step (one column for each tick)", row=len(layers), col=1)

    rates = [float(t.mean()) for _, t, _ in layers]
    names, _, colours = zip(*layers, strict=True)
    text = {"text": [f"{rate:.3f}" for rate in rates], "textposition": "outside"}
    figure = panels(["Firing rates"], 1, 34 * len(layers) + 10)
    figure.add_trace(go.Bar(x=rates, y=names, marker_color=colours, orientation="h", **text))
    figure.update_xaxes(title_text="spikes per neuron and tick", range=[0, 1.2 * max(*rates, 0.01)])
    figure.update_yaxes(autorange="reversed", automargin=True)
    source = note("The same episode; the world model's first member, predicting each real step.")
    return silent + source + figure_html(raster) + figure_html(figure)


# ---- videos


def record_video(run: Run, episodes: int = 1) -> Path:
    """Film greedy episodes, each as `videos/episode-<i>.mp4` in the run's directory; returns the path of the first.

    Raises:
        BrokenEnvironment: the environment cannot draw itself, or failed.
    """
    env = _drawing_environment(run)
    folder = run.directory / "videos"
    folder.mkdir(exist_ok=True)
    try:
        for i in range(episodes):
            _record_episode(run, env, episode_seed(run.config.seed, REPORT, i), folder / f"episode-{i}.mp4")
    except Exception as error:
        raise BrokenEnvironment(f"{run.config.env} failed while it was filmed: {type(error).__name__}: {error}") from error
    finally:
        env.close()
    return folder / "episode-0.mp4"


def _drawing_environment(run: Run) -> gymnasium.Env:
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    arguments = make_arguments(run.config.env, run.config.env_kwargs, run.config.max_episode_steps)
    try:
        with warnings.catch_warnings(action="ignore"):  # an unknown render mode only warns; it is an error below
            env = gymnasium.make(**arguments | {"render_mode": "rgb_array", "disable_env_checker": True})
    except Exception as error:
        raise BrokenEnvironment(f"{run.config.env} cannot be filmed: {type(error).__name__}: {error}") from error
    if "rgb_array" not in (env.metadata.get("render_modes") or ()):
        env.close()
        raise BrokenEnvironment(f"{run.config.env} cannot be filmed: its metadata names no render mode 'rgb_array'")
    return env


def _record_episode(run: Run, env: gymnasium.Env, seed: int, path: Path) -> None:
    unfinished = path.with_suffix(".part.mp4")
    options: dict[str, Any] = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 1}
    run.policy.reset()
    obs, _ = env.reset(seed=seed)
    with warnings.catch_warnings():
        # The forked process turns into ffmpeg at once and never touches JAX.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        with closing(imageio.get_writer(unfinished, fps=env.metadata.get("render_fps") or 30, **options)) as writer:
            video: Any = writer  # declared without its methods
            video.append_data(_even(env.render()))
            done = False
            while not done:
                obs, _, terminated, truncated, _ = env.step(run.policy(obs))
                done = bool(terminated or truncated)
                video.append_data(_even(env.render()))
    unfinished.replace(path)


def _even(frame: Any) -> np.ndarray:
    """Padded to even sizes, which yuv420p needs."""
    frame = np.asarray(frame, np.uint8)
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
