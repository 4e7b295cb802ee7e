"""Greedy episodes on fresh seeds, all environments of a batch stepped together."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from spikedream.algorithm import Algorithm, PolicyState
from spikedream.config import Config
from spikedream.envs.host import episode_seed
from spikedream.envs.make import endless, longest_episode, make_vector
from spikedream.envs.spaces import BrokenEnvironment, decode_actions

LARGEST_BATCH = 100
GRACE = 5.0  # seconds beyond its time, in which an environment may still say itself what is wrong


class Evaluated(NamedTuple):
    returns: np.ndarray  # (episodes,)
    lengths: np.ndarray  # (episodes,) the environment's own steps
    firing_rate: float  # of the policy's neurons, spikes per tick; 0 for conventional networks
    decision_ms: float | None  # mean milliseconds a decision, see `Round`; None where no episode had a second step
    success: np.ndarray | None = None  # (episodes,) bool, the last `info["is_success"]`; None where an environment tells none

    def mean(self) -> float:
        return float(self.returns.mean())

    def std(self) -> float:
        return float(self.returns.std())

    def successes(self) -> dict[str, float]:
        """Their share, as in a row of `metrics.jsonl`; empty where none is told."""
        return {} if self.success is None else {"eval_success": float(self.success.mean())}


class Round(NamedTuple):
    """One batch of episodes. A decision's time is that of the call that decides for the batch, shared among all its episodes: those
    that are over are decided for too. The first call, which may have to compile, is left out of it."""

    returns: np.ndarray  # (batch,)
    lengths: np.ndarray  # (batch,)
    firing_rate: float
    seconds: float  # of all timed calls
    decisions: int  # made by them
    success: np.ndarray  # (batch,) float; NaN where none is told


class Evaluator:
    """Holds the environments between evaluations; making a hundred of them costs more than running them.

    Args:
        config: names the environment.
        episodes: greedy episodes in each evaluation.
        heed: called before each decision; what it raises ends the evaluation, which can then be made anew.
        step_seconds: for one step of an environment, after which it hangs; None: any number.
    """

    def __init__(self, config: Config, episodes: int, heed: Callable[[], None] = lambda: None, step_seconds: float | None = None):
        if episodes < 1:
            raise ValueError(f"an evaluation needs at least one episode, not {episodes}")
        self.config, self.episodes, self._heed = config, episodes, heed
        self.batch = min(episodes, LARGEST_BATCH)
        self._envs = make_vector(config.env, config.env_kwargs, config.max_episode_steps, self.batch)
        self._longest, self._warm = longest_episode(config.env, config.max_episode_steps), False
        self._within = None if step_seconds is None else step_seconds * self.batch + GRACE
        self._thread = None if step_seconds is None else ThreadPoolExecutor(1)  # who waits for it can also stop waiting

    def __call__(self, algorithm: Algorithm, policy: PolicyState, key: Array, stream: int, *index: int) -> Evaluated:
        """Run the episodes that `stream` and `index` seed (see `episode_seed`); what a policy draws follows from that and `key`.

        Raises:
            BrokenEnvironment: the environment raised, hangs, or returned something that is not finite.
        """
        if not self._warm:  # what keeps time itself must not wait for a compilation
            resting, nothing = algorithm.start(policy, self.batch), np.zeros((self.batch, algorithm.spec.obs_size), np.float32)
            algorithm.act(policy, resting, nothing, key, True).key.block_until_ready()
            self._warm = True
        rounds = -(-self.episodes // self.batch)
        seeds = [episode_seed(self.config.seed, stream, *index, i) for i in range(rounds)]
        parts = [self._round(algorithm, policy, jax.random.fold_in(key, seed), seed) for seed in seeds]
        returns, lengths = (np.concatenate([part[i] for part in parts])[: self.episodes] for i in range(2))
        seconds, decisions = sum(part.seconds for part in parts), sum(part.decisions for part in parts)
        decision_ms = 1000 * seconds / decisions if decisions else None
        success = np.concatenate([part.success for part in parts])[: self.episodes]
        told = None if np.isnan(success).any() else success > 0
        return Evaluated(returns, lengths, float(np.mean([part.firing_rate for part in parts])), decision_ms, told)

    def _round(self, algorithm: Algorithm, policy: PolicyState, key: Array, seed: int) -> Round:
        obs = self._call("reset", seed=seed)[0]
        carry = algorithm.start(policy, self.batch)
        running = np.ones(self.batch, bool)
        returns, lengths, rates = np.zeros(self.batch), np.zeros(self.batch, int), []
        seconds, decisions, success = 0.0, 0, np.full(self.batch, np.nan)
        while running.any():
            self._heed()
            start = time.perf_counter()
            act = algorithm.act(policy, carry, np.asarray(obs, np.float32), key, True)
            carry, key, chosen = act.carry, act.key, np.asarray(act.action)  # which waits until they are computed
            if rates:
                seconds, decisions = seconds + time.perf_counter() - start, decisions + self.batch
            rates.append(np.asarray(act.rate)[running].mean())
            decoded = decode_actions(algorithm.spec, chosen)
            for _ in range(self.config.repeat):
                obs, reward, terminated, truncated, info = self._call("step", decoded)
                if not np.isfinite(reward[running]).all() or not np.isfinite(obs[running]).all():
                    raise BrokenEnvironment(f"{self.config.env} returned numbers that are not finite during evaluation")
                # An environment whose episode has ended resets itself and runs on; nothing after its end counts.
                returns += reward * running
                lengths += running * np.asarray(info.get("ticks", 1))
                if "is_success" in info:
                    success = np.where(running, info["is_success"], success)
                running &= ~(terminated | truncated)
            if running.any() and lengths.max() >= self._longest:
                raise endless(self.config.env)
        return Round(returns, lengths, float(np.mean(rates)), seconds, decisions, success)

    def _call(self, what: str, *args: Any, **kwargs: Any) -> Any:
        method = getattr(self._envs, what)
        try:
            if self._thread is None:
                return method(*args, **kwargs)
            answer = self._thread.submit(method, *args, **kwargs)
            if not wait((answer,), self._within).done:
                which = f"{self.batch} at once have" if self.batch > 1 else "it has"
                raise BrokenEnvironment(
                    f"{self.config.env} hangs in evaluation: {which} not ended {what}() within {self._within:g} s"
                )
            return answer.result()
        except BrokenEnvironment:
            raise
        except Exception as error:
            raise BrokenEnvironment(f"{self.config.env} raised {type(error).__name__} in {what}(): {error}") from error

    def close(self) -> None:
        if self._thread is not None:
            self._thread.shutdown(wait=False)
        self._envs.close()
