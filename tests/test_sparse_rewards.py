"""When rewards are sparse, and what is drawn more often then."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS
from test_automatic import KEY, rows

from spikedream import config as configuration
from spikedream.replay.spread import sparse


@pytest.mark.parametrize(
    ("reward", "few"),
    [
        (lambda o, a: jnp.zeros(len(o)).at[7].set(1.0), True),  # one goal
        (lambda o, a: -0.1 * jnp.square(a[:, 0]), True),
        (lambda o, a: jnp.full(len(o), -1.0), True),
        (lambda o, a: jnp.zeros(len(o)), True),
        (lambda o, a: -jnp.abs(o[:, 0]) - 0.1 * jnp.square(a[:, 0]), False),
        (lambda o, a: jnp.cos(o[:, 0]), False),
    ],
)
def test_rewards_are_sparse_where_few_or_none_tell_of_the_state(reward, few):
    counts = jnp.ones(200).at[9].set(0.0)
    steps = rows(reward)
    steps = steps._replace(reward=steps.reward.at[9].set(1e6))  # does not count
    assert bool(sparse(steps, counts)) == few


def test_priorities_count_while_rewards_are_sparse():
    def weights(priority_while, reward):
        config = configuration.merge(
            configuration.named("debug"), {"replay": {"priority": "td_error", "priority_while": priority_while}}
        )
        algorithm = config.algorithm(CONTINUOUS)
        state = algorithm.init(KEY)
        steps = jax.tree.map(lambda x: x[:, None], rows(reward))
        after, metrics = algorithm.fit(replace(state, replay=algorithm.remember(state.replay, steps, np.int32(200))), np.int32(1))
        replay = algorithm.remember(after.replay, steps, np.int32(3))  # what comes later is in the next fit by its priority, too
        return np.unique(np.asarray(replay.priority.tree.weight(jnp.arange(203)))), metrics

    even, goal = (lambda o, a: jnp.cos(o[:, 0])), (lambda o, a: jnp.zeros(len(o)).at[7].set(1.0))
    assert len(weights("sparse", even)[0]) == 1 and len(weights("sparse", goal)[0]) > 100
    found, metrics = weights("always", even)
    assert len(found) > 100 and "sparse" not in metrics
