"""The parts of a parallel run, each in a process of its own: the same verbs on the same records, whoever calls them.

What they are given and give back are NumPy arrays by tree path, as in a checkpoint, and plain data. A part that is lost is made
anew from what the driver holds.
"""

import os
import time
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spikedream.algorithm import Algorithm, PolicyState, TrainState
from spikedream.config import Config
from spikedream.envs.host import REPORT
from spikedream.envs.registration import register
from spikedream.processes import Parallel
from spikedream.runners.account import held_outside, restore_outside
from spikedream.runners.cache import use_compilation_cache
from spikedream.runners.lanes import Handover, Request, joined, no_rows
from spikedream.runners.states import Arrays, Ranks, blank, ranked, remembered, state_of
from spikedream.runs import checkpoint, outcome
from spikedream.runs.collect import Acting, Collector, environments_of
from spikedream.runs.evaluate import Evaluated, Evaluator
from spikedream.runs.metrics import fetched
from spikedream.snn.product import Precision
from spikedream.spec import Spec
from spikedream.types import Transition


@dataclass(frozen=True)
class Task:
    """What every part must know of the run."""

    config: Config
    spec: Spec
    environment: bytes  # pickled registration, for an id that the user's own script has registered
    precision: Precision = "float32"
    threads: int = 1  # of products
    accelerated: bool = False  # whether it may use an accelerator

    def begin(self) -> Algorithm:
        """In the part's own process, before it computes anything."""
        os.environ.setdefault("NPROC", str(self.threads))
        os.environ.setdefault("OMP_NUM_THREADS", str(self.threads))
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share an accelerator
        if not self.accelerated:
            jax.config.update("jax_platforms", "cpu")
        use_compilation_cache()
        register(self.config.env, self.environment)
        return self.config.algorithm(self.spec, self.precision)


def policy_template(algorithm: Algorithm) -> Any:
    return jax.eval_shape(lambda key: algorithm.policy(algorithm.init(key)), jax.random.key(0))


class Seat(NamedTuple):
    """Which collector one is."""

    number: int
    start: int  # how many parts had been started before: no two play the same episodes


class Collecting:
    """A collector: its own environments, and the newest policy that it was given."""

    def __init__(self, task: Task, seat: Seat):
        self.algorithm = replace(task.begin(), environments=task.config.collect.environments)
        self._template = policy_template(self.algorithm)
        own = np.random.SeedSequence([task.config.seed, *seat]).generate_state(2)
        config = replace(task.config, seed=int(own[0] >> 1))
        self.collector = Collector(config, self.algorithm, environments_of(config))
        self._key, self._salt = jax.random.key(int(own[1])), 0
        self._acting: Acting | None = None
        self._policy: PolicyState | None = None
        self._version = -1
        self._compile()

    def _compile(self) -> None:
        """Before it is asked for steps, which have a time limit."""
        algorithm, number = self.algorithm, self.algorithm.environments
        policy = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self._template)
        carry = algorithm.start(policy, number)
        carry = algorithm.restart(policy, carry, np.ones(number, bool))
        jax.block_until_ready(algorithm.act(policy, carry, np.zeros_like(self.collector.environments.obs), self._key, False))

    def ready(self) -> None:
        """Answers once it has begun."""

    def collect(self, policy: Arrays | None, version: int, request: Request) -> Handover:
        """Some steps in all environments, by a policy whose version is told; None where it is the one before. Those that finish an
        episode may be none."""
        rows, random, episodes = request.rows, request.random, request.episodes
        begun, collector = time.perf_counter(), self.collector
        if policy is not None:
            self._policy = checkpoint.unflatten(self._template, "policy", policy)
            self._version = version
        if self._policy is None or version != self._version:
            raise ValueError(f"asked to act by policy {version}, given {self._version}")
        if self._acting is None:
            self._acting = Acting(self.algorithm.start(self._policy, self.algorithm.environments), self._key)
        begins = np.array([position.obs is None for position in collector.positions])
        taken = 0
        while len(collector.pending) < rows and not (request.finish and collector.between_episodes):
            if random:
                self._acting, more = collector.explore(self._acting, self._policy, self._salt)
                self._salt += 1
            else:
                self._acting, more = collector.act(self._acting, self._policy)
            taken += more
            if time.perf_counter() - begun >= request.seconds or (episodes is not None and len(collector.ended) >= episodes):
                break
        steps = joined(collector.pending) if collector.pending else no_rows(self.algorithm.spec, self.algorithm.environments)
        ended = tuple(collector.ended)
        collector.pending.clear()
        collector.ended.clear()
        timing, between, seconds = collector.take_timing(), collector.between_episodes, time.perf_counter() - begun
        return Handover(request.serial, steps, begins, taken, ended, version, seconds, timing, between)


class Begun(NamedTuple):
    """Where a trainer begins."""

    arrays: Arrays  # the training state without what was experienced
    rows: np.ndarray  # what was experienced, as `rows_of` gives it


class ModelVersion(NamedTuple):
    """A version of the world model, the scales of experience and the bonus."""

    version: int
    arrays: Arrays  # empty where the agent knows it from the beginning
    ranks: Ranks | None = None  # where a fit measures them


class Replica:
    """What both trainers hold: a copy of the training state, which takes in the experience and the leaves that it is given."""

    def __init__(self, algorithm: Algorithm):
        self.algorithm = algorithm
        self.template: TrainState = jax.eval_shape(algorithm.init, jax.random.key(0))
        self.state = self.template  # until it begins

    def begin(self, begun: Begun | None) -> None:
        if begun is not None:
            self.state = state_of(self.algorithm, *begun)

    def remember(self, steps: Transition | None, before: int) -> None:
        """Take in `steps`, fields (rows, environments, ...), the first of which is number `before` of all that were ever added;
        what is known already is not taken in twice."""
        if steps is not None:
            known = int(self.state.replay.added) - before
            if known < 0:
                raise ValueError(f"rows from number {before} on, but only {before + known} are known: some are missing")
            rest = jax.tree.map(lambda x: x[known:], steps)
            self.state = replace(self.state, replay=remembered(self.algorithm, self.state.replay, rest))

    def rank(self, ranks: Ranks | None) -> None:
        """Draw by what a fit has measured."""
        self.state = replace(self.state, replay=ranked(self.state.replay, ranks))

    def take_over(self, arrays: Arrays) -> None:
        """Leaves of the state that another part has learned."""
        held = replace(self.state, replay=replace(self.state.replay, data=None))
        state = checkpoint.unflatten(held, "state", checkpoint.flatten(held, "state") | arrays)
        self.state = replace(state, replay=replace(state.replay, data=self.state.replay.data))


class Learned(NamedTuple):
    """What a trainer brings."""

    arrays: Arrays  # leaves of the training state
    metrics: dict[str, float | None]
    number: int  # gradient steps of a fit; blocks of agent updates
    seconds: float
    compiling: float  # seconds that its program took to compile
    policy: Arrays | None = None
    ranks: Ranks | None = None


FITTED = ("world", "bonus")  # fields of the training state


class Modelling:
    """The trainer of the world model."""

    def __init__(self, task: Task):
        self.replica = Replica(task.begin())
        updates, start = jax.ShapeDtypeStruct((), np.int32), time.perf_counter()
        self._fit = Algorithm.fit.lower(self.replica.algorithm, self.replica.template, updates).compile()
        self._compiling = time.perf_counter() - start

    def ready(self) -> None:
        """Answers once it has begun."""

    def fit(self, begun: Begun | None, steps: Transition | None, before: int, agent: Arrays | None, updates: int) -> Learned:
        """See `Replica` and `Algorithm.fit`; `agent` is whose errors are to be measured, None where none are."""
        start, replica = time.perf_counter(), self.replica
        replica.begin(begun)
        replica.remember(steps, before)
        if agent is not None:
            replica.take_over(agent)
        replica.state, metrics = self._fit(replica.state, np.int32(updates))
        state = replica.state
        arrays = {k: v for name in FITTED for k, v in checkpoint.flatten(getattr(state, name), f"state.{name}").items()}
        arrays |= checkpoint.flatten(state.replay.normalizer, "state.replay.normalizer")
        arrays |= checkpoint.flatten(state.keys.fit, "state.keys.fit")
        ranks = None
        if replica.algorithm.buffer.measured_in_fit:
            ranks = Ranks(checkpoint.flatten(state.replay.priority, "priority"), int(state.replay.added))
        return Learned(arrays, fetched(metrics), updates, time.perf_counter() - start, self._compiling, ranks=ranks)


class Dreaming:
    """The trainer of the agent."""

    def __init__(self, task: Task):
        self.replica, start = Replica(task.begin()), time.perf_counter()
        algorithm, template = self.replica.algorithm, self.replica.template
        self._outside = algorithm.host_learner(blank(template))  # goes on from what the driver holds as soon as it begins
        if self._outside is None:
            self._dream = Algorithm.dream.lower(algorithm, template).compile()
        self._compiling = time.perf_counter() - start

    def ready(self) -> None:
        """Answers once it has begun."""

    def dream(
        self, begun: Begun | None, steps: Transition | None, before: int, model: ModelVersion | None, blocks: int, seconds: float
    ) -> Learned:
        """See `Replica` and `Algorithm.dream`.

        Args:
            begun: of `Replica.begin`.
            steps, before: of `Replica.remember`.
            model: a world model in which to dream from now on, as `Modelling.fit` gives it; None where it is the one before.
            blocks: of agent updates, at most.
            seconds: after which it brings what it has.
        """
        start, replica = time.perf_counter(), self.replica
        replica.begin(begun)
        if begun is not None:
            restore_outside(self._outside, begun.arrays)
        replica.remember(steps, before)
        if model is not None:
            replica.take_over(model.arrays)
            replica.rank(model.ranks)
        metrics, done = {}, 0
        while done < blocks and (not done or time.perf_counter() - start < seconds):
            replica.state, metrics = self._improved(replica.state)
            jax.block_until_ready(replica.state.counters)
            done += 1
        state = replica.state
        arrays = checkpoint.flatten(state.agent, "state.agent") | checkpoint.flatten(state.counters, "state.counters")
        arrays |= checkpoint.flatten(state.keys.dream, "state.keys.dream") | held_outside(self._outside)
        policy = checkpoint.flatten(replica.algorithm.policy(state), "policy")
        return Learned(arrays, fetched(metrics), done, time.perf_counter() - start, self._compiling, policy)

    def _improved(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        if self._outside is None:
            return self._dream(state)
        return self.replica.algorithm.dream_on_host(self._outside, state)


class Judgement(NamedTuple):
    """What an evaluator brings."""

    evaluated: Evaluated
    solved: bool
    fresh: tuple[float, float] | None  # on episodes that nothing else has used, where it was asked for


class Evaluating:
    """The evaluator."""

    def __init__(self, task: Task):
        self.algorithm = task.begin()
        self._template = policy_template(self.algorithm)
        runner = task.config.runner
        limit = runner.step_seconds if isinstance(runner, Parallel) else None
        self._evaluator = Evaluator(task.config, task.config.evaluation.episodes, step_seconds=limit)

    def ready(self) -> None:
        """Answers once it has begun."""

    def evaluate(
        self, policy: Arrays, key: np.ndarray, threshold: float | None, confirmations: int, number: int, fresh: bool
    ) -> Judgement:
        """Greedy episodes of a policy, confirmed where they reach the threshold.

        Args:
            policy: by its tree paths.
            key: its raw data; what a policy draws follows from it.
            threshold, confirmations: of `outcome.judge`.
            number: of the evaluation; it decides the seeds.
            fresh: whether to play the episodes of the result in any case; otherwise only where it is solved.
        """
        acting = checkpoint.unflatten(self._template, "policy", policy)

        def play(stream: int, *index: int) -> Evaluated:
            return self._evaluator(self.algorithm, acting, jax.random.wrap_key_data(jnp.array(key)), stream, *index)

        verdict = outcome.judge(threshold, confirmations, play, number)
        last = play(REPORT, 0) if fresh or verdict.solved else None
        return Judgement(verdict.evaluated, verdict.solved, None if last is None else (last.mean(), last.std()))
