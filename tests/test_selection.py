"""Which policy acts greedily: chosen in the dreams of each member by itself, in worlds where the right choice is known."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import changed_rows, known, same
from toys import ARMS, DREAMER, KEY, Known, origin, said, seen

from spikedream import config as configuration
from spikedream.agents.selection import PolicySelection
from spikedream.config import Config
from spikedream.reports.chosen import chosen_html

STEPS = 5


@dataclass(frozen=True)
class Divided(Known):
    """Nothing moves. Members say differently what the second action pays, beside `slope` times the first entry of the observation,
    and whether anything ends; the others pay nothing. The state is (pays, ending), (members,) each."""

    members: int = 2
    slope: float = 0.0

    def step(self, state, memory, action, key):
        return said(memory.obs, (state[0][0] + self.slope * memory.obs[0]) * action[1], state[1][0])

    def member(self, state, memory, index):
        return replace(self, members=1), jax.tree.map(lambda x: x[index][None], state), memory


def leaning(actor: Any, choice: int) -> Any:
    """The actor, with a bias that decides."""
    return jax.tree.map(lambda x: x + 9.0 * jax.nn.one_hot(choice, 3) if x.shape == (3,) else 0 * x, actor)


def selected(
    pays: tuple[float, float], caution: float, slope: float = 0.0, ending: float = 0.0
) -> tuple[Any, Any, dict[str, float]]:
    """An agent, its state and what decided, where the first action is what acts otherwise and the average takes the second. Dreams
    begin as often at 1 as at -1."""
    agent = replace(DREAMER, selection=PolicySelection(rates=(0.25,), starts=31, steps=STEPS, caution=caution))
    world = seen(known(Divided(slope=slope), (jnp.asarray(pays), jnp.full(2, ending)), ARMS))
    state = agent.init(ARMS, world, KEY)
    average = replace(state.selection, averages=(leaning(state.actor, 1),))
    state = replace(state, actor=leaning(state.actor, 0), selection=average)
    experience = changed_rows(origin(ARMS), obs=lambda x: x.at[:, 0].set(1.0 - 2.0 * (jnp.arange(16) % 2)))
    state, metrics = jax.jit(agent.select)(state, world, experience, KEY)
    return agent, state, {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    ("pays", "caution", "chosen"),
    [
        ((0.02, 0.02), 9.0, 1),  # little, but in every dream
        ((0.5, -0.2), 9.0, 1),  # as the members have it on average
        ((0.0, 0.0), 0.0, 0),  # nothing speaks for it
        ((0.2, -0.3), 0.0, 0),
    ],
)
def test_an_average_acts_where_its_dreams_are_better(pays, caution, chosen):
    agent, state, metrics = selected(pays, caution)
    assert int(state.selection.chosen) == chosen
    assert metrics["selection/return_1"] == 0 and metrics["selection/rate"] == (1.0, 0.25)[chosen]
    assert metrics["selection/return_0.25"] == pytest.approx(STEPS * np.mean(pays), abs=1e-5)
    assert metrics["selection/spread"] == pytest.approx(chosen * STEPS * np.std(pays), abs=1e-5)
    policy, feature = agent.policy_of(state), jnp.zeros(2)
    assert int(agent.decide(policy, (), feature, KEY, True).action.argmax()) == chosen
    assert int(agent.decide(policy, (), feature, KEY, False).action.argmax()) == 0  # learning goes on from what it was


def test_a_lead_that_depends_on_where_dreams_begin_has_to_be_larger():
    # A gain of 0.2 a step, or -0.4 and 0.8 by the start: a deviation of 0.6 over 32 starts is a standard error of 0.11.
    chosen = {caution: int(selected((0.2, 0.2), caution, slope=0.6)[1].selection.chosen) for caution in (0.0, 0.5, 5.0)}
    assert chosen == {0.0: 1, 0.5: 1, 5.0: 0}


def test_a_dream_ends_where_that_is_more_likely_than_not():
    assert selected((0.5, 0.5), 0.0, ending=0.4)[2]["selection/return"] == pytest.approx(STEPS * 0.5)
    assert selected((0.5, 0.5), 0.0, ending=0.6)[2]["selection/return"] == pytest.approx(0.5)


def test_averages_follow_the_actor():
    selection, one = PolicySelection(rates=(1.0, 0.25)), {"w": jnp.ones(2)}
    state = selection.follow(selection.init({"w": jnp.zeros(2)}), one)
    np.testing.assert_allclose([average["w"][0] for average in state.averages], [1.0, 0.25])
    np.testing.assert_allclose(selection.follow(state, one).averages[1]["w"], 1 - 0.75**2)


def test_what_is_learned_does_not_depend_on_what_is_chosen():
    """The same agent and keys with a selection and without, after a block of updates."""
    network = {"kind": "MLP", "hidden": [6]}
    small = {"trajectories": 4, "horizon": 2, "actor": network, "critic": network}
    world = {"members": 2, "dynamics": network, "ending": network}
    with_it = small | {"selection": {"kind": "PolicySelection", "starts": 2, "steps": 3}}
    after = []
    for agent in (small, with_it):
        config = configuration.merge(Config(), {"world_model": world, "agent": agent, "improve": {"block": 1}})
        algorithm = config.algorithm(ARMS)
        state = algorithm.init(jax.random.key(0))
        after.append(algorithm.dream(replace(state, replay=replace(state.replay, added=jnp.asarray(8))))[0])
    without, chosen = after
    assert same(without.agent.actor, chosen.agent.actor) and same(without.agent.critic, chosen.agent.critic)
    assert same(without.keys.dream, chosen.keys.dream) and same(without.counters, chosen.counters)


def test_the_report_says_which_policy_acts():
    row = {"selection/rate": 0.002, "selection/return": -150.0, "selection/return_1": -190.0, "selection/return_0.002": -150.0}
    page = chosen_html([row])
    assert "average over about 500 updates" in page and "-150 of rate 0.002, -190 of rate 1" in page
    assert "last update" in chosen_html([row | {"selection/rate": 1.0}])
