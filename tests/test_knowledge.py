"""What a user tells of an environment holds in dreams and for real steps; and a run that begins with what another has learned."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import CONTINUOUS, DISCRETE, filled, known
from test_cli import call
from test_resume import DREAMER, ENSEMBLE
from toys import ARMS, KNOWN, still, toy

import spikedream
from spikedream import config as configuration
from spikedream.config import Config, ConfigError
from spikedream.knowledge import Knowledge, decode_action
from spikedream.replay.normalizer import Normalizer
from spikedream.world import World

KEY = jax.random.key(0)


# Told functions, in the environment's units.


def pay(obs, action, following):
    return 10 * following[0] + action


def push(obs, action, following):
    return action[0]


def beyond(obs, action, following):
    return following[0] > obs[0] + 0.5


PAID, ENDED = "test_knowledge:pay", "test_knowledge:beyond"


def test_dreams_go_by_what_is_known_in_the_environments_units():
    plain = toy(still(reward=0.25, ending=0.125), ARMS)
    scale = Normalizer(jnp.full(2, 5.0), jnp.full(2, 2.0), jnp.asarray(4.0), jnp.zeros(()), jnp.ones(()))
    world = World(plain.model, plain.state, scale, knowledge=Knowledge(PAID, ENDED), spec=ARMS)
    memory, action = world.start(jnp.array([0.5, 0.0]), KEY), jnp.eye(3)[2]
    said = jax.jit(lambda m: world.step(m, action, KEY)[1])(memory)
    # Nothing moves: at 5 + 2 x 0.5 the third choice pays 10 x 6 + 2, in units of 4; and there is no step beyond.
    assert float(said.reward) == pytest.approx(62 / 4) and float(said.terminated) == 0.0
    half = World(plain.model, plain.state, scale, knowledge=Knowledge(termination=ENDED), spec=ARMS).step(memory, action, KEY)[1]
    assert float(half.reward) == pytest.approx(0.25) and float(half.terminated) == 0.0
    assert float(known(plain.model, plain.state, ARMS).step(memory, action, KEY)[1].terminated) == 0.125


def test_a_member_alone_goes_by_the_same_knowledge():
    world = World(KNOWN, (), known(KNOWN, (), ARMS).normalizer, knowledge=Knowledge(PAID), spec=ARMS)
    alone, _ = world.member(world.start(jnp.zeros(2), KEY), jnp.zeros((), jnp.int32), alone=True)
    assert alone.knowledge == world.knowledge and alone.spec == ARMS


def test_real_steps_are_learned_from_as_they_are_known_to_be():
    rows = jax.tree.map(lambda x: x[:20], filled(DISCRETE, 20, 24, KEY).data)
    told = Knowledge(PAID, ENDED).retold(DISCRETE, rows)
    np.testing.assert_allclose(told.reward, 10 * rows.next_obs[..., 0] + rows.action.argmax(-1), rtol=1e-5)
    np.testing.assert_array_equal(told.terminated, rows.next_obs[..., 0] > rows.obs[..., 0] + 0.5)
    assert Knowledge().retold(DISCRETE, rows) is rows


def test_an_action_is_told_as_the_environment_takes_it():
    assert int(decode_action(DISCRETE, jnp.array([0.0, 1.0]))) == 1
    np.testing.assert_allclose(decode_action(CONTINUOUS, jnp.array([0.5])), [1.0])
    np.testing.assert_allclose(decode_action(CONTINUOUS, jnp.array([-3.0])), [-2.0])


@pytest.mark.parametrize(
    ("name", "says"),
    [("pay", "written as module:function"), ("no_such_module:pay", "no_such_module cannot be imported"),
     ("test_knowledge:payy", "test_knowledge has no payy")],
)  # fmt: skip
def test_a_function_that_is_not_there_is_named_before_anything_runs(name: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Config(knowledge=Knowledge(reward=name)).check()


def test_a_told_termination_does_not_go_with_a_model_that_never_asks_it() -> None:
    dyna, termination = configuration.named("dyna-cartpole"), {"knowledge": {"termination": ENDED}}
    with pytest.raises(ValueError, match=r"do not end where knowledge.termination says; set agent.dyna to None \(it is Dyna\)"):
        configuration.merge(dyna, termination).check()
    configuration.merge(dyna, {"knowledge": {"reward": PAID}}).check()
    configuration.merge(dyna, termination | {"agent": {"dyna": None}}).check()


TINY: dict[str, Any] = {
    "env": "Pendulum-v1", "max_episode_steps": 20, "budget": 40, "threshold": 1e9, "world_model": ENSEMBLE, "agent": DREAMER,
    "collect": {"seed_episodes": 1, "steps": 10}, "improve": {"first": 2, "then": 2, "block": 1}, "evaluation": {"episodes": 2},
}  # fmt: skip


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> spikedream.Run:
    config = configuration.merge(Config(), TINY)
    return spikedream.train(config, out=tmp_path_factory.mktemp("knowledge") / "first", report=False)


def test_a_run_starts_from_the_world_and_the_experience_of_another(first: spikedream.Run, tmp_path: Path) -> None:
    changes = {"start_from": str(first.directory), "budget": 10, "knowledge": {"reward": "test_knowledge:push"}}
    second = spikedream.train(first.config, out=tmp_path / "second", settings=changes, report=False)
    rows = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert [row["real_steps"] for row in rows] == [0, 10], "what was seen before is learned from before anything new is seen"
    assert second.result is not None
    assert second.result["inherited_steps"] == 40 and second.result["real_steps"] == 10
    before, after = first.experience().in_order(), second.experience().in_order()
    assert after.reward.shape[0] == 50
    np.testing.assert_array_equal(after.obs[:40], before.obs)
    np.testing.assert_allclose(after.reward, 2 * after.action[..., 0], rtol=1e-5)  # a torque of up to 2
    assert float(after.truncated[39, 0]) == 1 and int(second.state.replay.moments.count) == 50


def test_a_run_goes_on_from_what_another_has_learned_without_its_experience(first: spikedream.Run, tmp_path: Path, capsys) -> None:
    asked = ["--start-from", str(first.directory), "--start-with", "weights", "--collect.environments", "2", "--budget", "20"]
    asked += ["--improve.first", "0", "--improve.then", "0", "--world-model.updates", "1"]
    settings = tmp_path / "settings.yaml"
    configuration.save(first.config, settings)
    status, _, error = call(capsys, "train", str(settings), *asked, "--out", str(tmp_path / "second"))
    assert status != 0 and "world_model is another there" in error
    status, _, error = call(capsys, "train", str(settings), *asked[:-2], "--out", str(tmp_path / "second"))
    assert status == 0, error
    second = spikedream.load(tmp_path / "second")
    assert second.result is not None and second.result["inherited_steps"] == 0 and second.counters["first_turn"] == 10
    for mine, theirs in zip(jax.tree.leaves(second.state.agent), jax.tree.leaves(first.state.agent), strict=True):
        np.testing.assert_array_equal(mine, theirs)  # it has not learned anything since
    steps, before, after = second.experience().in_order(), first.state.replay.moments, second.state.replay.moments
    assert steps.reward.shape == (10, 2) and int(after.count) == int(before.count) + 20
    assert (after.low <= before.low).all() and (after.high >= before.high).all()
    other = configuration.merge(
        first.config, {"replay": {"scale": "spread"}, "start_from": str(first.directory), "start_with": "weights"}
    )
    with pytest.raises(ConfigError, match=r"cannot start from .* with weights: state\.replay\..* is another there"):
        spikedream.train(other, out=tmp_path / "third", report=False)


def test_an_agent_that_learns_from_its_own_steps_goes_on_from_weights_alone(tmp_path: Path) -> None:
    small = {"env": "Pendulum-v1", "max_episode_steps": 20, "threshold": 1e9, "evaluation": {"episodes": 2}, "budget": 32}
    chosen = configuration.merge(configuration.named("ppo-pendulum"), small | {"agent": {"rollout": 32}, "collect": {"steps": 32}})
    first = spikedream.train(chosen, out=tmp_path / "first", report=False)
    weights = {"start_from": str(first.directory), "start_with": "weights"}
    second = spikedream.train(chosen, out=tmp_path / "second", settings=weights, report=False)
    assert int(second.state.replay.moments.count) == 64 and second.experience().count == 32
    with pytest.raises(ValueError, match='PPO does not; Dreamer and MPC do, and start_with "weights" takes over none'):
        configuration.merge(chosen, weights | {"start_with": "everything"}).check()


def test_what_does_not_fit_is_not_started_from(first: spikedream.Run, tmp_path: Path) -> None:
    for changes, says in (
        ({"env": "CartPole-v1"}, "spaces is another there"),
        ({"world_model": {"members": 2}}, "world_model is another there"),
        ({"collect": {"environments": 2}}, "collect.environments is another there"),
        ({"start_from": str(tmp_path / "nowhere")}, "no run directory"),
    ):
        settings = {"start_from": str(first.directory)} | changes
        with pytest.raises((ConfigError, spikedream.CheckpointError), match=says):
            spikedream.train(first.config, out=tmp_path / says.split()[0], settings=settings, report=False)
        assert not (tmp_path / says.split()[0]).exists()
    ppo = configuration.merge(configuration.named("ppo-pendulum"), {"start_from": str(first.directory)})
    with pytest.raises(ValueError, match="start_from needs an agent that learns from any experience"):
        ppo.check()
