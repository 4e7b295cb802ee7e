"""Do the probabilistic ensemble's intervals hold what they promise? Coverage on real transitions that it was not fitted to.

    python benchmarks/calibration.py [--env Pendulum-v1 --steps 600 --seeds 10] [--record]

An ensemble with Gaussian heads is fitted to random steps, a fifth of them held out: one half of those scales the predicted
deviations, the coverage is measured on the other half (`calibration/*` in a run's metrics), and once more on fresh episodes.
`--record` writes `results/calibration-*.json`.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from robustness import PRESETS, experience

from spikedream import config as configuration
from spikedream.experiments.record import record_scores
from spikedream.ops.calibration import coverage
from spikedream.spec import Spec
from spikedream.types import Metrics
from spikedream.world_models.ensemble import Ensemble


def measure(model: Ensemble, spec: Spec, seed: int, steps: int, env_id: str) -> tuple[Metrics, Metrics]:
    train = experience(env_id, steps, seed).normalise()
    test = dataclasses.replace(experience(env_id, 1000, 5000 + seed), normalizer=train.normalizer)
    key = jax.random.key(seed)

    @jax.jit
    def fit_and_check(train, test):
        state, metrics = model.update(model.init(spec, key), train, key, model.updates)
        everything = test.gather(jnp.arange(test.capacity))
        return metrics, coverage(model._standard_errors(state, everything, key), jnp.ones(test.capacity))

    return fit_and_check(train, test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--env", choices=PRESETS, default="Pendulum-v1")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--record", action="store_true")
    given = parser.parse_args()
    preset = configuration.named(PRESETS[given.env])
    obs, actions = {"CartPole-v1": (4, 2), "Pendulum-v1": (3, 1)}[given.env]
    spec = Spec(obs, actions, discrete=actions > 1)
    for name, config in {"spiking": preset, "MLP": configuration.twin(preset)}.items():
        model = dataclasses.replace(config.world_model, gaussian=True, holdout=0.2)
        rows = [measure(model, spec, seed, given.steps, given.env) for seed in range(given.seeds)]
        scores: dict[str, list[float]] = {}
        for where, i in {"held-out half": 0, "fresh episodes": 1}.items():
            shares = {level: np.array([float(row[i][f"calibration/coverage_{level}"]) for row in rows]) for level in (50, 90)}
            error = np.mean([float(row[i]["calibration/error"]) for row in rows])
            scores |= {f"{where}, {level} %": x.tolist() for level, x in shares.items()}
            cells = [f"{level} %: mean {x.mean():.3f}, {x.min():.3f} to {x.max():.3f}" for level, x in shares.items()]
            print(
                f"{given.env}, {given.steps} steps, {name}, {where}: {'; '.join(cells)}; calibration error {error:.3f}", flush=True
            )
        if given.record:
            record_scores(f"calibration-{given.env.partition('-')[0].lower()}-{name.lower()}", scores)


if __name__ == "__main__":
    main()
