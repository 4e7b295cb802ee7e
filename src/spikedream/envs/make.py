"""Environments by their Gymnasium ids: as they are, or behind flat spaces, one or a batch."""

import functools
import importlib
import importlib.util
import logging
import math
import os
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import SyncVectorEnv, VectorEnv

from spikedream.envs.delayed import Delayed, split
from spikedream.envs.spaces import BrokenEnvironment, FlatSpaces, Translation, translate
from spikedream.spec import Spec
from spikedream.spelling import nearest

LONGEST_EPISODE = 100_000  # an environment's own steps, where no time limit is known


def registered(env_id: str) -> EnvSpec:
    """What Gymnasium knows of an id, also as `module:Id-v0`; raises `BrokenEnvironment` where it knows nothing."""
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        if name.startswith("dm_control/"):
            _import_dm_control(env_id)
        return gymnasium.spec(name)
    except ImportError as error:
        raise BrokenEnvironment(f"cannot import the module of environment {env_id!r}: {error}") from error
    except gymnasium.error.Error as error:
        near = nearest(env_id, gymnasium.registry, count=3, cutoff=0.6)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise BrokenEnvironment(f"no environment {env_id!r} is registered with Gymnasium{hint}") from error


def reward_threshold(env_id: str) -> float | None:
    """Gymnasium's threshold for the environment to count as solved, if it names one."""
    return registered(env_id).reward_threshold


def longest_episode(env_id: str, max_episode_steps: int | None) -> float:
    """Own steps after which an episode is taken for endless; infinite where a time limit is registered or given. Others may well
    end by themselves, as those of dm_control do, which nobody can know beforehand."""
    return LONGEST_EPISODE if max_episode_steps is None and registered(env_id).max_episode_steps is None else math.inf


def may_be_endless(env_id: str, max_episode_steps: int | None) -> bool:
    """Whether nobody has said that its episodes end. Those of dm_control have a time limit of their own."""
    return math.isfinite(longest_episode(env_id, max_episode_steps)) and not env_id.startswith("dm_control/")


def endless(env_id: str) -> BrokenEnvironment:
    """For an episode of `longest_episode` steps."""
    return BrokenEnvironment(
        f"{env_id} has not ended an episode in {LONGEST_EPISODE} steps and names no time limit: give one with --max-episode-steps"
    )


def make_own(
    env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None, render_mode: str | None = None
) -> gymnasium.Env:
    """The environment with its own spaces.

    Args:
        env_id: a Gymnasium id, also as `module:Id-v0`.
        kwargs: passed to `gymnasium.make`, save those of `Delayed`, which any environment has.
        max_episode_steps: time limit in place of the registered one.
        render_mode: Gymnasium's; in place of one among `kwargs`.

    Raises:
        BrokenEnvironment: there is none, or it cannot be made with these.
    """
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    drawn = {} if render_mode is None else {"render_mode": render_mode}
    try:
        known = registered(env_id)
        if _is_mujoco(known):
            _use_mujoco(env_id)
            if render_mode == "rgb_array":  # Gymnasium would try GLFW first, which needs a display and says so too late
                draw_without_display("mujoco.egl")
        with warnings.catch_warnings():
            # That there is a newer version is no reason not to want this one.
            warnings.filterwarnings("ignore", message=".*is out of date", category=DeprecationWarning)
            own, delays = split(kwargs)
            env = gymnasium.make(known, **{**limit, **own, **drawn}, disable_env_checker=True)
            return Delayed(env, **delays) if delays else env
    except BrokenEnvironment:
        raise
    except Exception as error:
        what = " ".join(str(error).split())
        raise BrokenEnvironment(f"{env_id} cannot be made with {dict(kwargs)}: {type(error).__name__}: {what}") from error


def translation_of(env_id: str, env: gymnasium.Env) -> Translation:
    return translate(env_id, env.observation_space, env.action_space)


def make_environment(env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None) -> gymnasium.Env:
    """As `make_own`, with a flat Box observed and a Discrete that counts from 0 or a flat Box taken."""
    env = make_own(env_id, kwargs, max_episode_steps)
    try:
        translation = translation_of(env_id, env)
    except BrokenEnvironment:
        env.close()
        raise
    return env if translation.plain else FlatSpaces(env, translation)


def make_vector(env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None, count: int) -> VectorEnv:
    """`count` of `make_environment`, stepped together; where one ends, its next step is a reset. An environment that brings a
    vectorised form of its own is used in that form."""
    known = registered(env_id)
    arguments = (env_id, kwargs, max_episode_steps)
    if known.vector_entry_point is not None and not split(kwargs)[1]:
        limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
        envs = gymnasium.make_vec(known.id, num_envs=count, **limit, **kwargs)
        if translate(env_id, envs.single_observation_space, envs.single_action_space).plain:
            return envs
        envs.close()
    return SyncVectorEnv([functools.partial(make_environment, *arguments)] * count)


def spec_of(env_id: str, kwargs: Mapping[str, Any], max_episode_steps: int | None) -> Spec:
    """Sizes of the environment's flat spaces; raises `BrokenEnvironment` where it cannot be made or has none."""
    env = make_own(env_id, kwargs, max_episode_steps)
    try:
        return translation_of(env_id, env).spec
    finally:
        env.close()


# ---- MuJoCo


def _is_mujoco(known: EnvSpec) -> bool:
    """Whether it is one of Gymnasium's own on MuJoCo."""
    return isinstance(known.entry_point, str) and known.entry_point.startswith("gymnasium.envs.mujoco")


def _use_mujoco(env_id: str) -> None:
    if importlib.util.find_spec("mujoco") is None:
        raise BrokenEnvironment(f"{env_id} needs mujoco: pip install 'spikedream[mujoco]'")
    importlib.import_module("mujoco").set_mju_user_warning(_warned_by_mujoco)


def _warned_by_mujoco(text: str) -> None:
    """In place of MuJoCo's own habit of writing a file into the working directory. Gymnasium's models use attributes that MuJoCo
    would rather not have, about which nobody here can do anything."""
    if "deprecated" not in text:
        logging.getLogger("mujoco").warning(text)


# ---- dm_control


def _import_dm_control(env_id: str) -> None:
    """Importing Shimmy registers the ids. Without a display dm_control must be told how to draw before it is imported, or it takes
    a way that needs one."""
    missing = [name for name in ("dm_control", "shimmy") if importlib.util.find_spec(name) is None]
    if missing:
        raise BrokenEnvironment(f"{env_id} needs {' and '.join(missing)}: pip install 'spikedream[dm-control]'")
    if "dm_control._render" not in sys.modules:
        draw_without_display("dm_control._render", otherwise="disabled")
    importlib.import_module("shimmy")
    # Its composer turns all deprecation warnings on, and NumPy 2.5 has one for each of its steps.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"dm_control\.")


# ---- drawing


def has_display() -> bool:
    """Whether a window can be opened, as far as the system says."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def draw_without_display(tries: str, otherwise: str | None = None) -> None:
    """Let MuJoCo draw by EGL where there is no display and `MUJOCO_GL` says nothing, if the module that `tries` can be imported
    then; else have `MUJOCO_GL` say `otherwise`, or nothing, so that the environment says what is wrong."""
    if "MUJOCO_GL" in os.environ or has_display():
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        importlib.import_module(tries)
    except Exception:  # PyOpenGL, MuJoCo and dm_control each fail in ways of their own
        os.environ.pop("MUJOCO_GL")
        if otherwise is not None:
            os.environ["MUJOCO_GL"] = otherwise
