"""Greedy episodes of a run that the environment draws: into a window of its own, or frame by frame."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Literal

import gymnasium
import numpy as np

from spikedream.envs.host import REPORT, episode_seed
from spikedream.envs.make import endless, has_display, longest_episode, make_own
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.runs.run import Run


def drawing_environment(run: Run, mode: Literal["rgb_array", "human"]) -> gymnasium.Env:
    """The run's environment, with its own spaces, drawing itself.

    Args:
        run: names it.
        mode: into frames, or into a window.

    Raises:
        BrokenEnvironment: it cannot draw itself so, or there is no display for a window.
    """
    config, what = run.config, "be filmed" if mode == "rgb_array" else "open a window"
    if not has_display():
        if mode == "human":
            raise BrokenEnvironment(f"{config.env} cannot {what}: there is no display (DISPLAY is not set); --video films instead")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        with warnings.catch_warnings(action="ignore"):  # an unknown render mode only warns; it is an error below
            env = make_own(config.env, config.env_kwargs, config.max_episode_steps, mode)
    except BrokenEnvironment as error:
        raise BrokenEnvironment(f"{config.env} cannot {what}: {error}") from error
    known = env.metadata.get("render_modes") or ()
    if "rgb_array" not in known and mode not in known:  # frames that it draws can be shown in a window
        env.close()
        raise BrokenEnvironment(f"{config.env} cannot {what}: its metadata names no render mode {mode!r}")
    return env


def greedy_episode(run: Run, env: gymnasium.Env, seed: int) -> Iterator[float]:
    """Plays it in an environment with its own spaces: yields 0 after the reset, then the reward of each of its own steps."""
    run.policy.reset()
    obs, _ = env.reset(seed=seed)
    yield 0.0
    steps, longest = 0, longest_episode(run.config.env, run.config.max_episode_steps)
    while steps < longest:
        action = run.policy(obs)
        for _ in range(run.config.repeat):
            obs, reward, terminated, truncated, _ = env.step(action)
            steps += 1
            yield float(reward)
            if terminated or truncated:
                return
    raise endless(run.config.env)


def show(run: Run, episodes: int, repetition: int = 0) -> np.ndarray:
    """Play greedy episodes in the environment's own window, at its own pace.

    Args:
        run: whose policy plays.
        episodes: how many.
        repetition: another number, other seeds; of those of `Run.evaluate`.

    Returns:
        Their returns, (episodes,).

    Raises:
        BrokenEnvironment: there is no display, or the environment cannot draw itself, or failed.
    """
    if episodes < 1:
        raise ValueError(f"at least one episode can be shown, not {episodes}")
    env = drawing_environment(run, "human")
    seed = episode_seed(run.config.seed, REPORT, repetition, 0)
    try:
        _check_window(run.config.env)
        env.reset(seed=seed)
        _check_window(run.config.env)  # pygame opens its window only now
        return np.array([sum(greedy_episode(run, env, seed + i)) for i in range(episodes)])
    except BrokenEnvironment:
        raise
    except Exception as error:
        what = " ".join(str(error).split())
        raise BrokenEnvironment(f"{run.config.env} failed while it was shown: {type(error).__name__}: {what}") from error
    finally:
        with contextlib.suppress(Exception):  # some cannot close a window that never opened; that would hide why
            env.close()


def _check_window(env_id: str) -> None:
    """Where the display cannot be reached, SDL (pygame's way) goes on without a window, and GLFW (MuJoCo's) ends the process."""
    pygame, glfw = sys.modules.get("pygame"), sys.modules.get("glfw")
    hidden = pygame is not None and pygame.display.get_init() and pygame.display.get_driver() in ("dummy", "offscreen")
    with warnings.catch_warnings(action="ignore"):
        if hidden or (glfw is not None and not glfw.init()):
            where = f"the display {os.environ.get('DISPLAY')!r} cannot be reached"
            raise BrokenEnvironment(f"{env_id} cannot open a window: {where}; --video films instead")
