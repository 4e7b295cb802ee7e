"""A run that plays in a process of its own plays as it would here, and says so where that process is gone."""

import os
import signal
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runners import config

from spikedream.envs.host import EVALUATE
from spikedream.envs.spaces import BrokenEnvironment
from spikedream.runs.collect import Acting, Collector, environments_of
from spikedream.runs.evaluate import Evaluator
from spikedream.runs.rollout_worker import RolloutWorker, _received, _sent
from spikedream.types import PyTree


def alike(a: PyTree, b: PyTree) -> bool:
    """Up to rounding."""
    return all(np.allclose(x, y, rtol=1e-5) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_it_plays_evaluates_and_goes_on_as_here() -> None:
    settings = config(collect={"environments": 2})
    here = environments_of(settings)
    algorithm = settings.algorithm(here.spec, "float32")
    state, collector, worker = algorithm.init(jax.random.key(0)), Collector(settings, algorithm, here), RolloutWorker(settings)
    policy, acting = algorithm.policy(state), Acting(state.carry, state.keys.collect)
    assert worker.spec == here.spec

    def both(verb: str, acting: Acting, *arguments: Any) -> Acting:
        (after, taken), (there, also) = (getattr(x, verb)(acting, policy, *arguments) for x in (collector, worker))
        assert alike(jax.random.key_data(after.key), jax.random.key_data(there.key)) and alike(after.carry, there.carry)
        assert (taken, collector.episodes, collector.between_episodes) == (also, worker.episodes, worker.between_episodes)
        return there

    acting = both("act", both("explore", acting, 7, 30), 5)
    assert len(worker.pending) == 35 and alike(worker.pending, collector.pending) and worker.ended == collector.ended != []
    (arrays, counters), (other, also) = collector.save(), worker.save()
    assert counters == also and arrays.keys() == other.keys() and alike(arrays, other)
    assert worker.restore(arrays, counters).all() and alike(worker.pending, collector.pending)
    assert alike(worker.fetch(16), collector.fetch(16)) and len(worker.pending) == 19
    both("act", acting, 3)
    assert alike(worker.pending, collector.pending)
    evaluated = Evaluator(settings, settings.evaluation.episodes)(algorithm, policy, state.keys.evaluate, EVALUATE, 1)
    there = worker(algorithm, policy, state.keys.evaluate, EVALUATE, 1)
    assert alike(evaluated.returns, there.returns) and alike(evaluated.lengths, there.lengths)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(BrokenEnvironment, match=r"CartPole-v1: the process that plays it died \(SIGKILL\)"):
        worker.act(acting, policy)
    worker.close()
    collector.close()


def test_what_it_cannot_play_is_said_as_here() -> None:
    with pytest.raises(BrokenEnvironment, match="cannot be made with"):
        RolloutWorker(config(env_kwargs={"nothing_of_the_kind": 1}))


def test_what_cannot_be_copied_to_it_is_said_before_it_begins() -> None:
    with pytest.raises(BrokenEnvironment, match=r"CartPole-v1 cannot be copied to another process .*as module:Id-v0"):
        RolloutWorker(config(env_kwargs={"render_mode": threading.Lock()}))


def test_the_keys_it_is_sent_are_keys_again() -> None:
    tree = (jax.random.key(3), jnp.arange(4.0))
    key, numbers = _received(jax.eval_shape(lambda: tree), _sent(tree))
    assert alike(jax.random.uniform(key), jax.random.uniform(tree[0])) and alike(numbers, tree[1])
