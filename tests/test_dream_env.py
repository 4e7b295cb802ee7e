"""The dream as an environment, in worlds whose answers are known."""

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from programs import program
from small import CONTINUOUS, changed, filled, small
from toys import ARMS, CORRIDOR, DIAL, Rules, origin, still, toy

from spikedream import config as configuration
from spikedream.agents.stable_baselines import StableBaselines
from spikedream.algorithm import Algorithm
from spikedream.bonuses.random_network_distillation import RandomNetworkDistillation
from spikedream.config import twin
from spikedream.dream_env import vector
from spikedream.dream_env.stepped_dreams import SteppedDreams
from spikedream.dream_env.vector import DreamVecEnv
from spikedream.replay.normalizer import Normalizer
from spikedream.replay.ring import ReplayBuffer
from spikedream.spec import Spec
from spikedream.world_models.recurrent import Recurrent

KEY = jax.random.key(0)


def dreams_in(rules: Rules, spec: Spec, count: int = 3, **settings: Any) -> DreamVecEnv:
    fields = {name: settings.pop(name) for name in list(settings) if name in SteppedDreams.__dataclass_fields__}
    return DreamVecEnv(spec, toy(rules, spec), origin(spec), count, SteppedDreams(**fields), **settings)


def played(env: DreamVecEnv, actions: Any, steps: int) -> list[tuple]:
    env.reset(seed=1)
    return [env.step(np.asarray(actions)) for _ in range(steps)]


def test_a_dream_that_ends_terminates_and_another_begins_in_the_same_step() -> None:
    steps = played(dreams_in(CORRIDOR, ARMS, horizon=3), [0, 1, 2], 4)  # it ends where the count reaches three
    obs, reward, terminated, truncated, infos = map(list, zip(*steps, strict=True))
    assert [t.all() for t in terminated] == [False, False, True, False] and not np.any(truncated)
    assert np.array(reward).tolist() == [[1.0] * 3] * 4
    assert [o[0, 0] for o in obs] == [1, 2, 0, 1]  # the third is where the next dream begins, a replayed observation
    assert [i["imagined"].all() for i in infos] == [True, True, False, True]
    np.testing.assert_array_equal(infos[2]["final_obs"], np.full((3, 2), 3.0))
    assert infos[2]["_final_obs"].all() and "final_obs" not in infos[0]


def test_a_dream_that_passes_the_horizon_is_truncated_and_none_before() -> None:
    steps = played(dreams_in(CORRIDOR, ARMS, horizon=2), [0, 1, 2], 4)
    assert [t.all() for _, _, _, t, _ in steps] == [False, True, False, True] and not any(t.any() for _, _, t, _, _ in steps)
    np.testing.assert_array_equal(steps[1][4]["final_obs"], np.full((3, 2), 2.0))


def test_another_dream_begins_in_the_next_step_where_that_is_asked_for() -> None:
    env = dreams_in(CORRIDOR, ARMS, autoreset_mode=AutoresetMode.NEXT_STEP)
    steps = played(env, [0, 1, 2], 5)
    assert [o[0, 0] for o, *_ in steps] == [1, 2, 3, 0, 1]
    assert [r[0] for _, r, *_ in steps] == [1, 1, 1, 0, 1]
    assert [bool(t[0]) for _, _, t, _, _ in steps] == [False, False, True, False, False]
    assert [bool(i["imagined"][0]) for *_, i in steps] == [True, True, True, False, True]
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    with pytest.raises(ValueError, match="must be SAME_STEP or NEXT_STEP"):
        dreams_in(CORRIDOR, ARMS, autoreset_mode=AutoresetMode.DISABLED)


def test_a_dream_that_loses_trust_is_truncated_and_only_that_one() -> None:
    env = dreams_in(still(doubt=True), ARMS, horizon=100, uncertainty_limit=1.5, uncertainty_penalty=0.25)
    steps = played(env, [0, 1, 2], 4)  # the model doubts 1 in each step, but for the second action
    assert [t.tolist() for _, _, _, t, _ in steps] == [[False] * 3, [True, False, True]] * 2
    assert not any(t.any() for _, _, t, _, _ in steps)
    np.testing.assert_array_equal(steps[0][4]["uncertainty"], [1, 0, 1])
    np.testing.assert_allclose(steps[0][1], [-0.25, 1, -0.25])  # the reward, less the penalty
    assert steps[1][4]["imagined"].tolist() == [False, True, False]


def test_everything_is_in_the_environments_own_units() -> None:
    spec = replace(DIAL, action_low=(2.0,), action_high=(6.0,))
    world = toy(still(), spec)
    scale = Normalizer(jnp.array([5.0, -5.0]), jnp.array([2.0, 4.0]), jnp.asarray(10.0), *map(jnp.asarray, (-1.0, 1.0)))
    experience = replace(origin(spec), normalizer=scale)
    env = DreamVecEnv(spec, replace(world, normalizer=scale), experience, 2)
    obs, infos = env.reset(seed=0)
    np.testing.assert_allclose(obs, np.zeros((2, 2)), atol=1e-6)  # the replayed ones, as they were
    assert not infos["imagined"].any() and obs.dtype == np.float32
    obs, reward, *_ = env.step(np.array([[5.0], [2.0]]))  # 0.5 and -1 in what the world sees
    np.testing.assert_allclose(reward, [10.0, -10.0], atol=1e-5)  # 1 - 1.5^2 is below what has been seen
    np.testing.assert_allclose(obs, np.zeros((2, 2)), atol=1e-6)
    assert env.single_action_space == gymnasium.spaces.Box(2, 6, (1,), np.float32)


def test_the_same_seed_and_actions_give_the_same_dreams_and_starts_are_noisy_where_asked() -> None:
    def course(seed: int, noise: float) -> np.ndarray:
        env = dreams_in(still(), DIAL, start_noise=noise, horizon=2, seed=seed)
        return np.stack([env.reset()[0], *(env.step(np.zeros((3, 1)))[0] for _ in range(5))])

    assert np.array_equal(course(0, 1.0), course(0, 1.0)) and not np.array_equal(course(0, 1.0), course(1, 1.0))
    assert not course(0, 0.0).any() and len(np.unique(course(0, 1.0)[:, :, 0])) == 3 * 3  # three starts of three dreams


def test_a_later_fit_compiles_nothing_anew() -> None:
    env = dreams_in(still(), DIAL)
    played(env, np.zeros((3, 1)), 2)
    before = vector._step._cache_size(), vector._begin._cache_size()
    env.dream_in(toy(CORRIDOR, DIAL), origin(DIAL))
    with pytest.raises(ValueError, match=r"step\(\) before reset\(\)"):
        env.step(np.zeros((3, 1)))
    steps = played(env, np.zeros((3, 1)), 2)
    assert steps[-1][0][0, 0] == 2 and (vector._step._cache_size(), vector._begin._cache_size()) == before


def test_gymnasiums_own_wrappers_count_what_is_dreamt() -> None:
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(dreams_in(CORRIDOR, ARMS))
    env.reset(seed=0)
    infos = [env.step(np.array([0, 1, 2]))[4] for _ in range(3)]
    assert infos[2]["episode"]["r"].tolist() == [3, 3, 3] and infos[2]["episode"]["l"].tolist() == [3, 3, 3]


def test_a_world_that_remembers_and_one_with_a_bonus_can_be_dreamt_in() -> None:
    agent, spec = cast(Any, None), CONTINUOUS
    algorithm = Algorithm(spec, small(twin(Recurrent())), agent, small(twin(RandomNetworkDistillation())), ReplayBuffer(24), 1)
    experience = filled(spec, 20, 24, jax.random.key(7))
    nothing = jnp.zeros(())  # is all that has been paid, so that what is paid is the bonus
    scale = replace(experience.normalizer, reward_low=nothing, reward_high=nothing)
    world = algorithm._world(algorithm.world_model.init(spec, KEY), scale, ())
    world = replace(world, bonus_state=algorithm.bonus.init(spec, world, KEY))
    env = DreamVecEnv(spec, world, experience, 4, SteppedDreams(horizon=2), remembered=True)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (4, spec.obs_size + world.model.latent)
    real = np.asarray(experience.data.obs[:20, 0])
    assert all(np.isclose(real, row[None, : spec.obs_size], atol=1e-5).all(1).any() for row in obs)
    steps = [env.step(np.zeros((4, 1))) for _ in range(3)]
    assert [step[3].all() for step in steps] == [False, True, False]
    assert all(env.observation_space.contains(step[0]) and (step[1] > 0).all() for step in steps)


def test_what_cannot_be_dreamt_is_said() -> None:
    nothing = ReplayBuffer(8).init(ARMS)
    with pytest.raises(ValueError, match="replayed real steps, and there are none yet"):
        DreamVecEnv(ARMS, toy(still(), ARMS), nothing, 2).reset()
    with pytest.raises(ValueError, match="0 dreams"):
        DreamVecEnv(ARMS, toy(still(), ARMS), origin(ARMS), 0)
    env = dreams_in(still(), DIAL)
    env.reset()
    with pytest.raises(ValueError, match=r"\(3,\); 3 dreams need \(3, 1\)"):
        env.step(np.zeros(3))
    with pytest.raises(ValueError, match="uncertainty_limit is -1"):
        SteppedDreams(uncertainty_limit=-1)


def test_what_needs_stable_baselines3_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"not installed: pip install 'spikedream\[sb3\]'"):
        dreams_in(still(), ARMS).stable_baselines3()
    with pytest.raises(ImportError, match=r"not installed: pip install 'spikedream\[sb3\]'"):
        StableBaselines().host_learner(ARMS, toy(still(), ARMS), origin(ARMS), KEY)


@pytest.mark.parametrize(
    ("algorithm", "spec", "message"),
    [
        ("SAC", ARMS, "SAC needs a continuous action space; PPO, A2C, DQN act in discrete ones: set agent.algorithm"),
        ("DQN", DIAL, "DQN needs a discrete action space; PPO, A2C, SAC, TD3 act in continuous ones"),
    ],
)
def test_an_algorithm_that_does_not_fit_the_actions_is_said(algorithm: Any, spec: Spec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StableBaselines(algorithm).init(spec, toy(still(), spec), KEY)


@pytest.mark.parametrize("wrong", [{"seed": 3}, {"use_sde": True}, {"policy_kwargs": {"net_arch": [8]}}])
def test_settings_that_are_the_run_s_own_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"settings\.(seed|use_sde|policy_kwargs\.net_arch) cannot be set; networks are given by"):
        StableBaselines(settings=wrong)


def test_an_agent_with_settings_can_be_told_apart_and_survives_its_file(tmp_path: Path) -> None:
    text = "agent: {kind: StableBaselines, algorithm: SAC, settings: {learning_rate: 3e-4, train_freq: [1, step]}}"
    config = configuration.parse(text, "here")
    configuration.save(config, tmp_path / "config.yaml")
    assert configuration.load(tmp_path / "config.yaml") == config != configuration.parse(text.replace("3e-4", "1e-3"), "here")
    assert hash(config.agent) == hash(configuration.load(tmp_path / "config.yaml").agent)


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(SteppedDreams)])
def test_every_number_changes_what_is_dreamt(field: str) -> None:
    dreams = SteppedDreams(uncertainty_limit=1.0)
    world, experience = toy(still(), ARMS), origin(ARMS)

    def course(dreams: SteppedDreams) -> str:
        def run(key: jax.Array) -> Any:
            standing, seen = dreams.begin(world, experience, 2, key)
            return seen, dreams.step(world, experience, standing, jnp.zeros((2, 3)), "SameStep")

        return program(run, KEY)

    assert course(replace(dreams, **{field: changed(getattr(dreams, field))})) != course(dreams)
