"""A new task on dynamics that are known: learned from dreams, with one more real step of each environment that RUN has.

    spikedream train pendulum --out RUN
    python benchmarks/new_task.py RUN [--out runs/spin]

The pendulum that RUN has learned to hold upright is now paid for turning, the faster the better. Both policies then play the same
fresh episodes; told is how fast the pendulum turns in their second half.
"""

import argparse
from pathlib import Path

import gymnasium
import jax
import numpy as np

import spikedream


def spin(obs: jax.Array, action: jax.Array, following: jax.Array) -> jax.Array:
    """Pendulum-v1 observes cosine, sine and angular velocity, in rad/s and at most 8."""
    return following[2] / 8


def speeds(run: spikedream.Run, episodes: int) -> np.ndarray:
    """(episodes,) mean angular velocity in rad/s."""
    env, found = gymnasium.make("Pendulum-v1"), []
    for episode in range(episodes):
        run.policy.reset()
        obs, _ = env.reset(seed=90_000 + episode)
        turning = []
        for _ in range(200):
            obs = env.step(run.policy(obs))[0]
            turning.append(obs[2])
        found.append(np.mean(turning[100:]))
    env.close()
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/spin"))
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    before = spikedream.load(given.run)
    settings = {
        "start_from": str(given.run), "knowledge": {"reward": "new_task:spin"}, "budget": 1, "threshold": 1e9,
        "collect": {"steps": 1}, "evaluation": {"episodes": 10, "confirmations": 0},
    }  # fmt: skip
    after = spikedream.train(before.config, out=given.out, settings=settings)
    for name, run in (("before", before), ("after", after)):
        found = speeds(run, given.episodes)
        print(f"{name}: {found.mean():+.2f} rad/s ({found.min():+.2f} to {found.max():+.2f})")
    assert after.result is not None
    print(f"new real steps: {after.result['real_steps']}, taken over: {after.result['inherited_steps']}")


if __name__ == "__main__":
    main()
