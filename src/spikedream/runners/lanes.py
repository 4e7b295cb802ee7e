"""Where the experience of several collectors becomes one: the rows of the replay's ring, each a step of all environments.

A lane is the part of a row that belongs to one collector. Collectors are not equally fast, so their steps wait here until every
lane has one. A lane that is behind is filled with what another collector brings; where a lane's next step does not go on from the
one before it, that one is marked as the last that was recorded of its episode. The newest step of a lane waits until that is known,
so that what has once entered the replay never changes.
"""

from collections import deque
from typing import Any, NamedTuple, cast

import numpy as np

from spikedream.envs.real_time import Timing
from spikedream.spec import Spec
from spikedream.types import Transition


class Request(NamedTuple):
    """To a collector."""

    serial: int
    rows: int  # steps of all its environments, at most
    seconds: float  # after which it hands over what it has
    random: bool  # whether it acts at random
    episodes: int | None  # after the end of so many it hands over; None: of any number
    finish: bool = False  # only the episode under way, if there is one; no step where none is


class Handover(NamedTuple):
    """What a collector brings."""

    serial: int  # of the request that it answers
    steps: Transition  # fields (rows, environments, ...) in the environment's own units
    begins: np.ndarray  # (environments,) bool, where the first row is the first step of an episode
    taken: int  # the environments' own steps
    ended: tuple[float, ...]  # returns of the episodes that have ended
    version: int  # of the policy that acted
    seconds: float  # that it took
    timing: Timing | None = None  # how well real time was kept, where anything was timed
    between: bool = False  # whether no episode is under way


def rubbish(handover: Handover, spec: Spec, environments: int, rows: int, repeat: float, least: int = 1) -> str | None:
    """What is wrong with it, in a few words; None where nothing is.

    Args:
        handover: from a process that may have gone wrong in any way.
        spec: of the environment.
        environments: of the collector.
        rows: asked for, at most.
        repeat: own steps of the environment for which an action is held; infinite where ticks pass whether or not one comes.
        least: rows asked for, at least.
    """
    if not isinstance(handover, Handover) or not isinstance(handover.steps, Transition):
        return f"a {type(handover).__name__} in place of steps"
    reward = handover.steps.reward
    number = len(reward) if isinstance(reward, np.ndarray) and reward.ndim else 0
    if not least <= number <= rows:
        return f"{number} rows where {least} to {rows} were asked for"
    sizes = {"obs": (spec.obs_size,), "next_obs": (spec.obs_size,), "action": (spec.action_size,)}
    for name, field in zip(Transition._fields, handover.steps, strict=True):
        shape = (number, environments, *sizes.get(name, ()))
        if not isinstance(field, np.ndarray) or field.shape != shape or field.dtype != np.float32:
            there = f"{field.dtype}{list(field.shape)}" if isinstance(field, np.ndarray) else type(field).__name__
            return f"{name} is {there}, not float32{list(shape)}"
        if not np.isfinite(field).all():
            return f"{name} holds numbers that are not finite"
        if name in ("terminated", "truncated") and not np.isin(field, (0, 1)).all():
            return f"{name} holds neither 0 nor 1"
    steps, taken = number * environments, handover.taken
    if not isinstance(taken, int) or not steps <= taken <= (steps and steps * repeat):
        return f"{taken} steps taken in {number} rows"
    if np.shape(handover.begins) != (environments,):
        return f"begins has the shape {np.shape(handover.begins)}, not ({environments},)"
    if not isinstance(handover.timing, Timing | None):
        return f"timing is of the type {type(handover.timing).__name__}"
    return None


class Lanes:
    """Rows that wait to be put together.

    Args:
        collectors: as many lanes.
        environments: of each collector.
        queue: rows by which a lane may be ahead of the shortest one before its collector's steps go there.
    """

    def __init__(self, collectors: int, environments: int, queue: int):
        self.environments, self._queue = environments, queue
        self._lanes: list[deque[Transition]] = [deque() for _ in range(collectors)]  # fields (environments, ...)
        self._last: list[int | None] = [None] * collectors  # whose steps a lane's newest are
        self.moved = 0  # handovers that went into another's lane

    def add(self, collector: int, handover: Handover) -> None:
        own, shortest = self._lanes[collector], min(self._lanes, key=len)
        lane = shortest if len(own) - len(shortest) > self._queue else own
        where = next(i for i, other in enumerate(self._lanes) if other is lane)
        self.moved += where != collector
        if self._last[where] != collector:
            self._end(lane)
        elif lane:  # an environment that was begun anew, though its last step ended nothing
            self._end(lane, np.asarray(handover.begins, bool))
        if self._last[where] != collector:
            self.lost(collector)  # to the lane in which its newest step stands
        lane.extend(Transition(*row) for row in zip(*handover.steps, strict=True))
        self._last[where] = collector

    def lost(self, collector: int) -> None:
        """The collector will not go on after its newest step."""
        for where, last in enumerate(self._last):
            if last == collector:
                self._end(self._lanes[where])
                self._last[where] = None

    def end(self) -> None:
        """No collector will go on. What cannot fill a whole row goes on waiting."""
        for collector in range(len(self._lanes)):
            self.lost(collector)
        self.level()

    def level(self) -> None:
        """Share out what waits, so that no lane is longer by more than a row."""
        while True:
            order = sorted(range(len(self._lanes)), key=lambda i: len(self._lanes[i]))
            short, long = self._lanes[order[0]], self._lanes[order[-1]]
            number = (len(long) - len(short)) // 2
            if number == 0:
                return
            moved = [long.pop() for _ in range(number)][::-1]
            self._end(long)
            self._end(short)
            short.extend(moved)
            self._last[order[0]], self._last[order[-1]] = self._last[order[-1]], None

    def _end(self, lane: deque[Transition], given_up: np.ndarray | None = None) -> None:
        """The newest step of a lane is the last that was recorded of its episodes, where they are `given_up` (environments,)."""
        if lane:
            last = lane[-1]
            goes_on = (last.terminated == 0) & (True if given_up is None else given_up)
            lane[-1] = last._replace(truncated=cast(Any, np.where(goes_on, np.float32(1), last.truncated)))

    def take(self) -> list[Transition]:
        """The rows that are whole, oldest first, fields (collectors * environments, ...)."""
        number = min(map(self._ready, self._lanes, self._last))
        parts = [[lane.popleft() for _ in range(number)] for lane in self._lanes]
        return [
            Transition(*(cast(Any, np.concatenate(field)) for field in zip(*row, strict=True))) for row in zip(*parts, strict=True)
        ]

    @staticmethod
    def _ready(lane: deque[Transition], last: int | None) -> int:
        over = last is None or not lane or bool(np.maximum(lane[-1].terminated, lane[-1].truncated).all())
        return len(lane) if over else len(lane) - 1

    @property
    def waiting(self) -> int:
        """Steps."""
        return self.environments * sum(map(len, self._lanes))

    @property
    def longest(self) -> int:
        """Rows."""
        return max(map(len, self._lanes))

    # ---- saving

    def save(self) -> dict[str, np.ndarray]:
        """What waits, by lane and field."""
        arrays = {}
        for i, lane in enumerate(self._lanes):
            if lane:
                fields = (np.stack(field) for field in zip(*lane, strict=True))
                arrays |= {f"lane.{i}.{name}": field for name, field in zip(Transition._fields, fields, strict=True)}
        return arrays

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from there with other collectors."""
        for i, lane in enumerate(self._lanes):
            fields = [arrays.get(f"lane.{i}.{name}") for name in Transition._fields]
            if fields[0] is not None:
                lane.extend(Transition(*row) for row in zip(*cast(list[np.ndarray], fields), strict=True))
            self._end(lane)


def joined(rows: list[Transition]) -> Transition:
    """As one, fields (rows, environments, ...)."""
    return Transition(*(cast(Any, np.stack(field)) for field in zip(*rows, strict=True)))


def no_rows(spec: Spec, environments: int) -> Transition:
    """Likewise, of none."""
    sizes = ((spec.obs_size,), (spec.action_size,), (), (spec.obs_size,), (), (), ())
    return Transition(*(cast(Any, np.zeros((0, environments, *size), np.float32)) for size in sizes))
