"""Environments that advance on the wall clock, whether or not an action has come."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import gymnasium
import numpy as np

from spikedream.bounds import check_bounds
from spikedream.envs.spaces import BrokenEnvironment, idle_action

KEEPS_TIME = "keeps_time"  # in the metadata of environments that have a clock of their own, and are `Timed`
PATIENCE = 100  # ticks in a row that come late before an environment counts as too slow for the clock


@dataclass(frozen=True)
class Pace:
    """How an environment keeps real time."""

    tick: float = 0.02  # seconds of one of its own steps
    late: Literal["hold", "idle"] = "hold"  # what it is given where no action has come in time: the last one, or none

    def __post_init__(self) -> None:
        check_bounds(self, tick=(1e-4, None))


@dataclass
class Timing:
    """How well the clock was kept; times in seconds."""

    ticks: int = 0
    missed: int = 0  # of them, for which no action had come
    latency: list[float] = field(default_factory=list)  # of each decision: from when the observation was handed out to its action
    jitter: list[float] = field(default_factory=list)  # by how much each observation was handed out later than due

    def metrics(self) -> dict[str, float]:
        """As in a row of `metrics.jsonl`; empty where nothing was timed."""
        if not self.ticks:
            return {}
        found = {"realtime/ticks": float(self.ticks), "realtime/missed": self.missed / self.ticks}
        for name, seconds in (("latency", self.latency), ("jitter", self.jitter)):
            if seconds:
                median, late = np.quantile(seconds, (0.5, 0.99)).tolist()
                found |= {f"realtime/{name}_ms": 1000 * median, f"realtime/{name}_ms_99": 1000 * late}
        return found


def together(timings: Iterable[Timing]) -> Timing:
    """Of several environments."""
    whole = Timing()
    for one in timings:
        whole.ticks, whole.missed = whole.ticks + one.ticks, whole.missed + one.missed
        whole.latency += one.latency
        whole.jitter += one.jitter
    return whole


class Timed(Protocol):
    """Who knows how well real time was kept."""

    def take_timing(self) -> Timing:
        """Since the last call."""
        ...


class RealTime(gymnasium.Wrapper):
    """An environment whose every own step lasts a tick of the wall clock.

    An observation is handed out when its tick is over. The action that answers it counts for the whole next tick if it comes before
    that one is over too. Otherwise the tick is missed: it passes with the action before, or with none, and the answer begins with
    the tick in which it comes. What passed so is made up for inside the next call of `step`, which a simulation cannot tell from
    having been advanced on time; `info["ticks"]` says how many passed in the call, and their rewards are added up. Only `reset`
    stops the clock.

    Args:
        env: one whose step takes less than a tick.
        pace: of the clock.
        repeat: ticks for which an action is held.
        clock, sleep: in place of the time of this machine, for tests.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        pace: Pace = Pace(),
        repeat: int = 1,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ):
        super().__init__(env)
        self.pace, self._repeat, self._clock, self._sleep = pace, repeat, clock, sleep
        self._timing = Timing()
        self._idle = idle_action(env.action_space)
        self._held: Any = self._idle
        self._due = self._shown = 0.0  # when the tick under way is over, and when the last observation was handed out

    def take_timing(self) -> Timing:
        """Since the last call."""
        taken, self._timing = self._timing, Timing()
        return taken

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        answer = self.env.reset(**kwargs)
        self._held, self._shown = self._idle, self._clock()
        self._due = self._shown + self.pace.tick
        return answer

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Raises BrokenEnvironment where the environment cannot keep up with the clock."""
        now, total, ticks = self._clock(), 0.0, 0
        self._timing.latency.append(now - self._shown)
        behind = PATIENCE + (now - self._due) / self.pace.tick
        while now > self._due:
            answer = self._advance(self._held if self.pace.late == "hold" else self._idle)
            self._timing.missed += 1
            total, ticks = total + float(answer[1]), ticks + 1
            if answer[2] or answer[3]:
                return self._hand_out(answer, total, ticks)
            if ticks > behind:
                raise BrokenEnvironment(
                    f"a step takes longer than its tick of {1000 * self.pace.tick:g} ms: it cannot keep real time"
                )
            now = self._clock()
        self._held = action
        for _ in range(self._repeat):
            answer = self._advance(action)
            total, ticks = total + float(answer[1]), ticks + 1
            if answer[2] or answer[3]:
                break
        return self._hand_out(answer, total, ticks)

    def _advance(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One tick."""
        answer = self.env.step(action)
        self._timing.ticks += 1
        self._due += self.pace.tick
        return answer

    def _hand_out(self, answer: Any, total: float, ticks: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """When the last tick is over."""
        over = self._due - self.pace.tick
        if (left := over - self._clock()) > 0:
            self._sleep(left)
        self._shown = self._clock()
        self._timing.jitter.append(self._shown - over)
        obs, _, terminated, truncated, info = answer
        return obs, total, terminated, truncated, {**info, "ticks": ticks}
