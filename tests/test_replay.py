"""Experience: its normaliser and running moments, its ring for environments side by side, its priorities and sequences."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import DISCRETE, filled, holding, same

from spikedream.replay.normalizer import identity, no_moments
from spikedream.replay.ring import ReplayBuffer
from spikedream.replay.sum_tree import empty_tree
from spikedream.types import Transition

KEY = jax.random.key(0)


def steps_of(obs, reward, next_obs=None, terminated=0.0):
    """Transitions with these fields, (rows, environments, ...)."""
    obs, reward = jnp.asarray(obs), jnp.asarray(reward)
    nothing = jnp.zeros(reward.shape)
    following = obs if next_obs is None else jnp.asarray(next_obs)
    return Transition(obs, nothing[..., None], reward, following, nothing + terminated, nothing, nothing)


@jax.jit
def _moments(moments, steps, valid):
    return moments.add(steps, valid)


def measured(obs, reward, valid, reward_floor=0.0):
    """The normaliser of `obs` (rows, size) and `reward` (rows,) where `valid`, of one environment."""
    obs, reward, valid = (jnp.asarray(x)[:, None] for x in (obs, reward, valid))
    return _moments(no_moments(obs.shape[-1]), steps_of(obs, reward), valid).normalizer(reward_floor)


@jax.jit
def _added(replay, step):
    """With one step more of each environment, fields (environments, ...)."""
    return replay.add(jax.tree.map(lambda x: jnp.asarray(x)[None], step), jnp.asarray(1))


def added(replay, step):
    """With one step more of one environment."""
    return _added(replay, jax.tree.map(lambda x: x[None], step))


# ---- the normaliser


def test_normalizer_measures_valid_rows_like_numpy():
    rng = np.random.default_rng(0)
    obs, reward = rng.normal(3, 2, (50, 3)).astype(np.float32), rng.uniform(-4, 2, 50).astype(np.float32)
    valid = (np.arange(50) < 30).astype(np.float32)
    found = measured(obs, reward, valid)
    np.testing.assert_allclose(found.mean, obs[:30].mean(0), rtol=1e-4)
    np.testing.assert_allclose(found.scale, obs[:30].std(0), rtol=1e-4)
    largest = np.abs(reward[:30]).max()
    assert float(found.reward_scale) == pytest.approx(largest)
    assert float(found.reward_low) == pytest.approx(reward[:30].min() / largest)
    assert float(found.reward_high) == pytest.approx(reward[:30].max() / largest)
    assert max(abs(float(found.reward_low)), abs(float(found.reward_high))) == pytest.approx(1)


def test_reward_scale_is_no_smaller_than_the_largest_bonus():
    obs, reward, valid = jnp.ones((3, 1)), jnp.array([-0.1, -0.05, 0.0]), jnp.ones(3)
    assert float(measured(obs, reward, valid).reward_scale) == pytest.approx(0.1)
    low = measured(obs, reward, valid, reward_floor=0.5)
    assert float(low.reward_scale) == 0.5 and float(low.reward_low) == pytest.approx(-0.2)
    assert float(measured(obs, reward * 100, valid, reward_floor=0.5).reward_scale) == pytest.approx(10.0)


def test_normalizer_obs_and_raw_obs_are_inverse_over_leading_axes():
    obs = jax.random.normal(KEY, (4, 5, 3)) * 7 + 2
    found = measured(obs.reshape(-1, 3), jnp.ones(20), jnp.ones(20))
    normalised = found.obs(obs)
    np.testing.assert_allclose(normalised.reshape(-1, 3).mean(0), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(normalised.reshape(-1, 3).std(0), np.ones(3), rtol=1e-4)
    np.testing.assert_allclose(found.raw_obs(normalised), obs, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.obs(obs[0, 0]), normalised[0, 0], rtol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 1.0, -0.3, 1234.567, 1e6 + 0.5])
def test_a_column_that_never_changed_is_centred_and_left_unscaled(constant):
    obs = jnp.stack([jnp.full(1000, constant), jnp.linspace(0, 1, 1000)], axis=1)
    found = measured(obs, jnp.zeros(1000), jnp.ones(1000))
    assert float(found.scale[0]) == 1.0
    np.testing.assert_allclose(found.obs(obs)[:, 0], 0, atol=1e-6 * max(1, abs(constant)))
    assert float(found.reward_scale) == 1.0  # no reward seen either


def test_identity_normalizer_changes_nothing():
    obs = jnp.array([3.0, -2.0])
    assert same(identity(2).obs(obs), obs) and same(identity(2).raw_obs(obs), obs)


def step_number(i):
    obs = np.full(4, i, np.float32)
    action = np.eye(2, dtype=np.float32)[i % 2]
    return Transition(obs, action, np.float32(i), obs + 1, np.float32(i % 3 == 0), np.float32(0), np.float32(-i))


def test_replay_overwrites_the_oldest_and_counts_everything():
    replay = ReplayBuffer(5).init(DISCRETE)
    assert int(replay.size) == 0 and replay.capacity == 5
    for i in range(8):
        replay = added(replay, step_number(i))
        assert int(replay.count) == i + 1 and int(replay.size) == min(i + 1, 5)
    assert replay.data.reward[:, 0].tolist() == [5, 6, 7, 3, 4]
    assert replay.data.obs[:, 0, 0].tolist() == [5, 6, 7, 3, 4]
    assert replay.data.next_obs[:, 0, 3].tolist() == [6, 7, 8, 4, 5]
    assert replay.data.terminated[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert replay.data.log_prob[:, 0].tolist() == [-5, -6, -7, -3, -4]


def test_replay_samples_only_rows_that_were_filled_and_all_of_them():
    steps = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *(step_number(i + 1) for i in range(3)))
    replay = eqx.tree_at(lambda r: r.normalizer, holding(DISCRETE, steps, 50), identity(4))
    drawn = replay.sample(KEY, (40, 10))
    assert drawn.obs.shape == (40, 10, 4) and drawn.reward.shape == (40, 10)
    assert set(np.unique(drawn.reward)) == {1.0, 2.0, 3.0}
    # The fields of a row stay together.
    np.testing.assert_array_equal(drawn.obs[..., 0], drawn.reward)
    np.testing.assert_array_equal(drawn.next_obs[..., 0], drawn.reward + 1)


def test_replay_normalises_what_it_hands_out_and_keeps_what_it_holds():
    steps = jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *(step_number(i) for i in range(6)))
    replay = holding(DISCRETE, steps, 20)
    everything = replay.gather(jnp.arange(6))
    np.testing.assert_allclose(everything.obs[:, 0], (np.arange(6) - 2.5) / np.arange(6).std(), rtol=1e-5)
    np.testing.assert_allclose(everything.next_obs[:, 0], (np.arange(1, 7) - 2.5) / np.arange(6).std(), rtol=1e-5)
    np.testing.assert_allclose(everything.reward, np.arange(6) / 5, rtol=1e-6)
    np.testing.assert_array_equal(everything.action, steps.action)
    np.testing.assert_array_equal(replay.data.reward[:6, 0], np.arange(6))
    assert same(replay.sample(KEY, (7,)), replay.sample(KEY, (7,)))
    assert not same(replay.sample(KEY, (7,)), replay.sample(jax.random.key(1), (7,)))


def test_beginnings_are_the_steps_with_which_episodes_begin():
    replay = ReplayBuffer(5).init(DISCRETE)  # steps 0, 3, 6 ... terminate
    assert set(np.asarray(replay.beginnings(KEY, (8,))).tolist()) == {0}
    for i, begun in ((0, {0}), (1, {0, 1}), (3, {0, 1}), (4, {0, 1, 4})):
        replay = holding(DISCRETE, jax.tree.map(lambda *rows: jnp.asarray(np.stack(rows)), *map(step_number, range(i + 1))), 5)
        assert set(np.asarray(replay.beginnings(KEY, (64,))).tolist()) == begun
    for i in (5, 6):
        replay = added(replay, step_number(i))
    # Held: 5, 6, 2, 3, 4, the last of which begins an episode; what came before 2 is not known.
    assert set(np.asarray(replay.beginnings(KEY, (64,))).tolist()) == {4}
    two = ReplayBuffer(8).init(DISCRETE, 2)
    rows = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *map(step_number, range(4)))
    both = jax.tree.map(lambda x: jnp.stack([x, x], axis=1), rows)
    both = both._replace(terminated=both.terminated.at[:, 1].set(jnp.array([0.0, 1.0, 0.0, 0.0])))
    assert set(np.asarray(two.add(both, 4).beginnings(KEY, (64,))).tolist()) == {0, 1, 2, 5}


# ---- priorities

ERRORS = jnp.array([0.0, 1.0, 0.5, 2.0, 99.0])  # of five positions, of which the last is empty


@partial(jax.jit, static_argnames=("alpha", "beta", "rows"))
def prioritised(alpha=0.6, beta=0.4, errors=ERRORS, rows=4):
    buffer = ReplayBuffer(5, "model_error", alpha, beta)
    replay = buffer.init(DISCRETE).add(jax.tree.map(lambda x: x[:rows], filled(DISCRETE, 5, 5, KEY).data), jnp.asarray(rows))
    return replay.prioritise(jnp.arange(5), errors, (jnp.arange(5) < rows).astype(jnp.float32))


@jax.jit
def weights(replay):
    return replay.priority.tree.weight(jnp.arange(replay.capacity))


def test_errors_measured_elsewhere_leave_the_largest_to_what_came_since() -> None:
    buffer = ReplayBuffer(capacity=8, priority="model_error", alpha=1.0)
    rows = Transition(*(jnp.zeros((3, 2, *size)) for size in ((4,), (2,), (), (4,), (), (), ())))
    there = buffer.init(DISCRETE, 2).add(rows, 3)  # positions 0 to 5 of 8
    there = there.prioritise(jnp.arange(6), jnp.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), jnp.ones(6))
    here = buffer.init(DISCRETE, 2).add(rows, 3).add(rows, 2)  # two rows more: positions 6, 7, and 0, 1 again
    assert there.priority is not None
    weights = here.measured(there.priority, 3).tree.weight(jnp.arange(8))
    np.testing.assert_allclose(weights, np.array([6, 6, 3, 4, 5, 6, 6, 6]) + 0.06, rtol=1e-6)


def test_draws_follow_the_errors_to_the_power_of_alpha():
    replay = prioritised(alpha=0.6)
    wanted = (np.array([0.0, 1.0, 0.5, 2.0]) + 0.01 * 2.0) ** 0.6
    np.testing.assert_allclose(weights(replay), [*wanted, 0], rtol=1e-5)
    drawn = np.asarray(replay.draw(KEY, (200, 100)))
    assert drawn.shape == (200, 100)
    frequency = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    np.testing.assert_allclose(frequency, [*(wanted / wanted.sum()), 0], atol=0.01)
    sampled = replay.sample(KEY, (7,))
    assert same(sampled, replay.gather(replay.draw(KEY, (7,))))


def test_alpha_of_zero_draws_evenly():
    drawn = np.asarray(prioritised(alpha=0.0).draw(KEY, (20_000,)))
    np.testing.assert_allclose(np.bincount(drawn, minlength=5) / 20_000, [0.25, 0.25, 0.25, 0.25, 0], atol=0.015)


def test_importance_by_hand():
    index = jnp.array([[0, 1], [2, 3]])
    p = (np.array([[0.0, 1.0], [0.5, 2.0]]) + 0.02) ** 0.6
    np.testing.assert_allclose(prioritised(beta=0.4).importance(index), (p.min() / p) ** 0.4, rtol=1e-5)
    # Of full correction, drawing by priority and weighing by importance is drawing evenly.
    replay = prioritised(beta=1.0)
    even = np.asarray(weights(replay)[:4] * replay.importance(jnp.arange(4)))
    np.testing.assert_allclose(even, np.full(4, even[0]), rtol=1e-5)
    np.testing.assert_array_equal(prioritised(beta=0.0).importance(index), np.ones((2, 2)))


def test_a_new_step_has_the_largest_priority_until_errors_are_measured():
    replay = prioritised()
    replay = added(replay, step_number(1))
    assert int(replay.count) == 5
    np.testing.assert_allclose(weights(replay)[4], weights(replay)[3])
    replay = added(replay, step_number(2))  # in place of the oldest
    np.testing.assert_allclose(weights(replay)[jnp.array([0, 3])], weights(replay)[4])


def test_the_first_steps_are_drawn_evenly_before_any_error_is_known():
    replay = ReplayBuffer(50, "td_error").init(DISCRETE)
    for i in range(3):
        replay = added(replay, step_number(i))
    drawn = np.asarray(replay.draw(KEY, (6000,)))
    np.testing.assert_allclose(np.bincount(drawn) / 6000, np.full(3, 1 / 3), atol=0.03)
    np.testing.assert_allclose(replay.importance(jnp.arange(3)), np.ones(3))


def test_uniform_replay_knows_no_priorities():
    replay = filled(DISCRETE, 4, 6, KEY)
    assert replay.priority is None
    np.testing.assert_array_equal(replay.importance(jnp.array([0, 3])), [1, 1])
    drawn = replay.draw(KEY, (3, 5))
    np.testing.assert_array_equal(drawn, jax.random.randint(KEY, (3, 5), 0, 4))


# ---- sequences


def ring(steps, capacity, ends=(), cut=()):
    """A replay into which the steps 0, 1, 2 ... were written one by one; those numbered `ends` terminated, `cut` truncated."""
    replay = ReplayBuffer(capacity).init(DISCRETE)
    for i in range(steps):
        flags = {"terminated": np.float32(i in ends), "truncated": np.float32(i in cut)}
        replay = added(replay, step_number(i)._replace(**flags))
    return replay


def sequence(replay, end, length):
    """(numbers of the steps that are valid, first, valid)."""
    found = jax.jit(lambda r, e: r.sequence(e, length))(replay, jnp.asarray(end, jnp.int32))
    assert found.first.dtype == found.valid.dtype == jnp.float32
    numbers = np.where(found.valid > 0, found.steps.reward, -1).astype(int).tolist()
    assert all(found.steps.obs[i, 0] == n for i, n in enumerate(numbers) if n >= 0)
    return numbers, found.first.tolist(), found.valid.tolist()


@pytest.mark.parametrize("flag", ["ends", "cut"])
def test_a_sequence_marks_where_episodes_begin(flag):
    replay = ring(7, 10, **{flag: (2, 3)})
    assert sequence(replay, 5, 4) == ([2, 3, 4, 5], [1, 1, 1, 0], [1, 1, 1, 1])
    assert sequence(replay, 6, 3) == ([4, 5, 6], [1, 0, 0], [1, 1, 1])  # the one before is not shown: so it is not known
    assert sequence(replay, 2, 3) == ([0, 1, 2], [1, 0, 0], [1, 1, 1])


def test_a_sequence_that_reaches_beyond_the_oldest_step_is_filled_up():
    replay = ring(3, 10)
    assert sequence(replay, 1, 4) == ([-1, -1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 1])
    assert sequence(replay, 2, 1) == ([2], [1], [1])
    assert sequence(replay, 2, 10) == ([-1] * 7 + [0, 1, 2], [1] * 8 + [0, 0], [0] * 7 + [1, 1, 1])


def test_a_sequence_follows_the_ring_over_its_edge_and_stops_at_the_oldest():
    replay = ring(8, 5, ends=(4,))  # positions 0 to 4 hold the steps 5, 6, 7, 3, 4
    assert sequence(replay, 1, 3) == ([4, 5, 6], [1, 1, 0], [1, 1, 1])
    assert sequence(replay, 2, 5) == ([3, 4, 5, 6, 7], [1, 0, 1, 0, 0], [1] * 5)
    assert sequence(replay, 4, 4) == ([-1, -1, 3, 4], [1, 1, 1, 0], [0, 0, 1, 1])
    assert sequence(replay, 2, 7) == ([-1, -1, 3, 4, 5, 6, 7], [1, 1, 1, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1])


def test_a_sequence_is_normalised():
    replay = filled(DISCRETE, 6, 8, KEY)
    found = replay.sequence(jnp.asarray(4), 3)
    assert same(found.steps, replay.gather(jnp.arange(2, 5)))


# ---- running moments


def test_moments_of_parts_are_those_of_the_whole():
    rng = np.random.default_rng(1)
    obs, change = rng.normal(50, 2, (60, 3, 4)).astype(np.float32), rng.normal(0, 0.5, (60, 3, 4)).astype(np.float32)
    reward, ended = rng.uniform(-4, 2, (60, 3)).astype(np.float32), (rng.uniform(size=(60, 3)) < 0.1).astype(np.float32)
    moments = no_moments(4)
    for start, end in ((0, 1), (1, 8), (8, 40), (40, 60)):
        part = steps_of(obs[start:end], reward[start:end], obs[start:end] + change[start:end])
        part = part._replace(terminated=jnp.asarray(ended[start:end]))
        # Filled up to a larger block, as the collector does.
        padded = jax.tree.map(lambda x: jnp.concatenate([x, jnp.full((3, *x.shape[1:]), 9e9)]), part)
        valid = jnp.broadcast_to((jnp.arange(end - start + 3) < end - start)[:, None], (end - start + 3, 3)).astype(jnp.float32)
        moments = _moments(moments, padded, valid)
    rows = obs.reshape(-1, 4)
    assert int(moments.count) == 180 and int(moments.terminated) == int(ended.sum())
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, rows.var(0), rtol=1e-4)
    np.testing.assert_allclose(moments.change, np.square((obs + change) - obs).reshape(-1, 4).mean(0), rtol=1e-4)
    np.testing.assert_allclose(moments.low, (obs + change).reshape(-1, 4).min(0), rtol=1e-6)
    np.testing.assert_allclose(moments.high, (obs + change).reshape(-1, 4).max(0), rtol=1e-6)
    assert float(moments.reward_low) == reward.min() and float(moments.reward_high) == reward.max()


def test_scales_in_use_change_only_when_they_are_asked_to():
    replay = ring(6, 10)
    assert same(replay.normalizer, identity(4))
    after = replay.normalise()
    assert float(after.normalizer.mean[0]) == pytest.approx(2.5)
    more = added(after, step_number(100))
    assert same(more.normalizer, after.normalizer) and not same(more.normalise().normalizer, after.normalizer)


def test_moments_remember_what_the_ring_has_lost():
    replay = ring(8, 5).normalise()
    assert int(replay.moments.count) == 8
    np.testing.assert_allclose(replay.normalizer.mean, np.full(4, 3.5), rtol=1e-6)


def test_returns_of_episodes_are_counted_as_they_end():
    replay = ring(7, 4, ends=(2,), cut=(5,))  # 0 + 1 + 2 and 3 + 4 + 5, over the ring's edge
    assert int(replay.episodes.number) == 2 and float(replay.episodes.mean()) == 7.5
    assert float(replay.episodes.running[0]) == 6.0
    later = added(replay.forget_episodes(), step_number(3)._replace(truncated=np.float32(1)))
    assert int(later.episodes.number) == 1 and float(later.episodes.mean()) == 9.0
    assert float(ring(3, 4).forget_episodes().episodes.mean()) == 0.0


# ---- environments side by side


def side_by_side(rows, capacity, ends=()):
    """Three environments; the step t of environment n is numbered 10 t + n. Those numbered `ends` terminated."""
    replay = ReplayBuffer(capacity).init(DISCRETE, 3)
    for t in range(rows):
        numbered = [step_number(10 * t + n)._replace(terminated=np.float32(10 * t + n in ends)) for n in range(3)]
        replay = _added(replay, jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *numbered))
    return replay


def test_a_ring_of_environments_holds_a_row_of_each_step():
    replay = side_by_side(3, 7)  # rounded up to three rows of three
    assert replay.capacity == 9 and replay.rows == 3 and int(replay.count) == int(replay.size) == 9
    assert replay.gather(jnp.arange(9)).reward.tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]
    assert replay.newest().tolist() == [6, 7, 8]
    older = side_by_side(4, 9)
    assert older.gather(jnp.arange(9)).reward.tolist() == [30, 31, 32, 10, 11, 12, 20, 21, 22]
    assert int(older.count) == 12 and int(older.size) == 9 and older.newest().tolist() == [0, 1, 2]


def test_a_sequence_never_crosses_from_one_environment_to_another():
    replay = side_by_side(5, 12, ends=(21,))  # four rows of three: 40, 10, 20, 30
    assert sequence(replay, 0, 4) == ([10, 20, 30, 40], [1, 0, 0, 0], [1] * 4)
    assert sequence(replay, 2, 3) == ([22, 32, 42], [1, 0, 0], [1] * 3)
    assert sequence(replay, 10, 5) == ([-1, -1, 11, 21, 31], [1, 1, 1, 0, 1], [0, 0, 1, 1, 1])


def test_returns_and_cuts_belong_to_their_own_environment():
    replay = side_by_side(3, 12, ends=(11,))
    assert replay.episodes.running.tolist() == [30, 21, 36] and float(replay.episodes.mean()) == 12.0
    cut = replay.cut(jnp.array([False, True, False]))
    assert cut.data.truncated[2].tolist() == [0, 1, 0] and float(cut.data.truncated.sum()) == 1
    assert cut.episodes.running.tolist() == [30, 0, 36]


def test_a_survey_is_of_everything_or_of_as_many_as_are_asked_for():
    replay = filled(DISCRETE, 4, 6, KEY)
    index, counts = replay.survey(KEY, 6)
    assert index.tolist() == list(range(6)) and counts.tolist() == [1, 1, 1, 1, 0, 0]
    index, counts = replay.survey(KEY, 5)
    assert index.shape == (5,) and int(index.max()) < 4 and counts.tolist() == [1] * 5
    assert ReplayBuffer(9).init(DISCRETE).survey(KEY, 5)[1].tolist() == [0] * 5
    assert [ReplayBuffer(n).init(DISCRETE).survey(KEY)[0].size for n in (9, 10_000, 10_001)] == [9, 10_000, 4_000]


# ---- the sum tree


def test_a_sum_tree_finds_by_weight_and_keeps_its_sums():
    tree = empty_tree(5)
    assert tree.leaves == 8
    tree = tree.set(jnp.array([0, 3, 4, 99]), jnp.array([1.0, 2.0, 3.0, 50.0]))  # 99 is beyond the last
    assert float(tree.total) == 6.0
    assert tree.find(jnp.array([[0.0, 0.99, 1.0], [2.99, 3.0, 5.99]])).tolist() == [[0, 0, 3], [3, 4, 4]]
    tree = tree.set(jnp.array([3, 3]), jnp.array([0.0, 0.0]))
    assert float(tree.total) == 4.0 and tree.find(jnp.array([1.0])).tolist() == [4]


def test_a_weight_of_a_million_is_changed_in_place():
    tree, one = empty_tree(1_000_000), jnp.zeros(1, jnp.int32)
    changed = jax.jit(lambda tree: tree.set(one, one + 1.0), donate_argnums=0).lower(tree).compile()
    assert changed.memory_analysis().temp_size_in_bytes < tree.sums.nbytes / 100


def test_a_sum_tree_is_a_function_of_its_leaves():
    rng = np.random.default_rng(0)
    tree, set_ = empty_tree(1000), jax.jit(lambda t, i, w: t.set(i, w))
    wanted = np.zeros(1024, np.float32)
    for _ in range(30):
        index = rng.choice(1000, 40, replace=False)
        wanted[index] = rng.uniform(0, 9, 40)
        tree = set_(tree, jnp.asarray(index), jnp.asarray(wanted[index]))
    at_once = set_(empty_tree(1000), jnp.arange(1000), jnp.asarray(wanted[:1000]))
    np.testing.assert_array_equal(tree.sums, at_once.sums)
    assert float(tree.total) == pytest.approx(wanted.sum(), rel=1e-6)
