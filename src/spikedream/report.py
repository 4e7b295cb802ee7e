"""What is made of one run for people to look at: `report.html`, one page that needs no network, and videos."""

import html
import math
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
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from spikedream.algorithm import Algorithm, TrainState
from spikedream.checkpoint import write_file
from spikedream.envs.host import REPORT, BrokenEnvironment, HostEnvironment, episode_seed, make_arguments, reward_threshold
from spikedream.run import Run
from spikedream.types import Decision, PyTree, World

SHOWN_STEPS = 50  # of the episode, in dreams and spike rasters
SHOWN_VARIABLES = 8
INK, MODEL, POLICY, MUTED = "#2f3b4a", "#4e79a7", "#c9743d", "#8a94a0"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


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
        ("summary", "Summary", _tiles(_facts(run, rows))),
        ("learning", "Learning curve", _learning_curve(rows, _threshold(run))),
        ("world-model", "World model and dreams", _dream_curves(rows)),
        ("dream", "Dream against reality", _dream_against_reality(run, episode, imagined.obs)),
        ("spikes", "Spikes", _spikes(episode.spikes, imagined.spikes, horizon)),
        ("settings", "Settings", f"<details><summary>config.yaml</summary><pre>{config}</pre></details>"),
    ]
    body = "".join(f'<section id="{name}"><h2>{title}</h2>{content}</section>' for name, title, content in sections)
    title = html.escape(f"{run.config.preset}, seed {run.config.seed}")
    page = PAGE.format(title=title, style=STYLE, plotly=get_plotlyjs(), env=html.escape(run.config.env), body=body)
    path = run.directory / "report.html"
    write_file(path, page.encode())
    return path


# ---- what is shown


@partial(jax.jit, static_argnums=0)
def _decide(algorithm: Algorithm, state: TrainState, carry: PyTree, obs: Array, step: Array) -> Decision:
    """As `Algorithm.act` for one raw observation, with the spikes."""
    world, key = World(algorithm.world_model, state.world), jax.random.fold_in(state.key, step)
    return algorithm.agent.act(state.agent, world, carry, state.replay.normalizer.obs(obs), key, True)


@partial(jax.jit, static_argnums=0)
def _imagine(algorithm: Algorithm, state: TrainState, obs: Array, actions: Array) -> Imagined:
    """Of the real raw observations (horizon, obs_size) that were met and the actions (horizon, action_size) taken there."""
    world, normalizer = World(algorithm.world_model, state.world), state.replay.normalizer
    obs, start_key = normalizer.obs(obs), state.key
    keys = jax.random.split(start_key, obs.shape[0])
    start = world.start(obs[0], start_key)
    has_members = "member" in getattr(start, "_fields", ())

    def open_loop(member: Array) -> Array:
        carry = start._replace(member=member) if has_members else start

        def step(carry: PyTree, inputs: tuple[Array, Array]) -> tuple[PyTree, Array]:
            carry, prediction = world.step(carry, *inputs)
            return carry, prediction.obs

        return normalizer.raw_obs(jax.lax.scan(step, carry, (actions, keys))[1])

    def spikes(obs: Array, action: Array, key: Array) -> tuple[Array, ...]:
        trains = world.step(world.start(obs, key), action, key)[1].spikes
        return tuple(train.reshape(-1, *train.shape[-2:])[0] for train in trains)

    members = getattr(algorithm.world_model, "members", 1) if has_members else 1
    return Imagined(jax.vmap(open_loop)(jnp.arange(members)), jax.vmap(spikes)(obs, actions, keys))


def _play(run: Run) -> Episode:
    # An environment seeded from the report's own stream meets no episode of the learner.
    seed = episode_seed(run.config.seed, REPORT)
    env = HostEnvironment(run.config.env, run.config.env_kwargs, run.config.max_episode_steps, seed)
    try:
        obs, carry = [env.reset()], run.algorithm.agent.start(run.state.agent)
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
        ("real steps to solve", _number(facts["real_steps_to_solve"])),
        ("real steps", _number(facts["real_steps"])),
        ("imagined steps", _number(facts["imagined_steps"])),
        ("agent updates", _number(facts["updates"])),
        ("final return, mean ± std", "–" if mean is None else f"{_number(mean)} ± {_number(std)}"),
        ("threshold", _number(_threshold(run))),
        ("wall time", f"{_number(facts['wall_seconds'])} s"),
        ("of it compiling", f"{_number(run.counters['compile_seconds'])} s"),
        *((f"firing rate, {name.replace('_', ' ')}", _number(rate)) for name, rate in rates.items() if any(rates.values())),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


# ---- pictures


def _panels(titles: list[str], columns: int, height: int, gap: int = 90, top: int = 35, **options: Any) -> go.Figure:
    """A panel for each title, row by row; `height` of a panel, `gap` between rows and space at the `top` are in pixels."""
    rows, columns = math.ceil(len(titles) / columns), min(columns, len(titles))
    plot = rows * height + (rows - 1) * gap
    spacing = {"vertical_spacing": gap / plot if rows > 1 else 0, "horizontal_spacing": 0.1}
    figure = make_subplots(rows, columns, subplot_titles=titles, **spacing, **options)
    figure.update_layout(
        template="plotly_white",
        height=plot + top + 55,
        margin={"l": 70, "r": 20, "t": top, "b": 55},
        font={"family": FONT, "size": 13, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"},
    )
    figure.update_annotations(font={"size": 14})
    axis = {"gridcolor": "#eef0f3", "zeroline": False, "linecolor": "#cdd3da", "title_font_size": 13}
    return figure.update_xaxes(axis).update_yaxes(axis)


def _html(figure: go.Figure) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True, "displayModeBar": False})


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _tiles(facts: list[tuple[str, str]]) -> str:
    tiles = (f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd></div>" for name, value in facts)
    return f"<dl>{''.join(tiles)}</dl>"


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, name: str, **options: Any) -> go.Scatter:
    look = {"fill": "toself", "fillcolor": "rgba(78,121,167,0.2)", "line_width": 0, "mode": "lines", "hoverinfo": "skip"}
    x, y = np.concatenate([x, x[::-1]]), np.concatenate([high, low[::-1]])
    return go.Scatter(x=x, y=y, name=name, **look, **options)


def _learning_curve(rows: list[dict[str, Any]], threshold: float | None) -> str:
    if not rows:
        return _note("No turn is finished yet.")
    x, mean, std = (np.array([row[name] for row in rows]) for name in ("real_steps", "eval_return_mean", "eval_return_std"))
    figure = _panels([""], 1, 260, top=60)
    figure.add_trace(_band(x, mean - std, mean + std, "± one standard deviation over episodes"))
    figure.add_trace(go.Scatter(x=x, y=mean, mode="lines+markers", line_color=MODEL, name="mean return of greedy episodes"))
    if threshold is not None:
        # A trace and not a shape: so the axis makes room for it.
        line = {"x": [0, x[-1]], "y": [threshold, threshold], "line": {"color": MUTED, "dash": "dash"}}
        figure.add_trace(go.Scatter(**line, mode="lines", name=f"solved at {_number(threshold)}"))
    figure.update_xaxes(title_text="real environment steps", rangemode="tozero")
    figure.update_yaxes(title_text="return")
    return _html(figure)


def _dream_curves(rows: list[dict[str, Any]]) -> str:
    quantities = {
        "model_loss": ("Model error", "training loss"),
        "dream_uncertainty": ("Uncertainty in dreams", "disagreement"),
        "dream_return": ("Return of a dream", "sum of scaled rewards"),
        "dream_survival": ("Dreams alive at the horizon", "share"),
    }
    known = {name: texts for name, texts in quantities.items() if any(name in row for row in rows)}
    if not known:
        return _note("No turn is finished yet.")
    figure = _panels([title for title, _ in known.values()], 2, 160)
    for i, (name, (_, unit)) in enumerate(known.items()):
        place: dict[str, Any] = {"row": i // 2 + 1, "col": i % 2 + 1}
        x, y = [row["real_steps"] for row in rows], [row.get(name) for row in rows]
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines+markers", line_color=MODEL, showlegend=False), **place)
        figure.update_yaxes(title_text=unit, rangemode="tozero", **place)
        figure.update_xaxes(title_text="real environment steps", rangemode="tozero", **place)
    return _html(figure)


def _dream_against_reality(run: Run, episode: Episode, dreamed: np.ndarray) -> str:
    """`dreamed`: (members, horizon, obs_size)."""
    members, horizon, size = dreamed.shape
    shown = min(size, SHOWN_VARIABLES)
    # Both begin at the same observation.
    start = np.broadcast_to(episode.obs[0], (members, 1, size))
    dreamed, true = np.concatenate([start, dreamed], axis=1), episode.obs[: horizon + 1]
    scale, mean, x = np.asarray(run.state.replay.normalizer.scale), dreamed.mean(0), np.arange(horizon + 1)
    columns = 3 if shown % 3 == 0 else 2
    figure = _panels([f"observation[{i}]" for i in range(shown)], columns, 160, top=75)
    for i in range(shown):
        place: dict[str, Any] = {"row": i // columns + 1, "col": i % columns + 1}
        legend, low, high = {"showlegend": i == 0}, dreamed[:, :, i].min(0), dreamed[:, :, i].max(0)
        if members > 1:
            figure.add_trace(_band(x, low, high, f"range of the {members} members", **legend), **place)
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
        f"One greedy episode of {len(episode.actions)} steps, return {_number(float(episode.rewards.sum()))}. The world model"
        " starts at its first observation and gets its actions, but sees no later observation. All in the environment's units;"
        f" mean error in standard deviations of the experience: {marks} steps."
    )
    return _note(text) + _html(figure)


def _spikes(policy: tuple[np.ndarray, ...], world: tuple[np.ndarray, ...], horizon: int) -> str:
    """Raster and rates; fields (steps, ticks, neurons)."""
    parts = {"Policy": (policy, POLICY), "World model": (world, MODEL)}
    silent = "".join(_note(f"{part}: conventional network: no spikes.") for part, (trains, _) in parts.items() if not trains)
    layers = [(f"{part}, layer {i + 1}", t, colour) for part, (ts, colour) in parts.items() for i, t in enumerate(ts)]
    if not layers:
        return silent
    titles = [f"{name}: {t.shape[2]} neurons, {t.shape[1]} ticks each step" for name, t, _ in layers]
    raster = _panels(titles, 1, 160, gap=45, shared_xaxes=True)
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
    figure = _panels(["Firing rates"], 1, 34 * len(layers) + 10)
    figure.add_trace(go.Bar(x=rates, y=names, marker_color=colours, orientation="h", **text))
    figure.update_xaxes(title_text="spikes per neuron and tick", range=[0, 1.2 * max(*rates, 0.01)])
    figure.update_yaxes(autorange="reversed", automargin=True)
    note = _note("The same episode; the world model's first member, predicting each real step.")
    return silent + note + _html(raster) + _html(figure)


# ---- the page

STYLE = f"""
body {{ margin: 0 auto; max-width: 1120px; padding: 24px; font: 16px/1.5 {FONT}; color: {INK}; background: #f6f7f9; }}
h1 {{ font-size: 26px; margin: 8px 0 20px; }} h1 small {{ color: {MUTED}; font-weight: 400; margin-left: 8px; }}
h2 {{ font-size: 18px; margin: 0 0 8px; }}
section {{ background: #fff; border: 1px solid #e3e7ec; border-radius: 8px; padding: 18px 20px; margin-bottom: 18px; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); gap: 14px 20px; margin: 0; }}
dt {{ color: {MUTED}; font-size: 13px; }} dd {{ margin: 0; font-size: 18px; overflow-wrap: anywhere; }}
.note {{ color: #5d6875; font-size: 14px; margin: 4px 0 10px; }}
pre {{ overflow-x: auto; font-size: 13px; line-height: 1.4; }} summary {{ cursor: pointer; }}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · spikedream</title><style>{style}</style><script>{plotly}</script></head>
<body><h1>{title}<small>{env}</small></h1>{body}</body></html>
"""


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
