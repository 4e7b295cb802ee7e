"""What an ending pays, in a world where two of them pay differently and no other step pays at all."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from small import holding
from test_automatic import PLANE, steps_of

from spikedream.config import twin
from spikedream.snn.networks import SpikingNetwork
from spikedream.snn.readouts import MembraneReadout
from spikedream.spec import Spec
from spikedream.world_models.ensemble import Ensemble

KEY = jax.random.key(3)
GOAL, CRASH, COST = 2.0, -1.0, -0.01


def landing():
    """Steps along x from -1.3 to 1.3, by up to 0.3: beyond 1 lies the goal, beyond -1 a crash, and steps in between cost."""
    obs_key, action_key = jax.random.split(KEY)
    obs = jax.random.uniform(obs_key, (600, 2), minval=-1, maxval=1)
    action = jax.random.uniform(action_key, (600, 1), minval=-1, maxval=1)
    following = obs.at[:, 0].add(0.3 * action[:, 0])
    x = following[:, 0]
    reward = jnp.where(x > 1, GOAL, jnp.where(x < -1, CRASH, COST))
    return holding(PLANE, steps_of(obs, action, reward, following, jnp.abs(x) > 1), 600)


def told(model, experience):
    """A function of x, (rows,): rewards, in the environment's units, and probabilities of an ending for steps from there by 0.1."""
    state = jax.jit(lambda k: model.update(model.init(PLANE, k), experience, k, 1500)[0])(KEY)
    normalizer = experience.normalizer

    @jax.jit
    def ask(x):
        obs = normalizer.obs(jnp.stack([x, jnp.zeros(x.shape)], axis=1))
        steps = jax.vmap(lambda o, m: model.predict(state, o, jnp.zeros(0), jnp.full(1, 1 / 3), m, KEY))
        found = jax.tree.map(lambda y: y.mean(0), jax.vmap(lambda m: steps(obs, jnp.full(len(x), m)))(jnp.arange(model.members)))
        return found.reward * normalizer.reward_scale, found.terminated

    return ask


@pytest.mark.parametrize("kind", ["spiking", "conventional"])
def test_what_an_ending_pays_is_promised_by_ending_alone(kind):
    experience = landing()
    model = Ensemble(members=2, dynamics=SpikingNetwork(readout=MembraneReadout()), terminal_reward="ending")
    model = model if kind == "spiking" else twin(model)
    ask = told(model, experience)
    reward, ended = ask(jnp.array([-1.25, 0.0, 0.6, 1.1]))
    assert ended[0] > 0.95 and ended[3] > 0.95 and ended[1] < 0.05 and ended[2] < 0.2
    assert reward[0] == pytest.approx(CRASH, abs=0.2) and reward[3] == pytest.approx(GOAL, abs=0.2)
    assert reward[1] == pytest.approx(COST, abs=0.05)
    # Short of the goal nothing is promised beyond the chance of reaching it; one network for all rewards promises a share there.
    near = jnp.linspace(0.5, 0.75, 26)
    reward, ended = ask(near)
    assert float(jnp.abs(reward - ended * GOAL - (1 - ended) * COST).max()) < 0.1
    reward, ended = told(replace(model, terminal_reward="dynamics"), experience)(near)
    assert float((reward - ended * GOAL - (1 - ended) * COST).max()) > 0.3


def test_a_reward_that_an_ending_s_network_predicts_is_no_error_of_the_dynamics():
    experience = landing()
    model = twin(Ensemble(members=1, terminal_reward="ending"))
    state, key = model.init(PLANE, KEY), jax.random.key(1)
    index = jnp.arange(600)
    steps = experience.gather(index)
    of_ending = model.errors(state, experience, index, key)
    of_dynamics = replace(model, terminal_reward="dynamics").errors(state, experience, index, key)
    differ = of_ending != of_dynamics
    assert bool((differ == (steps.terminated > 0)).all()) and bool((of_ending <= of_dynamics).all())
    assert model.init(Spec(2, 1, discrete=True), KEY).members.ending.layers[-1].bias.shape[-1] == 2
