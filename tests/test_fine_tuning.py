"""A fit that goes on when new experience has come: what it learns from, what judges it, and how its learning rate falls."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import DISCRETE, filled, same, small

from spikedream.config import Config, ConfigError, merge, named
from spikedream.ops import fitting
from spikedream.replay.ring import ReplayBuffer
from spikedream.snn.conventional import GRU, MLP
from spikedream.world_models.ensemble import Ensemble
from spikedream.world_models.fine_tuning import FineTuning, Plateau
from spikedream.world_models.recurrent import Recurrent

KEY, OTHER = jax.random.key(0), jax.random.key(1)


def rows(number: int) -> Any:
    """A ring of 10 rows of 2 environments to which `number` have been added."""
    return replace(ReplayBuffer(capacity=20).init(DISCRETE, 2), added=jnp.asarray(number, jnp.int32))


@pytest.mark.parametrize(
    ("number", "ages"), [(4, [3, 2, 1, 0]), (10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]), (13, [2, 1, 0, 9, 8, 7, 6, 5, 4, 3])]
)
def test_the_age_of_a_step_counts_the_rows_since(number: int, ages: list[int]) -> None:
    held = np.asarray(rows(number).age(jnp.arange(20)))[: 2 * len(ages)]
    np.testing.assert_array_equal(held, np.repeat(ages, 2))


@pytest.mark.parametrize(
    ("of", "learned"),
    [("newest", [2, 3, 4, 5]), ("oldest", [6, 7, 8, 9])],  # by age: 2 of 10 rows are held out, half of the other 8 are learned from
)
def test_a_share_of_what_is_not_held_out_is_learned_from(of: Any, learned: list[int]) -> None:
    model = small(Ensemble(fine_tuning=FineTuning(holdout_newest=0.2, share=0.5, of=of)))
    replay = rows(13)
    drawn = np.unique(replay.age(model.split.draw(KEY, replay, OTHER, (300,), KEY)))
    judging = np.unique(replay.age(model.split.draw_held(KEY, replay, OTHER, (300,))))
    assert drawn.tolist() == learned and judging.tolist() == [0, 1]
    assert np.asarray(model.split.judges(KEY, replay, jnp.arange(20), jnp.ones(20))).sum() == 4


def test_a_random_share_is_the_same_during_a_fit_and_another_in_the_next() -> None:
    model, replay = small(Ensemble(fine_tuning=FineTuning(share=0.5, of="random"))), rows(10)
    first, again, later = (set(np.unique(model.split.draw(KEY, replay, key, (400,), fit))) for key, fit in (
        (KEY, KEY), (OTHER, KEY), (KEY, OTHER)))  # fmt: skip
    assert first == again != later and 4 < len(first) < 16


def test_a_random_share_shares_no_randomness_with_the_steps_of_its_fit() -> None:
    """These fold their numbers into the same key."""
    chosen = FineTuning(share=0.5, of="random").chosen(rows(10), jnp.arange(20), KEY)
    of_steps = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(KEY, i)))(jnp.arange(20)) < 0.5
    assert not same(chosen, of_steps)


def test_beside_the_newest_some_are_held_out_by_chance() -> None:
    model, replay = small(Ensemble(holdout=0.3, fine_tuning=FineTuning(holdout_newest=0.2))), rows(10)
    drawn = set(np.unique(model.split.draw(KEY, replay, OTHER, (600,), KEY)))
    judging = set(np.unique(model.split.draw_held(KEY, replay, OTHER, (600,))))
    assert drawn | judging == set(range(20)) and not drawn & judging and {16, 17, 18, 19} < judging


def test_a_sequence_judges_only_if_it_is_held_out_from_its_beginning() -> None:
    model, replay = small(Ensemble(fine_tuning=FineTuning(holdout_newest=0.4))), rows(10)
    ends = model.split.draw_held(KEY, replay, OTHER, (200,), 3)
    assert np.unique(replay.age(ends)).tolist() == [0, 1]  # of the newest 4 rows, sequences of 3 end in the last 2
    assert replay.age(model.split.draw(KEY, replay, OTHER, (200,), KEY)).min() == 4


def test_the_learning_rate_falls_on_a_plateau_and_each_fit_begins_anew() -> None:
    """Of gradient 1 everywhere: how far a parameter has come tells the rate of each step."""
    told = jnp.array([3.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0])  # after each step

    def loss(params: Any, batch: Any, key: Any) -> Any:
        return params["x"].sum()

    def check(params: Any) -> Any:
        return told[params["n"].astype(int)[:, 0] - 1]

    def settle(before: Any, after: Any) -> Any:
        return {"x": after["x"], "n": before["n"] + 1}

    params, optimizer = {"x": jnp.zeros((1, 1)), "n": jnp.zeros((1, 1))}, optax.identity()

    def moved(factor: float, patience: int) -> np.ndarray:
        """In each step."""
        falls = FineTuning(plateau=Plateau(patience, factor)).falls()

        @jax.jit
        def after(updates: Any) -> Any:
            return fitting.fit(
                params, fitting.start(optimizer, params), loss, lambda p, k: jnp.zeros((1, 1)), check, optimizer, rate=1.0,
                updates=updates, block=1, patience=99, key=KEY, settle=settle, plateau=falls,
            ).params["x"][0, 0]  # fmt: skip

        return np.diff([-float(after(np.int32(updates))) for updates in range(8)])

    np.testing.assert_allclose(moved(0.5, 2), [1, 1, 1, 1, 0.5, 0.5, 0.5], atol=1e-6)  # after two checks no better than 2
    np.testing.assert_allclose(moved(0.1, 1), [1, 1, 1, 0.1, 0.01, 0.01, 0.001], atol=1e-6)


@pytest.mark.parametrize("kind", ["MLP", "GRU"])
def test_both_models_fit_to_their_share_and_are_judged_by_the_newest(kind: str) -> None:
    """What is not learned from does not matter: with other numbers there, the weights are the same."""
    network, tuned = MLP((6,)), FineTuning(holdout_newest=0.25, share=0.5, of="newest", plateau=Plateau(patience=1))
    ensemble = small(Ensemble(dynamics=network, ending=network, patience=4), fine_tuning=tuned)
    model: Any = ensemble if kind == "MLP" else Recurrent(GRU(4), 2, ensemble, context=2)
    replay = filled(DISCRETE, 40, 40, KEY)
    state = model.init(DISCRETE, KEY)
    fit = jax.jit(model.update)

    def weights(after: Any) -> Any:
        return after.members if kind == "MLP" else (after.network, after.ensemble.members)

    def moved(first: int, last: int) -> Any:
        """With other rewards at these ages."""
        reward = replay.data.reward.at[40 - last : 40 - first].add(0.5)
        return replace(replay, data=replay.data._replace(reward=reward))

    after, metrics = fit(state, replay, KEY, 4)
    assert np.isfinite(float(metrics["model_holdout_loss"])) and float(metrics["model_updates"]) == 4
    best = weights(after)
    assert not same(best, weights(state)) and not same(best, weights(fit(state, moved(10, 25), KEY, 4)[0]))
    oldest, _ = fit(state, moved(27, 40), KEY, 4)
    assert same(best, weights(oldest))
    _, judged = fit(state, moved(0, 8), KEY, 4)
    assert float(judged["model_holdout_loss"]) != float(metrics["model_holdout_loss"])
    assert float(judged["model_loss"]) == float(metrics["model_loss"])


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(ValueError, match=r"needs steps that are held out; set fine_tuning\.holdout_newest"):
        Ensemble(fine_tuning=FineTuning(plateau=Plateau()))
    with pytest.raises(ValueError, match=r"patience is 4: fitting would stop before its learning rate falls"):
        Ensemble(holdout=0.1, fine_tuning=FineTuning(plateau=Plateau()))
    for wrong, says in (({"share": 0.0}, "share is 0.0; it must be from 0.01 to 1"), ({"of": "best"}, "of is 'best'"),
                        ({"plateau": {"factor": 1.0}}, "factor is 1.0"), ({"plateau": {"patience": 0}}, "patience is 0"),
                        ({"holdout_newest": 1.0}, "holdout_newest is 1.0")):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            merge(Config(), {"world_model": {"fine_tuning": wrong}})
    with pytest.raises(ValueError, match=r"the newest can, by ensemble\.fine_tuning\.holdout_newest"):
        Recurrent(ensemble=Ensemble(holdout=0.1))
    assert named("cartpole").world_model.fine_tuning == FineTuning()
