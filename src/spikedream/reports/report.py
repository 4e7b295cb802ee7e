"""What is made of one run for people to look at: `report.html`, one page that needs no network, and videos."""

import html
import warnings
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium
import imageio.v2 as imageio
import jax
import numpy as np

from spikedream.envs.host import REPORT, episode_seed
from spikedream.envs.make import reward_threshold
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.reports.chosen import chosen_html
from spikedream.reports.curves import GROUPS, curves, learning_curve
from spikedream.reports.drawing import drawing_environment, greedy_episode
from spikedream.reports.energy_shown import energy_html
from spikedream.reports.episode import Episode, ImaginedEpisode, imagine, plan, plan_every, play, step_key, warm_up
from spikedream.reports.page import (
    INK,
    MODEL,
    POLICY,
    Section,
    band,
    figure_html,
    note,
    number,
    panels,
    tiles,
    write_page,
)
from spikedream.runs.run import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SHOWN_STEPS = 50  # of the episode, in dreams and spike rasters
SHOWN_VARIABLES = 8


class Stretch(NamedTuple):
    """Open-loop predictions from one real observation on."""

    start: int  # step of that observation
    obs: np.ndarray  # (members, steps, obs_size) in the environment's units


def write_report(run: Run) -> Path:
    """Write `report.html` into the run's directory and return its path.

    Raises:
        BrokenEnvironment: the environment failed in the episode that the report shows.
    """
    rows, episode = run.metrics, play(run)
    imagined = _imagined(run, episode)
    config = html.escape((run.directory / "config.yaml").read_text())
    sections = [
        Section("summary", "Summary", tiles(_facts(run, rows))),
        Section("learning", "Learning curve", learning_curve(rows, _threshold(run))),
        Section("chosen", "Chosen by measurement", chosen_html(rows)),
        *(Section(group.anchor, group.title, curves(group, rows)) for group in GROUPS),
        Section("dream", "Dream against reality", _dream_against_reality(run, episode, imagined)),
        Section("plans", "Plans against reality", _plans_against_reality(run, episode)),
        Section("spikes", "Spikes", _spikes(run, episode, imagined)),
        Section("energy", "Energy", energy_html(run.result["energy"]) if run.result and "energy" in run.result else ""),
        Section("settings", "Settings", f"<details><summary>config.yaml</summary><pre>{config}</pre></details>"),
    ]
    title = f"{run.config.preset}, seed {run.config.seed}"
    return write_page(run.directory / "report.html", title, run.config.env, [section for section in sections if section.content])


# ---- what is shown


def _imagined(run: Run, episode: Episode) -> ImaginedEpisode | None:
    """None where no world model is ever fitted."""
    if not run.algorithm.agent.uses_world and run.algorithm.bonus is None:
        return None
    horizon = min(SHOWN_STEPS, len(episode.actions))
    obs, actions, warm = episode.obs[:horizon], episode.actions[:horizon], warm_up(run.algorithm, horizon)
    return jax.device_get(imagine(run.algorithm, run.state, obs, actions, warm))


def _threshold(run: Run) -> float | None:
    return run.config.threshold if run.config.threshold is not None else reward_threshold(run.config.env)


def _facts(run: Run, rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Label and value of everything in the summary; of a run that is not finished, as far as it has come."""
    last = rows[-1] if rows else {}
    facts = run.result or {**last, **run.counters, "real_steps_to_solve": run.counters["solved_at"]}
    rates = facts.get("firing_rate") or {k.split("/")[1]: v for k, v in last.items() if k.startswith("firing_rate/")}
    solved = "not finished" if run.result is None else "yes" if facts["solved"] else "no"
    counts = (("imagined steps", "imagined_steps"), ("agent updates", "updates"))  # an agent that only plans has neither
    decision_ms = last.get("decision_ms")
    returns = {
        "final return, mean ± std": (facts.get("eval_return_mean"), facts.get("eval_return_std")),
        "on fresh episodes": (facts.get("fresh_return_mean"), facts.get("fresh_return_std")),
    }
    return [
        ("environment", run.config.env),
        ("preset", run.config.preset),
        ("seed", str(run.config.seed)),
        ("solved", solved),
        ("real steps to solve", number(facts["real_steps_to_solve"])),
        ("real steps", number(facts["real_steps"])),
        *((name, number(facts[key])) for name, key in counts if facts[key] or run.result is None),
        *((name, "–" if mean is None else f"{number(mean)} ± {number(std)}") for name, (mean, std) in returns.items()),
        ("threshold", number(_threshold(run))),
        ("wall time", f"{number(facts['wall_seconds'])} s"),
        ("of it compiling", f"{number(run.counters['compile_seconds'])} s"),
        *([] if decision_ms is None else [("time of a decision", f"{number(decision_ms)} ms")]),
        *((f"firing rate, {name.replace('_', ' ')}", number(rate)) for name, rate in rates.items() if any(rates.values())),
    ]


# ---- pictures


def _dream_against_reality(run: Run, episode: Episode, imagined: ImaginedEpisode | None) -> str:
    if imagined is None:
        return ""
    members, steps, _ = imagined.obs.shape
    warm = min(SHOWN_STEPS, len(episode.actions)) - steps
    true, scale = episode.obs[warm : warm + steps + 1], np.asarray(run.state.replay.normalizer.scale)
    error = (np.abs(np.asarray(imagined.obs).mean(0) - true[1:]) / scale[None]).mean(1)
    marks = ", ".join(f"{error[t - 1]:.2g} after {t}" for t in sorted({1, 10, 25, steps}) if t <= steps)
    start = (
        f"The world model remembers: it follows the first {warm} real steps. From there it gets the episode's actions, but sees no"
        " later observation."
        if warm
        else "The world model starts at its first observation and gets its actions, but sees no later observation."
    )
    text = (
        f"{_told_episode(episode)} {start} All in the environment's units; mean error in standard deviations of the experience:"
        f" {marks} steps."
    )
    name = "dream, mean of the ensemble" if members > 1 else "dream"
    figure = _against_reality(run, episode.obs[: warm + steps + 1], [Stretch(warm, np.asarray(imagined.obs))], name, MODEL)
    return note(text) + figure_html(figure)


def _told_episode(episode: Episode) -> str:
    return f"One greedy episode of {len(episode.actions)} steps, return {number(float(episode.rewards.sum()))}."


def _plans_against_reality(run: Run, episode: Episode) -> str:
    if not episode.carries:
        return ""
    stretches = []
    for step, carry in episode.carries.items():
        _, expected = plan(run.algorithm, run.state, carry, episode.obs[step], step_key(run, step))
        stretches.append(Stretch(step, np.asarray(expected)))
    end = max(stretch.start + stretch.obs.shape[1] for stretch in stretches)
    text = (
        f"The same episode. The agent plans at every step; shown is one plan in {plan_every(run)}, from the observation"
        " that it was made for to where the world model expects it to lead. Reality leaves it where the model is wrong, and where"
        " a later plan looked better."
    )
    name = "planned, mean of the ensemble" if stretches[0].obs.shape[0] > 1 else "planned"
    return note(text) + figure_html(_against_reality(run, episode.obs[: end + 1], stretches, name, POLICY))


def _against_reality(run: Run, true: np.ndarray, stretches: list[Stretch], name: str, colour: str) -> "Figure":
    """`true`: (steps + 1, obs_size), all that is shown of the episode; `name` and `colour` of the predictions."""
    members, _, size = stretches[0].obs.shape
    shown, scale = min(size, SHOWN_VARIABLES), np.asarray(run.state.replay.normalizer.scale)
    columns = 3 if shown % 3 == 0 else 2
    figure = panels([f"observation[{i}]" for i in range(shown)], columns, 160, top=75)
    for i in range(shown):
        place: dict[str, Any] = {"row": i // columns + 1, "col": i % columns + 1}
        lows, highs = [true[:, i].min()], [true[:, i].max()]
        for j, (start, obs) in enumerate(stretches):
            legend: dict[str, Any] = {"showlegend": i == 0 and j == 0}
            x = start + np.arange(obs.shape[1] + 1)
            # Both begin at the same observation.
            values = np.concatenate([np.broadcast_to(true[start, i], (members, 1)), obs[:, :, i]], axis=1)
            low, high, mean = values.min(0), values.max(0), values.mean(0)
            if members > 1:
                figure.add_scatter(**band(x, low, high, f"range of the {members} members", colour, **legend), **place)
            line = {"mode": "lines", "line": {"color": colour, "width": 2}, "name": name}
            figure.add_scatter(x=x, y=mean, **line, **legend, **place)
            lows.append(low.min())
            highs.append(high.max())
        line = {"mode": "lines", "line": {"color": INK, "width": 2, "dash": "dot"}, "name": "reality", "showlegend": i == 0}
        figure.add_scatter(x=np.arange(len(true)), y=true[:, i], **line, **place)
        # A dream that runs away may leave the panel; the truth must stay readable.
        room = 1.5 * max(np.ptp(true[:, i]), scale[i])
        bottom, top = max(min(lows), lows[0] - room), min(max(highs), highs[0] + room)
        figure.update_yaxes(range=[bottom - 0.06 * (top - bottom), top + 0.06 * (top - bottom)], **place)
        figure.update_xaxes(title_text="environment step", **place)
    return figure


def _spikes(run: Run, episode: Episode, imagined: ImaginedEpisode | None) -> str:
    """Raster and rates; spikes (steps, ticks, neurons)."""
    horizon, silent, layers = min(SHOWN_STEPS, len(episode.actions)), "", []
    parts: dict[str, tuple[Any, str]] = {"Policy": (episode.spikes, POLICY)}
    if imagined is not None:
        parts["World model"] = (imagined.spikes, MODEL)
    for part, (trains, colour) in parts.items():
        layers += [(f"{part}, layer {i + 1}", train, colour) for i, train in enumerate(trains)]
        if not trains:
            learned = part != "Policy" or jax.tree.leaves(run.state.agent)
            silent += note(f"{part}: conventional network: no spikes." if learned else f"{part}: plans, and has no network.")
    if not layers:
        return silent
    titles = [f"{name}: {t.shape[2]} neurons, {t.shape[1]} ticks each step" for name, t, _ in layers]
    raster = panels(titles, 1, 160, gap=45, shared_xaxes=True)
    for i, (_, trains, colour) in enumerate(layers):
        _, ticks, neurons = trains.shape
        image = trains[:horizon].reshape(-1, neurons).T.astype(np.uint8)
        scale = {"colorscale": [[0, "#ffffff"], [1, colour]], "zmin": 0, "zmax": 1, "showscale": False}
        hover = "step %{x:.2f}, neuron %{y}: %{z}<extra></extra>"
        raster.add_heatmap(z=image, x0=0.5 / ticks, dx=1 / ticks, hovertemplate=hover, **scale, row=i + 1, col=1)
        raster.update_yaxes(title_text="neuron", row=i + 1, col=1)
    raster.update_xaxes(title_text="environment step (one column for each tick)", row=len(layers), col=1)

    rates = [float(t.mean()) for _, t, _ in layers]
    names, _, colours = zip(*layers, strict=True)
    text = {"text": [f"{rate:.3f}" for rate in rates], "textposition": "outside"}
    figure = panels(["Firing rates"], 1, 34 * len(layers) + 10)
    figure.add_bar(x=rates, y=names, marker_color=colours, orientation="h", **text)
    figure.update_xaxes(title_text="spikes per neuron and tick", range=[0, 1.2 * max(*rates, 0.01)])
    figure.update_yaxes(autorange="reversed", automargin=True)
    source = "The same episode; the world model's first member, predicting each real step."
    if imagined is None:
        source = _told_episode(episode)
    return silent + note(source) + figure_html(raster) + figure_html(figure)


# ---- videos


def record_video(run: Run, episodes: int = 1, name: str = "episode") -> Path:
    """Film greedy episodes, each as `videos/<name>-<i>.mp4` in the run's directory; returns the path of the first.

    Raises:
        BrokenEnvironment: the environment cannot draw itself, or failed.
    """
    env = drawing_environment(run, "rgb_array")
    folder = run.directory / "videos"
    folder.mkdir(exist_ok=True)
    try:
        for i in range(episodes):
            _record_episode(run, env, episode_seed(run.config.seed, REPORT, i), folder / f"{name}-{i}.mp4")
    except Exception as error:
        raise BrokenEnvironment(f"{run.config.env} failed while it was filmed: {type(error).__name__}: {error}") from error
    finally:
        env.close()
    return folder / f"{name}-0.mp4"


def _record_episode(run: Run, env: gymnasium.Env, seed: int, path: Path) -> None:
    unfinished = path.with_suffix(".part.mp4")
    options: dict[str, Any] = {"codec": "libx264", "pixelformat": "yuv420p", "macro_block_size": 1}
    with warnings.catch_warnings():
        # The forked process turns into ffmpeg at once and never touches JAX.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        with closing(imageio.get_writer(unfinished, fps=env.metadata.get("render_fps") or 30, **options)) as writer:
            video: Any = writer  # declared without its methods
            for _ in greedy_episode(run, env, seed):
                video.append_data(_even(env.render()))
    unfinished.replace(path)


def _even(frame: Any) -> np.ndarray:
    """Padded to even sizes, which yuv420p needs."""
    frame = np.asarray(frame, np.uint8)
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")
