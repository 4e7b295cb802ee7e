"""Stable-Baselines3 in dreams. Needs it: `make test-extras`."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from test_dream_env import dreams_in
from toys import ARMS, CORRIDOR, DIAL, TWO_STEP, still

pytestmark = pytest.mark.extras


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
