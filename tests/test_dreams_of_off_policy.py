"""Dreams of the off-policy agent: what is trusted, what is kept, in which units, and what is learned of it."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, filled, finite, known, same, small
from toys import KEY

from spikedream.agents.dreams import UNKNOWN, Acceptance, Dreams, DreamsState, ImaginedSteps
from spikedream.agents.off_policy import OffPolicy
from spikedream.agents.policy_head import Deterministic
from spikedream.algorithm import _of_block
from spikedream.ops.dream import dream
from spikedream.ops.schedule import HorizonSchedule, ImaginedShare
from spikedream.ops.trust import Calibrated, Evidence, FirstStep, Tightening
from spikedream.replay.ring import Priority
from spikedream.replay.sum_tree import empty_tree
from spikedream.runs.metrics import fetched
from spikedream.snn.conventional import MLP
from spikedream.types import Decision, Masked, Prediction
from spikedream.world import World
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.fine_tuning import FineTuning
from spikedream.world_models.true_environment import TrueEnvironment

NETWORK = MLP(hidden=(8,))
DREAMS = Dreams(starts=4, horizon=3, every=2, begin=0, capacity=24, share=ImaginedShare(0.5, 0.5), trust=Tightening(1.0, 0.75))
NOTHING = Evidence(jnp.zeros((3, 1)), jnp.zeros((3, 1)), jnp.zeros((3, 1)))


class Drift:
    """A world that moves by 0.1 a step, pays 2, ends beyond `edge`, and is the less certain the farther it is."""

    members, recurrent, warm_up, updates, holdout_newest = 2, False, 1, 1, 0.0

    def __init__(self, edge: float = 1e9):
        self.edge = edge

    def start(self, state: Any, obs: jax.Array, key: jax.Array) -> Any:
        return Prediction(obs, *[jnp.zeros(())] * 5, ())

    def feature(self, state: Any, memory: Any) -> jax.Array:
        return memory.obs

    def feature_size(self, spec: Any) -> int:
        return spec.obs_size

    def step(self, state: Any, memory: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Prediction]:
        obs = memory.obs + 0.1
        ends = (obs[0] > self.edge).astype(jnp.float32)
        zero = jnp.zeros(())
        following = Prediction(obs, jnp.asarray(2.0), ends, jnp.abs(obs[0]), zero, zero, ())
        return following, following


def still(carry: Any, obs: jax.Array, key: jax.Array) -> Decision:
    return Decision(jnp.full(1, 0.25), (), jnp.zeros(()), ())


def dreamt(dreams: Dreams, model: Any, by_priority: bool = False) -> tuple[DreamsState, Any]:
    experience = filled(CONTINUOUS, 20, 24, KEY)
    if by_priority:  # a single step is drawn
        experience = replace(experience, priority=Priority(empty_tree(24), jnp.ones(())), alpha=1.0)
        experience = experience.prioritise(jnp.arange(24), 1.0 * (jnp.arange(24) == 7), 1.0 * (jnp.arange(24) == 7))
    world = World(model, (), experience.normalizer)
    state = dreams.init(CONTINUOUS, world)
    return jax.jit(lambda s, e: dreams.dream(s, world, e, still, KEY))(state, experience), experience


def test_bounds_tighten_with_the_imagined_step() -> None:
    np.testing.assert_allclose(Tightening(0.5, 0.85).bounds((), NOTHING, jnp.zeros((3, 2)))[0], [0.5, 0.425, 0.36125], rtol=1e-6)


def test_bounds_by_the_first_steps_of_all_dreams_so_far() -> None:
    uncertainty, rule = jnp.array([[1.0, 2.0, 3.0], [9.0, 9.0, 9.0]]), FirstStep(quantile=0.5, factor=1.5)
    bounds, state = rule.bounds(rule.init(), NOTHING, uncertainty)
    np.testing.assert_allclose(bounds, [3.0, 3.0])
    bounds, state = rule.bounds(state, NOTHING, 4 * uncertainty)
    np.testing.assert_allclose(bounds, [7.5, 7.5])  # 1.5 times the mean of 2 and 8
    np.testing.assert_allclose(rule.bounds(state, NOTHING, uncertainty)[0], [6.0, 6.0])


class Doubting(Drift):
    """Uncertain as many times as its state says."""

    def step(self, state: Any, memory: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Prediction]:
        following, prediction = super().step(state, memory, action, key)
        return following, prediction._replace(disagreement=state * prediction.disagreement)


def test_a_model_that_has_become_less_certain_is_trusted_less() -> None:
    dreams = replace(DREAMS, starts=64, capacity=200, trust=FirstStep())
    experience = filled(CONTINUOUS, 20, 24, KEY)
    state = dreams.init(CONTINUOUS, World(Doubting(), jnp.ones(()), experience.normalizer))

    @jax.jit
    def accepted(state: DreamsState, times_as_uncertain: jax.Array) -> tuple[DreamsState, jax.Array]:
        world = World(Doubting(), times_as_uncertain, experience.normalizer)
        state = dreams.dream(state, world, experience, still, KEY)
        return state, state.acceptance.accepted[0]

    for _ in range(4):
        state, share = accepted(state, jnp.asarray(1.0))
        assert share > 0.9
    shares = [float(accepted(state, jnp.asarray(times))[1]) for times in (1.0, 2.0, 4.0, 8.0)]
    assert shares == sorted(shares, reverse=True) and shares[-1] < 0.75 < 0.9 < shares[0]


def test_bounds_by_the_error_that_uncertainty_meant() -> None:
    uncertainty = jnp.array([[0.3, 0.1, 0.2, 0.4], [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]])
    error = jnp.array([[0.5, 0.1, 0.3, 9.0], [5.0, 5.0, 5.0, 5.0], [0.1, 0.1, 9.0, 0.1]])
    valid = jnp.ones((3, 4)).at[2, 2].set(0)
    bounds, _ = Calibrated(error=0.3).bounds((), Evidence(uncertainty, error, valid), uncertainty)
    # Means in the order of uncertainty: 0.1, 0.2, 0.3, 2.5 in the first step; never good in the second; one does not count.
    np.testing.assert_allclose(bounds, [0.3, -1.0, 0.4], rtol=1e-6)


def test_what_is_not_trusted_stays_out_and_so_does_all_that_follows_it() -> None:
    state, experience = dreamt(DREAMS, Drift())
    bounds = [1.0, 0.75, 0.5625]
    starts = experience.gather(experience.draw(jax.random.split(KEY, 4)[0], (4,))).obs[:, 0]
    kept = []
    for start in np.asarray(starts):
        for step, bound in enumerate(bounds):
            if abs(start + 0.1 * (step + 1)) > bound:
                break
            kept.append(start + 0.1 * step)
    assert 0 < len(kept) < 12 and int(state.added) == len(kept)
    held = experience.normalizer.obs(state.ring.obs[: len(kept)])[:, 0]
    np.testing.assert_allclose(sorted(held), sorted(kept), atol=1e-5)
    assert not state.ring.obs[len(kept) :].any()
    everything, _ = dreamt(replace(DREAMS, trust=None), Drift())
    assert int(everything.added) == 12 and (np.asarray(everything.acceptance.accepted) == 1).all()


def test_dreams_begin_at_replayed_states_whatever_their_priority() -> None:
    dreams = replace(DREAMS, trust=None)
    assert same(dreamt(dreams, Drift())[0], dreamt(dreams, Drift(), by_priority=True)[0])


def test_imagined_steps_are_kept_in_the_environments_own_units() -> None:
    state, experience = dreamt(replace(DREAMS, trust=None, penalty=0.5, doubt=2.0), Drift())
    ring, normalizer = jax.tree.map(lambda x: x[:12], state.ring), experience.normalizer
    change = normalizer.obs(ring.next_obs) - normalizer.obs(ring.obs)
    np.testing.assert_allclose(change, 0.1, atol=1e-4)
    uncertainty = jnp.abs(normalizer.obs(ring.next_obs)[:, 0])
    most = float(normalizer.reward_high)  # rewards beyond those seen do not count
    np.testing.assert_allclose(ring.reward, (most - 0.5 * uncertainty) * normalizer.reward_scale, rtol=1e-4)
    np.testing.assert_allclose(ring.weight, 1 / (1 + 2 * uncertainty), rtol=1e-4)
    np.testing.assert_array_equal(ring.action, 0.25)
    batch = DREAMS.batch(state, experience, 0.9, 50, KEY)
    assert set(np.asarray(batch.reward)) <= set(np.asarray(ring.reward)) and (np.asarray(batch.discount) == np.float32(0.9)).all()


def test_a_dream_that_has_ended_stays_ended() -> None:
    state, experience = dreamt(replace(DREAMS, trust=None), Drift(edge=0.0))
    starts = np.asarray(experience.gather(experience.draw(jax.random.split(KEY, 4)[0], (4,))).obs[:, 0])
    lengths = [next((step + 1 for step in range(3) if start + 0.1 * (step + 1) > 0), 3) for start in starts]
    assert int(state.added) == sum(lengths) < 12
    ended = np.asarray(state.ring.terminated[: sum(lengths)])
    assert ended.sum() == sum(any(start + 0.1 * (step + 1) > 0 for step in range(3)) for start in starts)
    batch = DREAMS.batch(state, experience, 0.9, 64, KEY)
    assert set(np.asarray(batch.discount)) == {np.float32(0.0), np.float32(0.9)} or ended.all()


def test_the_oldest_imagined_steps_make_way() -> None:
    ring = ImaginedSteps(*(jnp.zeros((5, *shape)) for shape in ((3,), (1,), (), (3,), (), ())))
    state = DreamsState(ring, jnp.asarray(3), jnp.zeros(0, jnp.int32), Acceptance(*[jnp.zeros(2)] * 3))
    new = ImaginedSteps(*(jnp.zeros((2, 2, *shape)) for shape in ((3,), (1,), (), (3,), (), ())))
    new = new._replace(reward=jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    few = Dreams(starts=2, horizon=2, capacity=5)
    state = few._add(state, new, jnp.array([[1.0, 0.0], [1.0, 1.0]]), state.acceptance)
    np.testing.assert_array_equal(state.ring.reward, [4, 0, 0, 1, 3])
    assert int(state.added) == 6


def test_the_horizon_grows_along_a_line_between_two_numbers_of_real_steps() -> None:
    schedule = HorizonSchedule(first=1, begin=20, steps=100)
    horizons = [int(schedule(25, jnp.asarray(steps))) for steps in (0, 20, 24, 25, 70, 119, 120, 10**6)]
    assert horizons == [1, 1, 1, 2, 13, 24, 25, 25]  # 1 + 24 (steps - 20) / 100, rounded down
    assert int(HorizonSchedule(first=3, begin=0, steps=7)(3, jnp.asarray(4))) == 3


@pytest.mark.parametrize(("begin", "horizon"), [(20, 1), (15, 2), (5, 3)])
def test_dreams_are_as_long_as_their_schedule_says_and_no_longer(begin: int, horizon: int) -> None:
    scheduled = replace(DREAMS, trust=None, schedule=HorizonSchedule(first=1, begin=begin, steps=10))
    state, experience = dreamt(scheduled, Drift())  # 20 real steps
    whole, _ = dreamt(replace(DREAMS, trust=None), Drift())
    kept = 4 * horizon
    assert int(scheduled.horizon_now(experience)) == horizon and int(state.added) == kept
    np.testing.assert_array_equal(state.acceptance.accepted, [1.0] * horizon + [UNKNOWN] * (3 - horizon))
    for short, long in zip(state.ring, whole.ring, strict=True):  # up to there the same dreams
        np.testing.assert_array_equal(short[:kept], long[:kept])
        assert not short[kept:].any()


def test_steps_beyond_the_horizon_are_not_computed() -> None:
    calls: list[None] = []

    class Counting(Drift):
        def step(self, state: Any, memory: Any, action: jax.Array, key: jax.Array) -> tuple[Any, Prediction]:
            jax.debug.callback(lambda: calls.append(None))
            return super().step(state, memory, action, key)

    model, experience = Counting(), filled(CONTINUOUS, 20, 24, KEY)
    memory = jax.vmap(lambda obs: model.start((), obs, KEY))(jnp.zeros((4, 3)))
    for taken in (2, 5):
        world = World(model, (), experience.normalizer)
        run = jax.jit(lambda n, w=world: dream(w, still, (), memory, 5, KEY, n))
        calls.clear()
        steps, ends = jax.block_until_ready(run(jnp.asarray(taken)))
        jax.effects_barrier()
        assert len(calls) == taken  # once for all dreams side by side
        np.testing.assert_allclose(steps.following[:, 0, 0], [0.1 * (i + 1) if i < taken else 0 for i in range(5)], rtol=1e-5)
        np.testing.assert_allclose(ends.memory.obs, 0.1 * taken, rtol=1e-5)


def test_imagined_steps_that_are_too_old_are_not_drawn() -> None:
    young = Dreams(starts=1, horizon=2, capacity=5, every=10, age=15)  # of the newest two times
    state = young.init(CONTINUOUS, World(Drift(), (), filled(CONTINUOUS, 4, 4, KEY).normalizer))
    experience = filled(CONTINUOUS, 20, 24, KEY)

    def rewards(state: DreamsState) -> set[float]:
        return set(np.asarray(young.batch(state, experience, 0.9, 200, KEY).reward).tolist())

    assert state.before.shape == (2,) and float(young.share_now(state, experience)) == 0
    new = ImaginedSteps(*(jnp.zeros((2, 1, *shape)) for shape in ((3,), (1,), (), (3,), (), ())))
    drawn = []
    for time in range(6):
        kept = jnp.array([[1.0], [1.0]]) if time < 4 else jnp.zeros((2, 1))  # nothing is trusted in the end
        new = new._replace(reward=jnp.array([[time + 1.0], [time + 1.5]]))
        state = young._add(state, new, kept, state.acceptance)
        drawn.append(rewards(state) if float(young.share_now(state, experience)) else set())
    assert drawn == [{1, 1.5}, {1, 1.5, 2, 2.5}, {2, 2.5, 3, 3.5}, {3, 3.5, 4, 4.5}, {4, 4.5}, set()]
    young = replace(young, age=None)
    assert rewards(state) == {2.5, 3, 3.5, 4, 4.5}  # of all five that the ring holds


def test_errors_of_dreams_along_real_actions_are_told_by_step() -> None:
    model = TrueEnvironment("Pendulum")
    true = known(model, model.init(CONTINUOUS, KEY), CONTINUOUS)
    experience = filled(CONTINUOUS, 20, 24, KEY)
    evidence = DREAMS._measure(true, experience, KEY)
    assert evidence.error.shape == (3, DREAMS.stretches) and finite(evidence)
    drifting = DREAMS._measure(World(Drift(), (), experience.normalizer), experience, KEY)
    # Along any stretch the drift is 0.1 a step; what really followed is known.
    assert (np.asarray(drifting.error)[0] > 0).all() and (np.asarray(drifting.valid)[0] == 1).all()
    two = Evidence(jnp.array([[0.0, 1.0]]), jnp.array([[0.2, 0.6]]), jnp.ones((1, 2)))
    accepted, rejected = DREAMS._errors(two, jnp.array([0.5]))
    np.testing.assert_allclose((accepted[0], rejected[0]), (0.2, 0.6), rtol=1e-6)


def test_what_nothing_was_measured_of_is_unknown_and_not_zero() -> None:
    state, _ = dreamt(replace(DREAMS, trust=None), Drift())
    never = DREAMS.init(CONTINUOUS, World(Drift(), (), filled(CONTINUOUS, 4, 4, KEY).normalizer))
    told, before = (fetched(DREAMS.metrics(x)) for x in (state, never))
    for step in (1, 2, 3):
        assert told[f"dream_accepted_{step}"] == 1 and told[f"dream_error/rejected_{step}"] is None
        assert np.isfinite(told[f"dream_error/accepted_{step}"] or np.nan)
    assert set(before.values()) == {None}


def test_a_block_of_updates_tells_the_mean_over_those_that_measured() -> None:
    metrics = {
        "known": jnp.array([1.0, 3.0]), "counted": jnp.array([1, 3]),
        "partly": Masked(jnp.array([-1.0, 0.5]), jnp.array([0.0, 1.0])), "never": Masked(jnp.array([-1.0, -1.0]), jnp.zeros(2)),
    }  # fmt: skip
    assert fetched({name: _of_block(x) for name, x in metrics.items()}) == {
        "known": 2, "counted": 4, "partly": 0.5, "never": None
    }  # fmt: skip


@pytest.mark.parametrize(("share", "rows"), [(0.25, 5), (0.1, 2), (0.0, 20)])
def test_errors_are_measured_on_stretches_that_the_model_was_not_fitted_to(share: float, rows: int) -> None:
    model, experience = Drift(), filled(CONTINUOUS, 20, 24, KEY)
    model.holdout_newest = share
    evidence = DREAMS._measure(World(model, (), experience.normalizer), experience, KEY)
    unseen = jnp.abs(experience.gather(jnp.arange(20 - rows, 20)).obs[:, 0] + 0.1)  # a drifting dream is as uncertain as it is far
    began = np.asarray(evidence.uncertainty[0])
    assert (all(np.isclose(unseen, x, atol=1e-5).any() for x in began) and len(np.unique(began)) > 1) or rows < 3
    # A stretch that is held out has no more steps than there are rows that are.
    assert not evidence.valid[rows:].any()


def test_a_rule_that_asks_how_wrong_the_model_is_wants_stretches_that_are_held_out() -> None:
    ensemble, dreams = small(Ensemble()), replace(DREAMS, trust=Calibrated())
    for model in (ensemble, replace(ensemble, holdout=0.2)):  # by chance no whole stretch is
        with pytest.raises(ValueError, match=r"Calibrated, which asks .* set fine_tuning.holdout_newest of the ensemble"):
            dreams.init(CONTINUOUS, World(model, (), None))
    dreams.init(CONTINUOUS, World(replace(ensemble, fine_tuning=FineTuning(holdout_newest=0.02)), (), None))


def agent(dreams: Dreams | None) -> OffPolicy:
    return OffPolicy(actor=NETWORK, critic=NETWORK, policy=Deterministic(), batch=8, dreams=dreams)


def test_a_batch_is_real_until_there_are_dreams_and_then_partly_imagined() -> None:
    model = small(Ensemble())
    world = known(model, model.init(CONTINUOUS, KEY), CONTINUOUS)
    experience, who = filled(CONTINUOUS, 20, 24, KEY), agent(replace(DREAMS, every=2, trust=None))
    state = jax.jit(lambda k: who.init(CONTINUOUS, world, k))(KEY)
    update = jax.jit(lambda s, k: who.update(s, world, experience, k))
    first, metrics = update(state, KEY)
    assert float(metrics["imagined_share"]) == 0 and int(metrics["imagined_steps"]) == 0
    assert (np.asarray(who.judged(first).counts) == 1).all()
    second, metrics = update(first, KEY)
    assert float(metrics["imagined_share"]) == 0.5 and int(metrics["imagined_steps"]) == 12 and finite(second)
    np.testing.assert_array_equal(who.judged(second).counts, [0, 0, 0, 0, 1, 1, 1, 1])
    assert {f"dream_accepted_{k}" for k in (1, 2, 3)} <= set(metrics)
    _, metrics = update(second, KEY)
    assert int(metrics["imagined_steps"]) == 0 and float(metrics["imagined_share"]) == 0.5


def test_no_dreams_before_enough_real_steps() -> None:
    experience = filled(CONTINUOUS, 20, 24, KEY)
    assert bool(replace(DREAMS, begin=20).due(jnp.asarray(2), experience))
    assert not bool(replace(DREAMS, begin=21).due(jnp.asarray(2), experience)) and not bool(DREAMS.due(jnp.asarray(3), experience))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"schedule.first is 4, which is above horizon \(3\)"):
        replace(DREAMS, schedule=HorizonSchedule(first=4))
    with pytest.raises(ValueError, match="age is 0"):
        replace(DREAMS, age=0)
    with pytest.raises(ValueError, match="capacity is 11; one time's dreams, starts x horizon, are 12 steps"):
        replace(DREAMS, capacity=11)
    model = TrueEnvironment("Pendulum")
    with pytest.raises(ValueError, match="trust is Tightening, which asks whether the members of an ensemble agree"):
        agent(DREAMS).init(CONTINUOUS, known(model, model.init(CONTINUOUS, KEY), CONTINUOUS), KEY)
    assert agent(DREAMS).uses_world and not agent(None).uses_world
