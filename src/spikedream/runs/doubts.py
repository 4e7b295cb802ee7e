"""What gives reason to doubt: environments from which nothing can be learned, which the first experience tells before an hour is
spent, and settings that turn out not to suit what is learned."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from spikedream.config import Config
from spikedream.envs.make import LONGEST_EPISODE, may_be_endless
from spikedream.replay.normalizer import FAINTEST
from spikedream.types import Transition

ENOUGH = 50  # steps, below which too little is known to doubt anything
ENORMOUS = 1e6  # magnitude of an observation or a reward
DIGITS = 1e-5  # deviation over magnitude, below which float32 holds two digits of what changes
SHOWN = 5  # entries that are named
MOST = 2000  # steps of which it is asked whether actions show in them
BEYOND = 0.01  # share of targets that a value cannot follow, above which that is told
LAGS = 4  # actions, newest first, that may show in a step: an environment may act late


class Doubt(NamedTuple):
    text: str  # one line
    grave: bool = True  # whether learning is likely to come to nothing


def tell_doubts(config: Config, steps: Sequence[Transition], note: Callable[[str], None]) -> str | None:
    """Note each doubt of the first `steps`; the answer, where there is one, says why a strict run is given up."""
    endless = may_be_endless(config.env, config.max_episode_steps)
    found = doubts(steps, config.bonus is not None, endless)
    for doubt in found:
        note(f"{config.env}: {doubt.text}")
    grave = "; ".join(doubt.text for doubt in found if doubt.grave)
    return f"{config.env} was given up (strict): {grave}" if grave and config.strict else None


def doubts_of_learning(row: Mapping[str, float | None]) -> list[Doubt]:
    """What looks wrong in the numbers that a row of `metrics.jsonl` tells."""
    share = row.get("targets_beyond_limit") or 0.0
    if share <= BEYOND:
        return []
    told = f"{share:.0%} of the targets lie beyond agent.value.limit, where TwoHot ends: values are sums of rewards in the"
    return [Doubt(f"{told} environment's own units; set it to the largest return of an episode, or agent.value to Huber")]


def doubts(steps: Sequence[Transition], rewarded_otherwise: bool, may_be_endless: bool = False) -> list[Doubt]:
    """What looks wrong.

    Args:
        steps: in the environment's own units, oldest first, fields (environments, ...); with random or at least noisy actions.
        rewarded_otherwise: whether a bonus is paid beside the reward.
        may_be_endless: whether nothing is known to end an episode.
    """
    number = len(steps) * (len(steps[0].reward) if steps else 0)
    if number < ENOUGH:
        return []
    obs, after, reward, terminated = (
        np.stack([np.asarray(getattr(step, name)) for step in steps]) for name in ("obs", "next_obs", "reward", "terminated")
    )
    values = np.concatenate([obs, after]).astype(np.float64).reshape(-1, obs.shape[-1])
    found = _of_observations(values, number) + _of_rewards(reward, terminated, number, rewarded_otherwise)
    if may_be_endless and not terminated.any() and not any(np.asarray(step.truncated).any() for step in steps):
        told = f"no episode has ended in the first {number} steps and no time limit is known: should none end by itself, the first"
        found.append(Doubt(f"{told} evaluation fails after {LONGEST_EPISODE:,}; give one with --max-episode-steps", grave=False))
    if (values != values[0]).any() and not _acts(steps):
        found.append(
            Doubt(f"no action has made a difference that a linear model sees to the first {number} steps or to their rewards")
        )
    return found


def _of_observations(values: ndarray, number: int) -> list[Doubt]:
    """Values (rows, obs_size)."""
    same = (values == values[0]).all(0)
    if same.all():
        told = f"the observation has been the same in all of the first {number} steps: nothing tells one state from another"
        return [Doubt(told)]
    found, magnitude, deviation = [], np.abs(values).max(0), values.std(0)
    if same.any():
        found.append(Doubt(f"{_entries(same)} of the observation never changed in the first {number} steps", grave=False))
    tiny = ~same & (deviation < FAINTEST)
    if tiny.any():
        found.append(
            Doubt(f"{_entries(tiny)} of the observation changed by less than {FAINTEST:g}, which is not seen: multiply it")
        )
    huge = magnitude > ENORMOUS
    if huge.any():
        largest = magnitude[huge].max()
        found.append(Doubt(f"{_entries(huge)} of the observation reached {largest:.3g}: rescale what is that large, or bound it"))
    faint = ~same & ~tiny & ~huge & (deviation < DIGITS * magnitude)
    if faint.any():
        told = f"{_entries(faint)} of the observation changed by less than {DIGITS:g} of what it is, of which float32 holds two"
        found.append(Doubt(f"{told} digits: subtract what is constant"))
    return found


def _of_rewards(reward: ndarray, terminated: ndarray, number: int, rewarded_otherwise: bool) -> list[Doubt]:
    largest = float(np.abs(reward).max())
    if largest > ENORMOUS:
        return [Doubt(f"a reward reached {largest:.3g}: values are sums of rewards; divide it")]
    if 0 < largest < FAINTEST:
        return [Doubt(f"no reward was larger than {largest:.3g}, and less than {FAINTEST:g} is taken for none: multiply it")]
    if (reward == reward.flat[0]).all() and not terminated.any():
        told = f"the reward has been {reward.flat[0]:g} in all of the first {number} steps, and no episode has terminated"
        if rewarded_otherwise:
            return [Doubt(f"{told}: curiosity alone leads until one does or another reward comes", grave=False)]
        return [Doubt(f"{told}: nothing tells good from bad yet; where reward is rare, add --bonus Disagreement")]
    return []


def _entries(where: ndarray) -> str:
    places = np.flatnonzero(where)
    named = ", ".join(map(str, places[:SHOWN])) + (" ..." if len(places) > SHOWN else "")
    return f"entry {named}" if len(places) == 1 else f"entries {named} ({len(places)} of {len(where)})"


def _acts(steps: Sequence[Transition]) -> bool:
    """Whether the last actions say anything of how a step changes the observation, or of its reward, beyond what the observation,
    the change before and the episode's clock say: an F-test of nested linear regressions, for each entry, with Bonferroni's
    correction for how many there are. True where too few steps tell."""
    before, actions, outcome = [], [], []
    steps = steps[: MOST // len(steps[0].reward) + 1]
    for environment in range(len(steps[0].reward)):
        begun, history = 0, [
            (np.asarray(s.obs)[environment], np.asarray(s.action)[environment], np.asarray(s.next_obs)[environment],
             float(s.reward[environment]), bool(s.terminated[environment] or s.truncated[environment]))
            for s in steps
        ]  # fmt: skip
        for now, (obs, action, after, reward, over) in enumerate(history):
            change = obs - history[now - 1][0] if now > begun else 0 * obs
            before.append([1.0, now - begun, *obs, *change])
            actions.append([history[now - lag][1] if now - lag >= begun else 0 * action for lag in range(LAGS)])
            outcome.append([*(after - obs), reward])
            begun = now + 1 if over else begun
    known, played, told = (np.asarray(rows, np.float64).reshape(len(rows), -1) for rows in (before, actions, outcome))
    if len(told) < known.shape[1] + played.shape[1] + ENOUGH // 2:
        return True
    told = told[:, told.std(0) > 0]
    if not told.size:
        return False
    scale = told.std(0)
    left, rank = _residual(known, told / scale)
    left_with, rank_with = _residual(np.concatenate([known, played], 1), told / scale)
    more, free = rank_with - rank, len(told) - rank_with
    if more < 1:  # the actions never varied
        return True
    from scipy import special  # takes a fifth of a second, which every start of the command line would wait for

    ratio = (left - left_with) / more / np.maximum(left_with / free, 1e-12)
    return bool((special.fdtrc(more, free, ratio) < 0.01 / told.shape[1]).any())


def _residual(x: ndarray, y: ndarray) -> tuple[ndarray, int]:
    """Sum of squares of each column of `y` that a linear map of `x` leaves, and the rank of `x`."""
    deviation = x.std(0)
    x = np.where(deviation > 0, x / np.where(deviation > 0, deviation, 1.0), x)
    weights, _, rank, _ = np.linalg.lstsq(x, y, rcond=1e-10)
    return np.square(y - x @ weights).sum(0), int(rank)
