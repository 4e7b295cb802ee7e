"""Stable-Baselines3 in dreams. Needs it: `make test-extras`."""

import base64
import dataclasses
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_parallel
from gymnasium.vector import AutoresetMode
from test_dream_env import dreams_in
from test_resume import Notes, final_arrays, outcome
from toys import ARMS, CORRIDOR, DIAL, TWO_STEP, origin, still, toy

import spikedream
from spikedream import config as configuration
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.config import Config
from spikedream.envs.make import spec_of
from spikedream.runners import parallel
from spikedream.runners.together import Together
from spikedream.runs import checkpoint

pytestmark = pytest.mark.extras
go, here = test_parallel.go, test_parallel.here


def test_the_face_tells_ends_and_cuts_apart_as_stable_baselines3_wants_it() -> None:
    from stable_baselines3.common.vec_env import VecMonitor

    face = VecMonitor(dreams_in(CORRIDOR, ARMS, horizon=3).stable_baselines3())
    obs = face.reset()
    assert obs.shape == (3, 2) and face.get_attr("render_mode") == [None] * 3 and face.env_is_wrapped(VecMonitor) == [False] * 3
    steps = [face.step(np.array([0, 1, 2])) for _ in range(3)]
    assert [done.all() for _, _, done, _ in steps] == [False, False, True]
    for info in steps[2][3]:
        np.testing.assert_array_equal(info["terminal_observation"], [3, 3])
        assert info["TimeLimit.truncated"] is False and info["imagined"] is False and info["episode"]["r"] == 3
    assert steps[0][3][0] == {"uncertainty": 0.0, "imagined": True} and not steps[2][0].any()
    face = dreams_in(CORRIDOR, ARMS, horizon=2).stable_baselines3()
    face.seed(3)
    face.reset()
    cut = [face.step(np.array([0, 1, 2]))[3] for _ in range(2)][1]
    assert all(info["TimeLimit.truncated"] and (info["terminal_observation"] == 2).all() for info in cut)
    with pytest.raises(ValueError, match="SAME_STEP"):
        dreams_in(CORRIDOR, ARMS, autoreset_mode=AutoresetMode.NEXT_STEP).stable_baselines3()


@pytest.mark.parametrize(
    ("algorithm", "spec", "rules", "settings"),
    [
        ("PPO", ARMS, TWO_STEP, {"n_steps": 8, "batch_size": 32, "learning_rate": 3e-3, "gamma": 0.9}),
        ("DQN", ARMS, still(), {"learning_starts": 50, "learning_rate": 3e-3, "gamma": 0.9, "target_update_interval": 64}),
        ("SAC", DIAL, still(), {"learning_starts": 50, "learning_rate": 3e-3, "gamma": 0.5}),
    ],
)
def test_an_agent_of_stable_baselines3_learns_in_dreams(algorithm: str, spec: Any, rules: Any, settings: dict[str, Any]) -> None:
    import stable_baselines3

    face = dreams_in(rules, spec, count=16, horizon=4).stable_baselines3()
    model = getattr(stable_baselines3, algorithm)("MlpPolicy", face, seed=0, device="cpu", **settings).learn(4000)
    action, _ = model.predict(np.zeros(2, np.float32), deterministic=True)
    assert int(action) == 1 if spec.discrete else abs(float(action[0]) - 0.5) < 0.2


# ---- the agent

TINY = {"kind": "MLP", "hidden": [16]}
SETTINGS: dict[str, Any] = {
    "budget": 90, "max_episode_steps": 40, "threshold": 1e9, "improve": {"first": 4, "then": 2, "block": 1},
    "collect": {"steps": 30}, "evaluation": {"episodes": 2},
    "world_model": {"kind": "Ensemble", "members": 2, "updates": 50, "check_every": 50, "dynamics": TINY, "ending": TINY},
}  # fmt: skip
ALGORITHMS = {  # how each is made to learn something within 64 imagined steps
    "PPO": {"n_steps": 8, "batch_size": 32, "learning_rate": "lin_0.001"},
    "A2C": {"n_steps": 8},
    "DQN": {"learning_starts": 32, "buffer_size": 1000},
    "SAC": {"learning_starts": 32, "buffer_size": 1000},
    "TD3": {"learning_starts": 32, "buffer_size": 1000, "policy_delay": 1},
}
CASES = [("PPO", "CartPole-v1"), ("PPO", "Pendulum-v1"), ("A2C", "CartPole-v1"), ("A2C", "Pendulum-v1"),
         ("DQN", "CartPole-v1"), ("SAC", "Pendulum-v1"), ("TD3", "Pendulum-v1")]  # fmt: skip


def settings(algorithm: str, **agent: Any) -> dict[str, Any]:
    small = {"algorithm": algorithm, "trajectories": 8, "steps": 64, "hidden": [16, 16], "settings": ALGORITHMS[algorithm]}
    return SETTINGS | {"agent": {"kind": "StableBaselines"} | small | agent}


@pytest.mark.parametrize(("algorithm", "env"), CASES)
def test_what_is_mirrored_decides_as_the_library_does_and_goes_on_exactly(algorithm: str, env: str, tmp_path: Path) -> None:
    """The library is asked in the environment's own units: its file needs nothing of ours but the class that standardises."""
    import stable_baselines3

    run = spikedream.train(env, seed=5, out=tmp_path / "run", settings=settings(algorithm), report=False)
    library = getattr(stable_baselines3, algorithm).load(run.directory / "agent.zip", device="cpu")
    scale = np.asarray(run.state.replay.normalizer.scale)
    rng, decided = np.random.default_rng(0), []
    for _ in range(20):
        obs = (3 * rng.normal(size=run.spec.obs_size) * scale).astype(np.float32)
        decided.append(np.asarray(run.policy(obs)))
        np.testing.assert_allclose(decided[-1], library.predict(obs, deterministic=True)[0], rtol=1e-4, atol=1e-4)
    assert len(np.unique(decided)) > 1
    row = run.metrics[-1]
    assert any(name.startswith("stable_baselines/") for name in row) and row["imagined_steps"] == 64 * row["updates"] > 0

    class Stops(Notes):
        def record(self, row: Any) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        spikedream.train(env, seed=5, out=tmp_path / "stopped", settings=settings(algorithm), listener=Stops(), report=False)
    spikedream.resume(tmp_path / "stopped", report=False)
    assert outcome(tmp_path / "stopped") == outcome(run.directory)
    one, other = final_arrays(run.directory), final_arrays(tmp_path / "stopped")
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("algorithm", "env"), CASES)
def test_it_explores_as_the_library_does(algorithm: str, env: str) -> None:
    """Moments of many decisions at one observation, before anything is learned."""
    import torch

    config = configuration.merge(Config(env=env), settings(algorithm))
    alg = config.algorithm(spec_of(env, {}, None))
    state = alg.init(jax.random.key(3))
    learner: Any = alg.host_learner(state)
    if hasattr(learner.model, "exploration_rate"):
        learner.model.exploration_rate = 0.5
    policy = learner.mirror()
    world, obs = alg.world(state), np.full(alg.spec.obs_size, 0.3, np.float32)
    ours = jax.jit(jax.vmap(lambda k: alg.agent.act(policy, world, alg.agent.start(policy, world), jnp.asarray(obs), k, False)))
    decision = ours(jax.random.split(jax.random.key(1), 4000))
    torch.manual_seed(0)
    np.random.seed(0)
    learner.model.action_space.seed(0)
    learner.model._last_obs = np.repeat(obs[None], 8, axis=0)
    if hasattr(learner.model, "_sample_action"):
        learner.model.num_timesteps = 10_000
        theirs = np.concatenate([learner.model._sample_action(32, learner.model.action_noise, 8)[1] for _ in range(500)])
    else:
        theirs = np.concatenate([learner.model.predict(learner.model._last_obs)[0] for _ in range(500)])
    if alg.spec.discrete:
        theirs = np.eye(alg.spec.action_size)[theirs.reshape(-1)]
    elif not hasattr(learner.model, "_sample_action"):
        theirs = theirs / 2  # Pendulum's torque
    action = np.asarray(decision.action)
    tolerance = 0.06 if algorithm == "DQN" else 0.03  # a whole batch of theirs is random or not
    np.testing.assert_allclose(action.mean(0), theirs.reshape(action.shape).mean(0), atol=tolerance)
    np.testing.assert_allclose(action.std(0), theirs.reshape(action.shape).std(0), atol=tolerance)
    assert np.isfinite(decision.log_prob).all()
    if alg.spec.discrete:  # of each action the probability with which it is taken
        chosen = np.exp(np.asarray(decision.log_prob))[action[:, 0] > 0]
        assert chosen[0] == pytest.approx(action[:, 0].mean(), abs=0.03)


def test_an_agent_in_a_world_that_remembers_sees_what_is_remembered(tmp_path: Path) -> None:
    world = {"kind": "Recurrent", "latent": 3, "context": 3, "network": {"kind": "GRU", "hidden": 4},
             "ensemble": SETTINGS["world_model"]}  # fmt: skip
    chosen = settings("PPO") | {"world_model": world, "bonus": "RandomNetworkDistillation"}
    run = spikedream.train("CartPoleHiddenVelocity-v0", seed=1, out=tmp_path / "run", settings=chosen, report=False)
    assert run.state.agent.actor.layers[0].weight.shape == (run.spec.obs_size + 3, 16)
    assert np.isfinite(run.evaluate(2).returns).all()


def test_weights_of_a_zip_are_taken_and_nothing_in_it_is_unpickled(tmp_path: Path) -> None:
    first = spikedream.train("CartPole-v1", seed=5, out=tmp_path / "first", settings=settings("PPO"), report=False)
    config = configuration.merge(Config(), settings("PPO", weights=str(first.directory / "agent.zip")))
    alg = config.algorithm(first.spec)
    state = alg.init(jax.random.key(9))
    learner: Any = alg.host_learner(state)
    np.testing.assert_array_equal(learner.mirror().actor.layers[-1].weight, first.state.agent.actor.layers[-1].weight)
    # The same file with something nasty in place of what is pickled.
    evil = tmp_path / "evil.zip"
    with zipfile.ZipFile(first.directory / "agent.zip") as old, zipfile.ZipFile(evil, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "data":
                data = json.loads(content)
                data["policy_class"] = {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(Nasty())).decode()}
                content = json.dumps(data).encode()
            new.writestr(name, content)
    again = configuration.merge(config, {"agent": {"weights": str(evil)}})
    assert alg.host_learner(state) is not None and again.algorithm(first.spec).host_learner(state) is not None
    assert not Nasty.ran
    with pytest.raises(ValueError, match=r"does not hold the weights of this agent"):
        configuration.merge(config, {"agent": {"hidden": [8]}}).algorithm(first.spec).host_learner(
            configuration.merge(config, {"agent": {"hidden": [8]}}).algorithm(first.spec).init(jax.random.key(0))
        )


@pytest.mark.parametrize("what", ["everything", "weights"])
@pytest.mark.parametrize(("algorithm", "env"), [("PPO", "CartPole-v1"), ("SAC", "Pendulum-v1")])
def test_a_run_goes_on_from_what_the_library_held_in_another(algorithm: str, env: str, what: str, here, tmp_path: Path) -> None:
    def fixed(settings: dict[str, Any]) -> dict[str, Any]:  # whose updates change nothing: what is there was taken over
        return settings | {"learning_rate": 0.0} | ({"tau": 1e-12} if algorithm == "SAC" else {})

    first = configuration.merge(Config(env=env, seed=5), settings(algorithm))
    first = spikedream.train(first, out=tmp_path / "first", report=False)
    chosen = settings(algorithm, settings=fixed(ALGORITHMS[algorithm])) | {"env": env, "seed": 6, "budget": 30}
    chosen |= {"start_from": str(first.directory), "start_with": what, "collect": {"steps": 10}}
    before = final_arrays(first.directory)
    for runner in ("Sync", "Parallel"):
        config = configuration.merge(Config(), chosen | {"runner": runner})
        if runner == "Sync":
            spikedream.train(config, out=tmp_path / runner, report=False)
        else:
            go(config, tmp_path / runner)
        run, after = spikedream.load(tmp_path / runner), final_arrays(tmp_path / runner)
        assert run.counters["updates"] > 0
        taken = [name for name in before if name.startswith("learner.policy:") and "features_extractor" not in name]
        assert len(taken) > 4
        for name in taken:
            np.testing.assert_allclose(after[name], before[name], atol=1e-6, err_msg=name)
        counted = "learner.count:num_timesteps"
        assert after[counted] - before[counted] == run.counters["imagined_steps"] > 0
    for wrong, says in (
        ({"algorithm": "A2C" if algorithm == "PPO" else "TD3", "settings": {}}, "agent.algorithm is another there"),
        ({"hidden": [8]}, r"state\.agent\.actor.* is another there"),
    ):
        config = configuration.merge(Config(), chosen | {"agent": chosen["agent"] | wrong})
        with pytest.raises(spikedream.ConfigError, match=says):
            spikedream.train(config, out=tmp_path / "wrong", report=False)
        assert not (tmp_path / "wrong").exists()


class Nasty:
    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Nasty, "ran", True)


@pytest.mark.parametrize(
    ("algorithm", "wrong", "message"),
    [
        ("PPO", {"n_stepps": 3}, r"agent\.settings does not fit PPO: .*n_stepps"),
        ("SAC", {"ent_coef": "much"}, r"agent\.settings does not fit SAC: .*much"),
        ("PPO", {"policy_kwargs": {"nonsense": 1}}, r"agent\.settings does not fit PPO: .*nonsense"),
    ],
)
def test_settings_that_the_library_does_not_take_are_said(algorithm: str, wrong: dict[str, Any], message: str) -> None:
    env = "CartPole-v1" if algorithm == "PPO" else "Pendulum-v1"
    alg = configuration.merge(Config(env=env), settings(algorithm, settings=wrong)).algorithm(spec_of(env, {}, None))
    with pytest.raises(ValueError, match=message):
        alg.host_learner(alg.init(jax.random.key(0)))


def test_what_is_no_longer_a_number_ends_the_run_with_a_line(tmp_path: Path) -> None:
    chosen = settings("PPO", settings=ALGORITHMS["PPO"] | {"learning_rate": 1e30})
    with pytest.raises(spikedream.Diverged, match="stable_baselines/weights"):
        spikedream.train("CartPole-v1", seed=1, out=tmp_path / "run", settings=chosen, report=False)
    assert spikedream.load(tmp_path / "run").counters["updates"] == 0  # the checkpoint before


@pytest.mark.parametrize(("algorithm", "env"), [("PPO", "CartPole-v1"), ("SAC", "Pendulum-v1")])
def test_beside_collectors_it_learns_in_a_process_of_its_own(algorithm: str, env: str, here, tmp_path: Path, monkeypatch) -> None:
    """The parts are objects of this process, whose answers may be lost; it is stopped, and goes on with what the library held."""
    import stable_baselines3

    monkeypatch.setattr(parallel, "TOLD", 0.0)
    monkeypatch.setattr(here, "fails", iter(np.random.default_rng(0).random(10_000) < 0.05))
    chosen = settings(algorithm) | {"env": env, "runner": {"kind": "Parallel", "rows": 8, "failures": 20}, "budget": 120}
    chosen |= {"collect": {"seed_episodes": 1, "steps": 10}, "checkpoint": {"best": True}}
    config = configuration.merge(Config(), chosen)
    with pytest.raises(spikedream.Interrupted):
        go(config, tmp_path / "run", stop=80)
    taken = final_arrays(tmp_path / "run")["learner.count:num_timesteps"]
    driver = go(spikedream.load(tmp_path / "run").config, tmp_path / "run", resume=True)
    run, after = spikedream.load(tmp_path / "run"), final_arrays(tmp_path / "run")
    assert after["learner.count:num_timesteps"] == run.counters["imagined_steps"] == 64 * run.counters["updates"]
    assert run.counters["imagined_steps"] > taken > 0 and driver.learner is not None
    assert not any(name.startswith("learner.") for name in checkpoint.load(tmp_path / "run" / "best").arrays)
    library = getattr(stable_baselines3, algorithm).load(run.directory / "agent.zip", device="cpu")
    for obs in np.random.default_rng(0).normal(size=(8, run.spec.obs_size)).astype(np.float32):
        np.testing.assert_allclose(run.policy(obs), library.predict(obs, deterministic=True)[0], rtol=1e-4, atol=1e-4)


def test_beside_collectors_wrong_settings_are_said_before_anything_is_written(here, tmp_path: Path) -> None:
    chosen = settings("PPO", settings={"n_stepps": 3}) | {"runner": {"kind": "Parallel"}}
    with pytest.raises(ValueError, match=r"agent\.settings does not fit PPO"):
        go(configuration.merge(Config(), chosen), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_seeds_together_are_refused(tmp_path: Path) -> None:
    config = configuration.merge(Config(), settings("PPO"))
    with pytest.raises(ValueError, match="leave --together out"):
        Together([config], [tmp_path / "0"], [Notes()])


def test_every_number_changes_what_is_learned() -> None:
    """Those of `dreams` change the compiled step: test_dream_env.py."""
    world, experience, spec = toy(still(), ARMS), origin(ARMS), ARMS

    def learned(**changes: Any) -> list[np.ndarray]:
        config = configuration.merge(Config(), settings("PPO", **changes))
        learner: Any = config.agent.host_learner(spec, world, experience, jax.random.key(0))
        state, _ = learner.improve(None, world, experience, 2, jax.random.key(1))
        return [np.asarray(x) for x in jax.tree.leaves(state.actor)]

    plain, again = learned(), learned()
    assert all(np.array_equal(a, b) for a, b in zip(plain, again, strict=True))
    fields = {f.name: getattr(StableBaselines(), f.name) for f in dataclasses.fields(StableBaselines)}
    numbers = {name for name, value in fields.items() if isinstance(value, int)}
    for name, value in (("trajectories", 16), ("steps", 128), ("schedule", 300)):
        numbers.remove(name)
        assert any(a.shape != b.shape or not np.array_equal(a, b) for a, b in zip(plain, learned(**{name: value}), strict=True))
    assert not numbers
