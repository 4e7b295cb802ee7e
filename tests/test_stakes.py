"""What an agent does once rewards are worth something else, and with rewards that are small."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from small import same
from test_probes_of_agents import critic_value
from toys import ARMS, DIAL, DREAMER, KEY, _begin, _updates, greedy_action, origin, practise, still, toy

from spikedream.ops.distributions import Regression
from spikedream.reports.chosen import chosen_html

CAREFUL = replace(DREAMER, critic_first=3)


class Bonus:
    """Of the size that is its state."""

    def reward(self, state, obs, action, prediction):
        return state

    def bound(self, state, normalizer):
        return state


def worth(scale=1.0, bonus=0.0):
    """A world of constant rewards, all of them in units of `scale`."""
    world = toy(still(reward=0.9), ARMS)
    normalizer = replace(world.normalizer, reward_scale=jnp.asarray(scale, jnp.float32))
    return replace(world, normalizer=normalizer, bonus=Bonus(), bonus_state=jnp.asarray(bonus, jnp.float32))


def states(agent, *worlds):
    """That in which the agent begins, and after 100 updates in the first of the worlds and one in each of the others."""
    found = [_begin(agent, ARMS, worlds[0], KEY)]
    for i, world in enumerate(worlds):
        keys = jax.random.split(jax.random.fold_in(KEY, i), 1 if i else 100)
        found.append(_updates(agent, found[-1], world, origin(ARMS), keys)[0])
    return found


@pytest.mark.parametrize(
    ("then", "changed"),
    [
        (worth(scale=2.5), True),
        (worth(scale=0.4), True),
        (worth(bonus=1.5), True),
        (worth(), False),
        (worth(scale=1.8), False),
        (worth(bonus=0.5), False),
    ],
    ids=["larger", "smaller", "curious", "same", "a-little-larger", "a-little-curious"],
)
def test_once_rewards_are_worth_something_else_a_new_critic_learns_alone_at_first(then, changed):
    _, learned, *later = states(CAREFUL, worth(), then, then, then, then)
    assert critic_value(CAREFUL, learned) > 0.6
    rested = [same(state.actor, learned.actor) and same(state.actor_optimizer, learned.actor_optimizer) for state in later]
    assert rested == ([True, True, True, False] if changed else [False] * 4)
    assert (critic_value(CAREFUL, later[0]) < 0.4) == changed and not same(later[0].critic, later[1].critic)


def test_it_is_told_how_much_of_a_turn_was_the_critic_s_alone():
    told = chosen_html([{"actor_rests": 0.25}])
    assert "25%" in told and "no longer what it had learned" in told
    assert "about what it had learned" in chosen_html([{"actor_rests": 0.25}, {"actor_rests": 0.0}])


def test_what_changes_little_by_little_is_heeded_once_it_has_changed_much():
    *_, before, last = states(CAREFUL, worth(), worth(scale=1.5), worth(scale=1.9), worth(scale=2.3))
    assert same(before.actor, last.actor)
    assert float(last.stakes.unit) == pytest.approx(2.3) and int(last.stakes.rest) == 2


def test_who_does_not_heed_it_goes_on():
    _, learned, then = states(DREAMER, worth(), worth(scale=100.0))
    assert not same(then.actor, learned.actor) and critic_value(DREAMER, then) > 0.6 and then.stakes == ()


@pytest.mark.parametrize("size", [1.0, 0.05])
def test_through_the_model_small_rewards_outweigh_the_entropy_as_large_ones_do(size):
    """What a dial pays is at best `size`, for an action of 0.5; the entropy alone would have it at 0."""
    agent = replace(DREAMER, gradient="model", value=Regression(), entropy=0.05, advantage_floor=1e-6)
    state, _ = practise(agent, still()._replace(size=size), DIAL, 250)
    assert abs(greedy_action(agent, state)[0] - 0.5) < 0.15
