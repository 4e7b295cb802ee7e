"""What collectors are asked for, and what becomes of what they bring: the experience of a parallel run, which its driver owns."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from gymnasium.envs.registration import load_env_creator

from spikedream.algorithm import Algorithm
from spikedream.config import Config
from spikedream.envs.make import registered
from spikedream.envs.real_time import KEEPS_TIME, Timing, together
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.processes import Parallel
from spikedream.replay.ring import Replay
from spikedream.runners.account import Account
from spikedream.runners.lanes import Handover, Lanes, Request, joined, rubbish
from spikedream.runners.schedule import Schedule
from spikedream.runners.states import Arrays, remembered
from spikedream.runs.doubts import tell_doubts
from spikedream.spec import Spec
from spikedream.types import Transition


class Intake:
    """Of one run.

    Args:
        config: of the run, whose runner is `Parallel`.
        spec: of its environment.
        account: whose real steps it counts.
        schedule: says how many there may be.
        learners: names of those who learn from it.
    """

    def __init__(self, config: Config, spec: Spec, account: Account, schedule: Schedule, learners: Iterable[str]):
        assert isinstance(config.runner, Parallel)
        self.config, self.spec, self.runner, self.account, self.schedule = config, spec, config.runner, account, schedule
        self.algorithm: Algorithm = config.algorithm(spec)
        self.lanes = Lanes(config.runner.collectors, config.collect.environments, config.runner.queue)
        self.replay: Replay | None = None  # until the run has begun
        self.unsent: dict[str, list[Transition]] = {name: [] for name in learners}  # rows that a learner has not been given
        self.ended: list[float] = []  # returns of the episodes since the last row
        self.lags: deque[int] = deque(maxlen=100)  # versions that the policies of what was received were behind
        self._timed = config.realtime is not None or keeps_time(config.env)
        self._repeat = math.inf if self._timed else config.repeat  # own steps in which an action is taken, at most
        self._timings: list[Timing] = []  # since they were last taken
        self._doubted = False  # whether the first turn has been looked at
        self._episodes = 0  # that random actions have ended
        self._serial = 0
        self._open: dict[tuple[int, int], Request] = {}  # by collector and serial number
        self._playing: set[int] = set()  # collectors that have an episode under way, or will have

    @property
    def seeding(self) -> bool:
        """Whether the first, random steps are still to be made."""
        collect, progress = self.config.collect, self.account.progress
        if not self.config.explores or progress.first_turn or progress.real_steps >= self.config.budget:
            return False
        if collect.seed_steps is not None:
            return progress.real_steps < collect.seed_steps
        limit = collect.seed_limit
        return self._episodes < collect.seed_episodes and (limit is None or progress.real_steps < limit)

    @property
    def steps_of_a_row(self) -> int:
        """The environments' own, of one collector, at most."""
        return self.config.collect.environments * self.config.repeat

    # ---- asking

    def most(self, blocks: int) -> float:
        """Real steps that may have been collected after so many blocks of agent updates."""
        progress, collect, budget = self.account.progress, self.config.collect, self.config.budget
        if self.seeding:
            limit = collect.seed_limit if collect.seed_steps is None else collect.seed_steps
            return budget if limit is None else min(budget, limit)
        if not (progress.first_turn or progress.inherited_steps):
            return min(budget, self.schedule.turn)
        return min(budget, self.schedule.most(blocks, progress.first_turn, progress.done.get("fit")))

    def requests(self, idle: list[int], blocks: int) -> Iterator[tuple[int, Request]]:
        """What to ask of the collectors that are `idle`, after so many blocks of agent updates; nothing while a learner has a
        whole replay still to take in. But where a clock runs, whoever is in an episode is asked to finish it."""
        assert self.replay is not None
        collect, progress, random, most = self.config.collect, self.account.progress, self.seeding, self.most(blocks)
        if not self._open and most <= progress.real_steps:
            self._level()
        full = max(map(len, self.unsent.values())) >= self.replay.rows
        episodes = None
        if random and collect.seed_steps is None:
            episodes = math.ceil((collect.seed_episodes - self._episodes) / self.runner.collectors)
        for place, collector in enumerate(idle):
            asked = sum(request.rows for request in self._open.values()) * self.steps_of_a_row
            free = 0 if full else most - progress.real_steps - asked
            finish = free <= 0 and self._timed and collector in self._playing
            if finish:
                free = self.config.budget - progress.real_steps - asked
            if free <= 0:
                continue
            share = math.ceil(free / self.steps_of_a_row / (len(idle) - place))
            self._serial += 1
            request = Request(self._serial, min(self.runner.rows, share), self.runner.seconds, random, episodes, finish)
            self._open[collector, request.serial] = request
            self._playing.add(collector)
            yield collector, request

    def lost(self, collector: int) -> None:
        """It will not bring what it was asked for, nor go on from where it was."""
        self.lanes.lost(collector)
        self._open = {key: request for key, request in self._open.items() if key[0] != collector}
        self._playing.discard(collector)

    # ---- taking in

    def receive(self, collector: int, handover: Handover, version: int) -> str | None:
        """Take it in, once; says what is wrong with it, and takes in nothing, where something is.

        Args:
            collector: that brings it.
            handover: what it brings.
            version: of the newest policy.
        """
        if not isinstance(handover, Handover):
            return f"a {type(handover).__name__} in place of steps"
        request = self._open.get((collector, handover.serial))
        if request is None:
            return None if handover.serial <= self._serial else "an answer to what nobody asked"
        if request.serial != min(serial for who, serial in self._open if who == collector):
            return "what it was asked for before is missing"
        least = 0 if request.finish else 1
        wrong = rubbish(handover, self.spec, self.config.collect.environments, request.rows, self._repeat, least)
        if wrong is not None:
            return wrong
        del self._open[collector, request.serial]
        if handover.between and all(other.finish for (who, _), other in self._open.items() if who == collector):
            self._playing.discard(collector)
        progress, seeded = self.account.progress, self.seeding
        self._episodes += len(handover.ended) if seeded else 0
        progress.real_steps += handover.taken
        begun = progress.first_turn or progress.inherited_steps
        whole = seeded or progress.real_steps >= min(self.schedule.turn, self.config.budget)
        if not begun and whole and not self.seeding:
            progress.first_turn = progress.real_steps
        self.ended += handover.ended
        self._timings += [] if handover.timing is None else [handover.timing]
        self.lags.append(version - handover.version)
        if handover.taken:
            self.lanes.add(collector, handover)
        self._remember()
        return None

    def _remember(self) -> None:
        rows = self.lanes.take()
        if rows:
            assert self.replay is not None
            self.replay = remembered(self.algorithm, self.replay, joined(rows))
            for unsent in self.unsent.values():
                unsent += rows

    def _level(self) -> None:
        """Where no collector may go on, nothing waits for one."""
        if self.account.progress.real_steps >= self.config.budget:
            self.lanes.end()
        elif self.lanes.waiting > self.config.environments:
            self.lanes.level()
        self._remember()

    def tell_doubts(self, note: Callable[[str], None]) -> None:
        """Once, before the first turn is learned from; raises BrokenEnvironment where a strict run is given up."""
        if self._doubted or "fit" in self.account.progress.done or not self.account.progress.first_turn:
            return
        assert self.replay is not None
        rows = zip(*map(np.asarray, self.replay.in_order()), strict=True)
        self._doubted, given_up = True, tell_doubts(self.config, [Transition(*row) for row in rows], note)
        if given_up:
            raise BrokenEnvironment(given_up)

    @property
    def through(self) -> bool:
        """Whether the budget is spent, and all of it has been handed on that fills whole rows."""
        spent = self.account.progress.real_steps >= self.config.budget
        return spent and not self._open and self.lanes.waiting < self.config.environments

    def new_to(self, learner: str) -> tuple[Transition | None, int]:
        """The steps that a learner does not know, fields (rows, environments, ...), and the number of the first of these rows."""
        rows, self.unsent[learner] = self.unsent[learner], []
        return (joined(rows) if rows else None), self.added - len(rows)

    @property
    def added(self) -> int:
        """Rows, ever."""
        assert self.replay is not None
        return int(self.replay.added)

    def take_timing(self) -> Timing:
        """How well real time was kept by all collectors, since the last call."""
        timings, self._timings = self._timings, []
        return together(timings)

    # ---- saving

    def save(self) -> tuple[Arrays, dict[str, Any]]:
        return self.lanes.save(), {"episodes": self._episodes, "ended": self.ended}

    def restore(self, arrays: dict[str, np.ndarray], where: dict[str, Any]) -> None:
        self.lanes.restore(arrays)
        self._episodes, self.ended = where["episodes"], list(where["ended"])


def keeps_time(env_id: str) -> bool:
    """Whether an environment has a clock of its own."""
    entry = registered(env_id).entry_point
    made_by = load_env_creator(entry) if isinstance(entry, str) else entry
    return bool(getattr(made_by, "metadata", {}).get(KEEPS_TIME))
