"""The loop in one process: collect, fit, dream, evaluate, each by its own clock, until the environment is solved or the budget is
spent."""

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spikedream.algorithm import Algorithm, PolicyState, TrainState
from spikedream.config import Config, ConfigError
from spikedream.envs.host import CONFIRM, REPORT
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.replay.spread import repeat_for
from spikedream.runners.account import Account, Progress, held_outside, restore_outside
from spikedream.runners.clock import CompileClock, due
from spikedream.runners.inherit import inherit
from spikedream.runners.stop import Interrupted, stopping
from spikedream.runs import checkpoint, outcome
from spikedream.runs.collect import LARGEST_BLOCK, PROBE, Acting, Collector, cycle_of, environments_of
from spikedream.runs.doubts import tell_doubts
from spikedream.runs.evaluate import Evaluated, Evaluator
from spikedream.runs.memory import check_memory
from spikedream.runs.metrics import Listener, check_wandb
from spikedream.runs.rollout_worker import RolloutWorker
from spikedream.runs.run import Run
from spikedream.snn.product import fastest
from spikedream.types import Metrics, Transition
from spikedream.world import HostLearner


class Programs:
    """The two long verbs, compiled in other threads while the first episodes are played.

    Args:
        algorithm: whose verbs they are.
        state: of the shapes that they will meet.
        clock: is told how long the run had to wait for them.
        learner: dreams in place of a compiled program, where there is one.
    """

    def __init__(self, algorithm: Algorithm, state: TrainState, clock: CompileClock, learner: HostLearner | None = None):
        self._algorithm, self._learner = algorithm, learner
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        updates, self._clock = jax.ShapeDtypeStruct((), np.int32), clock
        pool = ThreadPoolExecutor(2)
        if learner is None:
            self._dream: Future = pool.submit(lambda: Algorithm.dream.lower(algorithm, shapes).compile())
        self._fit: Future = pool.submit(lambda: Algorithm.fit.lower(algorithm, shapes, updates).compile())
        pool.shutdown(wait=False)

    def wait(self) -> None:
        """Until both are compiled."""
        for program in (self._fit, self._dream):
            self._clock.wait(program)

    def fit(self, state: TrainState, updates: int) -> tuple[TrainState, Metrics]:
        return self._clock.wait(self._fit)(state, np.int32(updates))

    def dream(self, state: TrainState) -> tuple[TrainState, Metrics]:
        if self._learner is not None:
            return self._algorithm.dream_on_host(self._learner, state)
        return self._clock.wait(self._dream)(state)


class Trainer:
    """One run in its directory.

    Args:
        config: what to do.
        directory: where it leaves its files; made if absent.
        listener: told how it goes.
        resume: go on from the newest checkpoint in `directory`.
        alone: compile its own programs; False where whoever drives it has programs for several runs at once.
        apart: play the environments in another process.
        seeds: that are trained side by side, this one among them, and share the memory.

    Raises:
        BrokenEnvironment, CheckpointError: as their texts say.
        ImportError: the agent needs a library that is not installed.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        listener: Listener,
        resume: bool = False,
        alone: bool = True,
        apart: bool = False,
        seeds: int = 1,
    ):
        config.check()
        if config.action_repeat is None and config.start_from is not None:  # what it knows is of steps of this length
            config = replace(config, action_repeat=Run(config.start_from).config.repeat)
        if config.realtime is not None and config.collect.environments > 1:
            raise ValueError(
                f"collect.environments is {config.collect.environments}; where acting and learning take turns, real time has one:"
                " others would go on while it learns"
            )
        if config.logging.wandb is not None:
            check_wandb()
        self.config, self.directory, self.listener = config, directory, listener
        self.account = Account(config, directory, listener)
        self._stop = False  # as soon as it is safe
        self._doubted = False  # whether it was asked what the first steps give reason to doubt
        self.clock = CompileClock()
        saved = checkpoint.load(directory / "checkpoints") if resume else None
        player = RolloutWorker(config) if apart else environments_of(config)
        if config.precision == "fastest":  # a resumed run goes on as it began, wherever it is
            self.progress.precision = fastest() if saved is None else saved.counters.get("precision", "float32")
        self.algorithm = config.algorithm(player.spec, self.progress.precision)
        check_memory(self.algorithm, seeds)
        self.collector = player if isinstance(player, RolloutWorker) else Collector(config, self.algorithm, player)
        self.state: TrainState = self.algorithm.init(jax.random.key(config.seed))
        self.learner = self.algorithm.host_learner(self.state)
        if not resume and config.action_repeat is None:
            self._measure_repeat()
        if not resume:  # before the compilations begin: what is wrong is told at once, and nothing is left behind
            if config.start_from is not None:
                earlier = Run(config.start_from)
                self.state, steps = inherit(earlier, config, self.algorithm, self.state, self.learner)
                self.progress.inherited_steps = steps
            outcome.begin(self.config, directory)
        self.programs = Programs(self.algorithm, self.state, self.clock, self.learner) if alone else None
        worker = isinstance(player, RolloutWorker)
        # Of several runs in one program none may stop between two verbs that all of them go through together.
        heed = self._heed_stop if alone else lambda: None
        self.evaluator = player if worker else Evaluator(self.config, config.evaluation.episodes, heed)
        self.held: Callable[[], Transition] | None = None  # tells what is in the replay, where whoever drives several runs holds it
        if saved is not None:
            self._restore(*saved)
        self.account.open()

    @property
    def progress(self) -> Progress:
        return self.account.progress

    def train(self) -> None:
        """Go on until solved or out of budget.

        Raises:
            Interrupted: after SIGINT or SIGTERM; a checkpoint was written.
            Diverged, BrokenEnvironment: the newest good checkpoint is still there.
        """
        if not checkpoint.heads(self.directory / "checkpoints"):
            self.save()
        with stopping(self.ask_to_stop):
            try:
                while not self.progress.finished:
                    self.collect()
                    self.fit()
                    self.dream()
                    self.evaluate()
                    self.turn_over()
            except BrokenEnvironment:
                self._settle()  # what learns may have brought it to that: a diverged policy's actions are no numbers
                raise
        self.write_result()

    def _measure_repeat(self) -> None:
        """Begin to collect, and hold actions from then on for as long as the environment's clock suggests. Where that is more than
        one step, or nothing random was to be learned from, what was collected only counts."""
        progress, (acting, policy) = self.progress, self._to_act()
        assert isinstance(self.collector, Collector)
        while progress.real_steps < min(PROBE, self.config.budget):
            acting, taken = self.collector.explore(acting, policy, progress.real_steps)
            progress.real_steps += taken
            progress.collected += self.config.collect.environments
        pace = cycle_of(self.collector.pending)
        self.config = replace(self.config, action_repeat=repeat_for(pace))
        self.account.config = self.collector.config = self.config
        progress.measured |= {"scale/cycle": pace, "scale/action_repeat": float(self.config.repeat)}
        self.listener.note(
            f"actions are held for {self.config.repeat} of its steps: an entry of the observation goes round in about {pace:.0f}"
        )
        explores = self.config.collect.seed_steps or self.config.collect.seed_episodes
        if self.config.repeat > 1 or not explores:
            self.collector.close()
            self._doubted = True
            if given_up := tell_doubts(self.config, self.collector.pending, self.listener.note):
                raise BrokenEnvironment(given_up)
            if progress.real_steps >= self.config.budget:
                raise ConfigError(
                    f"budget is {self.config.budget}, all of which went into measuring for how many steps an action is held; set it"
                    f" above {PROBE}, or action_repeat to {self.config.repeat}"
                )
            self.collector = Collector(self.config, self.algorithm, environments_of(self.config))
            progress.collected = 0
        else:
            self._carry_on(acting)

    # ---- the four verbs

    def collect(self) -> None:
        """Whole random episodes in the first turn, then some steps with the agent's own noisy policy."""
        self.play()
        self.remember()

    def play(self) -> None:
        """The steps of `collect`, which wait in the collector."""
        progress, collect = self.progress, self.config.collect
        if progress.turn == 0 and progress.inherited_steps:
            return  # there is something to learn from already
        acting, policy = self._to_act()
        if self.config.realtime is not None:  # nothing may be compiled while the clock runs
            assert isinstance(self.collector, Collector)
            self.collector.warm_up(acting, policy)
            if self.programs is not None:
                self.programs.wait()
        explores = progress.turn == 0 and self.config.explores
        longest = collect.environments * self.config.repeat  # steps of their own that the environments take in one
        while progress.real_steps < self.config.budget:
            done, total, counted = progress.collected, self.turn_steps(), collect.environments
            if explores and collect.seed_steps is not None:
                done, total, counted = progress.real_steps, collect.seed_steps, longest
            elif explores:
                done, total, counted = self.collector.episodes, collect.seed_episodes, math.inf
                if collect.seed_limit is not None and progress.real_steps >= collect.seed_limit:
                    break
            if done >= total and (self.config.realtime is None or self.collector.between_episodes):
                break  # in real time an episode would go on while the agent learns
            self.listener.phase("collect", done, total)
            left = min((total - done) / counted, (self.config.budget - progress.real_steps) / longest)
            steps = min(self.collector.stride, max(1, math.ceil(left)))
            if explores:
                acting, taken = self.collector.explore(acting, policy, progress.real_steps, steps)
            else:
                acting, taken = self.collector.act(acting, policy, steps)
            if self.algorithm.agent.online:
                acting, policy = self.learn(acting)
            progress.real_steps += taken
            progress.collected += steps * collect.environments
            if self._stop:
                self._carry_on(acting)
                self._heed_stop()
        self._carry_on(acting)
        progress.share = 1.0 if progress.turn == 0 else min(1.0, progress.collected / self.turn_steps())
        if progress.turn == 0 and not self._doubted:
            self._doubted = True
            if given_up := tell_doubts(self.config, self.collector.pending, self.listener.note):
                self.save()
                raise BrokenEnvironment(given_up)

    def turn_steps(self) -> int:
        """Of the agent's own, that this turn collects."""
        collect = self.config.collect
        if not collect.growth:
            return collect.steps
        return max(collect.steps, int(collect.growth * int(self.state.replay.added) * collect.environments))

    def _to_act(self) -> tuple[Acting, PolicyState]:
        acting = Acting(self.state.carry, self.state.keys.collect)
        return self.algorithm.to_act((acting, self.algorithm.policy(self.state)))

    def _carry_on(self, acting: Acting) -> None:
        acting = self.algorithm.to_learn(acting)
        self.state = replace(self.state, carry=acting.carry, keys=replace(self.state.keys, collect=acting.key))

    def learn(self, acting: Acting) -> tuple[Acting, PolicyState]:
        """An online agent, from the step that it has just taken."""
        self._carry_on(acting)
        self.state, metrics = self.algorithm.learn(self.state, self.collector.fetch(1)[0])
        self.account.metrics |= metrics
        return self._to_act()

    def remember(self) -> None:
        while self.collector.pending:
            steps, number = self.collector.fetch(min(LARGEST_BLOCK, self.state.replay.rows))
            replay = self.algorithm.remember(self.state.replay, steps, np.int32(number))
            self.state = replace(self.state, replay=replay)

    def fit(self) -> None:
        assert self.programs is not None
        updates = self.fit_due()
        if updates:
            self.after_fit(*self.programs.fit(self.state, updates))
        self._heed_stop()

    def fit_due(self) -> int:
        """Gradient steps of the fit that this turn still has to make; 0 where it has none."""
        progress, config, last = self.progress, self.config, self.progress.done.get("fit")
        taken_over = progress.turn == 0 and config.start_with == "everything"
        if progress.fitted or taken_over or not due(config.fit.every, last, progress.real_steps):
            return 0
        self.listener.phase("fit", 0, 1)
        return config.world_model.updates if last is None or config.fit.then is None else config.fit.then

    def after_fit(self, state: TrainState, metrics: Metrics) -> None:
        self.state = state
        self.account.metrics |= metrics
        self.progress.fitted, self.progress.done["fit"] = True, self.progress.real_steps

    def dream(self) -> None:
        assert self.programs is not None
        while self.blocks_due() > 0:
            self.after_dream(*self.programs.dream(self.state))
            self._heed_stop()

    def after_dream(self, state: TrainState, metrics: Metrics) -> None:
        progress, self.state = self.progress, state
        self.account.metrics |= metrics
        progress.blocks += 1
        progress.later_blocks += progress.turn > 0

    def blocks_due(self) -> int:
        """Of agent updates, that this turn still has to make."""
        progress, improve = self.progress, self.config.improve
        if progress.turn > 0 and improve.ratio is not None:
            steps = progress.real_steps - progress.first_turn
            left = int(improve.ratio * steps / improve.block + 1e-9) - progress.later_blocks
        else:
            updates = improve.first if progress.turn == 0 else improve.then * progress.share
            left = math.ceil(updates / improve.block) - progress.blocks
        if left > 0:
            self.listener.phase("dream", progress.blocks, progress.blocks + left)
        return left

    def evaluate(self) -> None:
        """Greedy episodes; when they and all confirmations reach the threshold, the run is solved."""
        progress = self.progress
        spent = progress.real_steps >= self.config.budget
        if not spent and not due(self.config.evaluation.every, progress.done.get("evaluation"), progress.real_steps):
            return
        self.listener.phase("evaluate", 0, 1)
        evaluation, unsolved = self.config.evaluation, progress.solved_at is None
        confirmations = evaluation.confirmations if unsolved else 0
        verdict = outcome.judge(self.account.threshold, confirmations, self._play, progress.evaluations)
        if verdict.solved and unsolved:
            progress.fresh = self._fresh()  # first: it may be asked to stop meanwhile, and is then to find itself unsolved
            progress.solved_at = progress.real_steps
        progress.finished = spent or (verdict.solved and evaluation.stop)
        progress.measured |= verdict.evaluated.successes() | self.collector.take_timing().metrics()
        progress.done["evaluation"] = progress.real_steps
        progress.evaluations += 1
        self._settle()
        self.account.write_row(verdict.evaluated, self.collector.ended)
        self.account.keep_best(verdict.evaluated, self._arrays)
        self.collector.ended.clear()

    def _play(self, stream: int, *index: int) -> Evaluated:
        """As `runs.outcome` asks for it."""
        if stream == CONFIRM:
            self.listener.phase("confirm", index[-1], self.config.evaluation.confirmations)
        policy, key = self.algorithm.to_act((self.algorithm.policy(self.state), self.state.keys.evaluate))
        return self.evaluator(self.algorithm, policy, key, stream, *index)

    def _fresh(self) -> tuple[float, float]:
        fresh = self._play(REPORT, 0)
        return fresh.mean(), fresh.std()

    def turn_over(self) -> None:
        """The turn is through; what is saved from now on belongs to the next."""
        progress = self.progress
        if progress.turn == 0:
            progress.first_turn = progress.real_steps
        progress.turn += 1
        progress.collected, progress.fitted, progress.blocks = 0, False, 0
        self.listener.progress(progress.real_steps, self.config.budget)
        if progress.finished or due(self.config.checkpoint.every, progress.done.get("checkpoint"), progress.real_steps):
            self.save()

    def _settle(self) -> None:
        self.account.settle(self.state.counters.imagined_steps, self.state.counters.updates)

    # ---- stopping and resuming

    def ask_to_stop(self, signal_name: str) -> None:
        self._stop = True
        self.listener.note(f"{signal_name}: finishing this step, then saving a checkpoint")

    def _heed_stop(self) -> None:
        if self._stop:
            self.save()
            raise Interrupted(f"stopped at {self.progress.real_steps} real steps; go on with: spikedream resume {self.directory}")

    def save(self) -> None:
        """Everything that decides how the run goes on.

        Raises:
            Diverged: something is no longer a number; the checkpoint before is untouched.
            CheckpointError: it cannot be written; the one before it is untouched.
        """
        replay = self.state.replay
        replay = replace(replay, data=self.held()) if self.held else replay
        self._settle()
        arrays = self._arrays() | held_outside(self.learner)
        if self.learner is not None:
            self.learner.write(self.directory)
        self.account.save(arrays, replay, *self.collector.save(), self.clock.seconds)
        self.clock.seconds = 0.0

    def _arrays(self) -> dict[str, np.ndarray]:
        """The training state without what was experienced."""
        return checkpoint.flatten(replace(self.state, replay=replace(self.state.replay, data=None)), "state")

    def _restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> None:
        where, extent = self.account.restore(counters)
        state = checkpoint.unflatten(replace(self.state, replay=replace(self.state.replay, data=None)), "state", arrays)
        replay = self.account.log.load(extent, replace(state.replay, data=self.state.replay.data))
        self.state = replace(state, replay=replay)
        restore_outside(self.learner, arrays)
        same = self.collector.restore(arrays, where)
        if not same.all():
            self.listener.note(f"{self.config.env} is not deterministic: the episode under way is given up for a fresh one")
            if not self.collector.pending:
                self.state = replace(self.state, replay=replay.cut(jnp.asarray(~same)))
                self.account.log.begin_anew()

    def write_result(self) -> None:
        fresh = self.progress.fresh
        last = self._fresh() if fresh is None or not self.config.evaluation.stop else fresh
        self.account.write_result(fresh or last, last)

    def close(self) -> None:
        for part in (self.account, self.evaluator, self.collector, self.clock):
            part.close()
