"""The loop in many processes: the same verbs at the same time, each with the newest that the others have made.

The driver owns the newest experience, model and policy, and hands them on: parts are told all they need with each request, and
what they bring is taken in once, by the driver alone. A part that dies, hangs or brings rubbish is made anew from what the driver
holds; what it had not yet brought is done again.
"""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from spikedream.config import Config
from spikedream.envs.interpreters import processors
from spikedream.envs.make import spec_of
from spikedream.envs.registration import copied
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.processes import Parallel
from spikedream.replay.ring import Replay
from spikedream.runners.account import Account, Progress, restore_outside
from spikedream.runners.clock import due
from spikedream.runners.crew import Crew, Lost, check_ray
from spikedream.runners.inherit import inherit
from spikedream.runners.intake import Intake
from spikedream.runners.lanes import Handover
from spikedream.runners.newest import Newest, PolicyVersion
from spikedream.runners.parts import Begun, Collecting, Dreaming, Evaluating, Judgement, Learned, Modelling, Seat, Task
from spikedream.runners.schedule import Schedule
from spikedream.runners.states import ranked, state_of
from spikedream.runners.status import Status, StatusLog
from spikedream.runners.stop import ClusterError, Diverged, Interrupted, stopping
from spikedream.runs import checkpoint, outcome
from spikedream.runs.checkpoint import CheckpointError
from spikedream.runs.memory import check_memory
from spikedream.runs.metrics import Listener, check_wandb
from spikedream.runs.run import Run
from spikedream.snn.product import fastest
from spikedream.types import Transition

MODEL, AGENT, EVALUATOR = "model trainer", "agent trainer", "evaluator"
LEARNERS = {MODEL: Modelling, AGENT: Dreaming}
SAVED = 2.0  # seconds between two checkpoints, at least
TOLD = 0.25  # seconds between two words to the listener
PATIENCE = 0.1  # seconds in which the loop looks after everything once


class Driver:
    """One run in its directory, in many processes.

    Args:
        config: what to do; its runner is `Parallel`.
        directory: where it leaves its files; made if absent.
        listener: told how it goes.
        resume: go on from the newest checkpoint in `directory`, with fresh episodes.

    Raises:
        BrokenEnvironment, CheckpointError, ImportError: as their texts say.
    """

    def __init__(self, config: Config, directory: Path, listener: Listener, resume: bool = False):
        config.check()
        if config.logging.wandb is not None:
            check_wandb()
        check_ray()
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the trainers share an accelerator with this process
        assert isinstance(config.runner, Parallel)
        self.config, self.directory, self.listener, self.runner = config, directory, listener, config.runner
        self.account = Account(config, directory, listener)
        self.schedule = Schedule(config)
        self.collectors = {f"collector {i}": i for i in range(config.runner.collectors)}
        self._stop = False
        self._held: dict[str, int] = {}  # version that a part holds: of the policy, of the model
        self._starting: set[str] = set()  # parts that have not yet said that they are ready
        self._begins: set[str] = set()  # trainers that have still to be told everything
        self._evaluated: PolicyVersion | None = None  # the last that was handed to the evaluator
        self._failures: dict[str, int] = {}  # in a row
        self._shared: tuple[int, Any] | None = None  # version of the policy that was put, and what stands for it
        self.status_log = StatusLog()
        self._told = self._saved = 0.0
        self._compiling = self._counted = 0.0  # seconds that the trainers took to compile, and of these, what the account knows of
        saved = checkpoint.load(directory / "checkpoints") if resume else None
        self.spec = spec_of(config.env, config.env_kwargs, config.max_episode_steps)
        self.intake = Intake(config, self.spec, self.account, self.schedule, LEARNERS)
        if config.precision == "fastest":  # a resumed run goes on as it began, wherever it is
            self.progress.precision = fastest() if saved is None else saved.counters.get("precision", "float32")
        self._registration, _ = copied(config.env, config)  # or says that it cannot be, before anything is started
        self.crew = Crew(self.runner.address or os.environ.get("RAY_ADDRESS"))
        try:
            self.starts = saved.counters["collector"]["starts"] if saved is not None else 0
            for name in (*self.collectors, *LEARNERS, EVALUATOR):  # they import and compile while this process does
                self._start(name)
            self._begin(saved)
            self.account.open()
        except BaseException:
            self.crew.close()
            raise
        self.status_log.begin(self.progress.real_steps)

    def _begin(self, saved: checkpoint.Checkpoint | None) -> None:
        """What is learned and experienced so far: nothing, an earlier run's, or that of a checkpoint."""
        config = self.config
        self.algorithm = config.algorithm(self.spec, self.progress.precision)
        check_memory(self.algorithm)
        model = 0
        if saved is None:
            state = self.algorithm.init(jax.random.key(config.seed))
            self.learner = self.algorithm.host_learner(state)
            if config.start_from is not None:
                earlier = Run(config.start_from)
                state, self.progress.inherited_steps = inherit(earlier, config, self.algorithm, state, self.learner)
            outcome.begin(config, self.directory)
        else:
            where, extent = self.account.restore(saved.counters)
            own = {name: x for name, x in saved.arrays.items() if not name.startswith("lane.")}
            state = state_of(self.algorithm, own, np.zeros((0, 0), np.float32))
            state = replace(state, replay=self.account.log.load(extent, state.replay))
            self.learner = self.algorithm.host_learner(state)
            restore_outside(self.learner, own)
            self.intake.restore(saved.arrays, where)
            model = where["model"]
        self.intake.replay = state.replay
        self.newest = Newest(self.algorithm, state, model, self.progress.real_steps, self.learner)
        self._dreaming_in = self.newest.model

    @property
    def replay(self) -> Replay:
        assert self.intake.replay is not None
        return self.intake.replay

    @property
    def progress(self) -> Progress:
        return self.account.progress

    def train(self) -> None:
        """Go on until solved or out of budget.

        Raises:
            Interrupted: after SIGINT or SIGTERM; a checkpoint was written.
            ClusterError, BrokenEnvironment: a part cannot be started, or fails again and again; a checkpoint was written.
            Diverged: the newest good checkpoint is still there.
        """
        if not checkpoint.heads(self.directory / "checkpoints"):
            self.save()
        with stopping(self.ask_to_stop):
            try:
                while not self.progress.finished:
                    self._turn()
            except (ClusterError, BrokenEnvironment, Interrupted):
                self.save()
                raise
        self.save()
        assert self.progress.fresh is not None, "the last evaluation plays fresh episodes too"
        self.account.write_result(self.progress.fresh)

    def _turn(self) -> None:
        if self._stop:
            self._drain()
            raise Interrupted(f"stopped at {self.progress.real_steps} real steps; go on with: spikedream resume {self.directory}")
        self._ask_collectors()
        self._ask_model_trainer()
        self._ask_agent_trainer()
        self._ask_evaluator()
        for name, answer in self.crew.wait(PATIENCE):
            self._take(name, answer)
        now = time.monotonic()
        if now - self._told >= TOLD:
            self._told = now
            self.listener.progress(self.progress.real_steps, self.config.budget)
            self.listener.parts(self.status_log.parts(self.status()))
        last, steps = self.progress.done.get("checkpoint"), self.progress.real_steps
        if now - self._saved >= SAVED and steps != last and due(self.config.checkpoint.every, last, steps):
            self._try(self.save)

    def _drain(self) -> None:
        """What collectors have under way is not lost."""
        until = time.monotonic() + self.runner.seconds + self.runner.step_seconds
        while time.monotonic() < until and any(self.crew.asked(name) for name in self.collectors):
            for name, answer in self.crew.wait(PATIENCE):
                self._take(name, answer)

    # ---- parts

    def _task(self, threads: int, accelerated: bool = False) -> Task:
        return Task(self.config, self.spec, self._registration, self.progress.precision, threads, accelerated)

    def _start(self, name: str) -> None:
        self.starts += 1
        self._held.pop(name, None)
        if name in self.collectors:
            number = self.collectors[name]
            self.intake.lost(number)
            self.crew.start(name, Collecting, self._task(1), Seat(number, self.starts))
        elif name in LEARNERS:
            self._begins.add(name)
            self.crew.start(name, LEARNERS[name], self._task(processors(), True), accelerated=True)
        else:
            self.crew.start(name, Evaluating, self._task(1))
            self._evaluated = None
        self._starting.add(name)
        self.crew.ask(name, "ready", within=self.runner.start_seconds)

    def _take(self, name: str, answer: Any) -> None:
        if isinstance(answer, Lost):
            return self._lost(name, answer)
        if name in self._starting:
            return self._starting.remove(name)
        if name in self.collectors:
            return self._received(name, answer)
        self._failures[name] = 0
        {MODEL: self._fitted, AGENT: self._dreamt, EVALUATOR: self._judged}[name](answer)

    def _lost(self, name: str, lost: Lost) -> None:
        if isinstance(lost.error, Diverged):
            raise lost.error
        self.status_log.restarts += 1
        self._failures[name] = self._failures.get(name, 0) + 1
        if self._failures[name] >= self.runner.failures:
            kind = BrokenEnvironment if isinstance(lost.error, BrokenEnvironment) else ClusterError
            raise kind(f"{name} has failed {self._failures[name]} times, one right after the other: {lost.why}")
        self.listener.note(f"{name} is started anew: {lost.why}")
        self._start(name)

    # ---- collecting

    def _ask_collectors(self) -> None:
        # The next request is there when a collector hands over: it does not wait for this process.
        idle = [number for name, number in self.collectors.items() if name not in self._starting and self.crew.asked(name) < 2]
        names, runner, policy = list(self.collectors), self.runner, self.newest.policy
        for number, request in self.intake.requests(idle, self._blocks):
            name = names[number]
            if self._shared is None or self._shared[0] != policy.version:
                self._shared = policy.version, self.crew.put(policy.acting)
            given = None if self._held.get(name) == policy.version else self._shared[1]
            within = runner.seconds + runner.step_seconds * self.config.collect.environments
            self._held[name] = policy.version
            self.crew.ask(name, "collect", given, policy.version, request, within=within)

    def _received(self, name: str, handover: Handover) -> None:
        wrong = self.intake.receive(self.collectors[name], handover, self.newest.policy.version)
        if wrong is None:
            self._failures[name] = 0
        else:
            self.status_log.refused += 1
            self._lost(name, Lost(f"what it brought was refused: {wrong}"))

    # ---- learning

    @property
    def _blocks(self) -> int:
        """Of agent updates, made so far."""
        return self.progress.updates // self.config.improve.block

    def _new_to(self, name: str) -> tuple[Begun | None, Transition | None, int]:
        """What a trainer does not know: everything, where it begins, or else the newest steps."""
        if name in self._begins:
            self._begins.remove(name)
            self.intake.unsent[name] = []
            return self.newest.begun(self.replay, name == MODEL), None, self.intake.added
        return None, *self.intake.new_to(name)

    @property
    def _learning(self) -> bool:
        """Whether there is something to learn from: all of the first turn."""
        there = self.progress.first_turn or self.progress.inherited_steps
        return bool(there) and self.intake.added > 0

    def _ask_model_trainer(self) -> None:
        progress = self.progress
        if not self._learning or self.crew.asked(MODEL):
            return
        updates = self.schedule.fit(progress.real_steps, progress.done.get("fit"))
        if updates:
            self.intake.tell_doubts(self.listener.note)
            self.listener.phase("fit", 0, 1)
            self._fitting = progress.real_steps
            agent = self.newest.agent if self.config.replay.priority == "td_error" else None
            self.crew.ask(MODEL, "fit", *self._new_to(MODEL), agent, updates, within=self.runner.fit_seconds)

    def _measured(self, learned: Learned) -> None:
        self._compiling = max(self._compiling, learned.compiling)
        self.account.metrics |= learned.metrics
        self.account.settle(*self.newest.counters)

    def _fitted(self, learned: Learned) -> None:
        self.newest.fitted(learned)
        self.progress.done["fit"] = self._fitting
        self._measured(learned)
        self.intake.replay = ranked(self.replay.forget_episodes(), learned.ranks)

    def _ask_agent_trainer(self) -> None:
        """Dreams in the newest model; one that only acts by the model gets it as soon as it is there."""
        model = self.newest.model
        if not self._learning or "fit" not in self.progress.done or self.crew.asked(AGENT):
            return
        blocks = max(0, self.schedule.blocks(self.progress.real_steps, self.progress.first_turn) - self._blocks)
        new = model if model.arrays and self._held.get(AGENT) != model.version else None
        if blocks or (new and self.algorithm.agent.acts_in_world):
            self.listener.phase("dream", self._blocks, self._blocks + blocks)
            self._held[AGENT], self._dreaming_in = model.version, model
            arguments = (*self._new_to(AGENT), new, blocks, max(self.runner.seconds, 0.5))
            self.crew.ask(AGENT, "dream", *arguments, within=self.runner.fit_seconds)

    def _dreamt(self, learned: Learned) -> None:
        self.newest.dreamt(learned, self._dreaming_in, self.progress.real_steps)
        self._measured(learned)

    # ---- evaluating

    @property
    def _through(self) -> bool:
        """Whether the budget is spent and everything is learned from it."""
        progress = self.progress
        left = self.schedule.blocks(progress.real_steps, progress.first_turn) - self._blocks
        learned = not self.schedule.fit(progress.real_steps, progress.done.get("fit")) and left <= 0
        model = self.newest.model
        waits = self.algorithm.agent.acts_in_world and bool(model.arrays) and self._held.get(AGENT) != model.version
        return self.intake.through and learned and not waits and not any(self.crew.asked(name) for name in LEARNERS)

    def _ask_evaluator(self) -> None:
        progress, policy, evaluation = self.progress, self.newest.policy, self.config.evaluation
        if "fit" not in progress.done or self.crew.asked(EVALUATOR) or self._blocks < self.schedule.first_blocks:
            return
        through = self._through
        learned = min(self.schedule.learned(self._blocks, progress.first_turn), policy.real_steps)
        every = evaluation.every or self.schedule.turn
        new = self._evaluated is None or policy.version > self._evaluated.version
        if not through and not (new and due(every, progress.done.get("evaluation"), int(learned))):
            return
        self.listener.phase("evaluate", 0, 1)
        confirmations = evaluation.confirmations if progress.solved_at is None else 0
        self._evaluated, self._last = policy, through
        self._learned = int(learned)
        key = policy.arrays["state.keys.evaluate"]
        arguments = (policy.acting, key, self.account.threshold, confirmations, progress.evaluations, through)
        self.crew.ask(EVALUATOR, "evaluate", *arguments, within=self.runner.evaluation_seconds)

    def _judged(self, judgement: Judgement) -> None:
        progress, policy = self.progress, self._evaluated
        assert policy is not None
        first = judgement.solved and progress.solved_at is None
        if first:
            progress.solved_at = policy.real_steps
        if first or (self._last and progress.fresh is None):
            progress.fresh = judgement.fresh
        progress.finished = self._last or (judgement.solved and self.config.evaluation.stop)
        progress.measured |= judgement.evaluated.successes() | self.intake.take_timing().metrics()
        progress.done["evaluation"] = self._learned
        progress.evaluations += 1
        progress.turn = progress.evaluations
        if progress.finished:  # what is saved is what was evaluated
            self.newest.policy = policy
        measured = self.status_log.measured(self.status())
        self._try(lambda: self.account.write_row(judgement.evaluated, self.intake.ended, measured))
        self._try(lambda: self.account.keep_best(judgement.evaluated, lambda: self.newest.acts(policy, self.replay)))
        self.intake.ended = []

    def _try(self, write: Any) -> None:
        """What cannot be written now is written later: everything is still here."""
        try:
            write()
        except (CheckpointError, OSError) as error:
            self.listener.note(f"{' '.join(str(error).split())}; the run goes on and tries again")
        self._saved = time.monotonic()

    def status(self) -> Status:
        progress, asked, lags = self.progress, self.crew.asked, self.intake.lags
        return Status(
            progress.real_steps, progress.done.get("fit", 0), progress.updates, progress.evaluations, self.newest.model.version,
            self.newest.policy.version, float(np.mean(lags)) if lags else 0.0, self.intake.lanes.waiting, len(self.collectors),
            sum(asked(name) > 0 for name in self.collectors), asked(MODEL) > 0, asked(AGENT) > 0, asked(EVALUATOR) > 0,
        )  # fmt: skip

    # ---- stopping

    def ask_to_stop(self, signal_name: str) -> None:
        self._stop = True
        self.listener.note(f"{signal_name}: taking in what is under way, then saving a checkpoint")

    def save(self) -> None:
        """Everything that decides how the run goes on. Raises as `Account.save`."""
        positions, where = self.intake.save()
        where |= {"starts": self.starts, "model": self.newest.model.version}
        arrays = self.newest.state(self.replay)
        if self.learner is not None:
            restore_outside(self.learner, arrays)
            self.learner.write(self.directory)
        self.account.save(arrays, self.replay, positions, where, self._compiling - self._counted)
        self._counted = self._compiling
        self._saved = time.monotonic()

    def close(self) -> None:
        self.crew.close()
        self.account.close()
