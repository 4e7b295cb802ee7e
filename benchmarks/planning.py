"""Time of one plan on Pendulum-v1 sizes: spiking and conventional ensemble here, the same plan in plain PyTorch and in mbrl-lib.

    python benchmarks/planning.py [--members 5 --candidates 500 --horizon 20 --iterations 4] [--torch PYTHON] [--record]

CEM scores `candidates` sequences of `horizon` steps in each of `iterations` iterations; each candidate is judged by one member
(trajectory sampling). All networks have one hidden layer of `hidden` units. PyTorch and mbrl-lib run in a process of `--torch`, a
Python that has them:

    pip install torch && pip install --no-deps mbrl==0.2.0
    pip install gym gymnasium hydra-core omegaconf termcolor imageio tqdm

The parties take turns, so that their ratio holds on a machine whose speed drifts; a figure is the median over calls after a
warm-up. `--record` writes `results/planning-time-*.json`.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP, CALLS, ROUNDS = 3, 7, 3
ROWS = {"spikedream, spiking": "spiking", "spikedream, MLP": "mlp", "PyTorch, MLP": "torch", "mbrl-lib, MLP": "mbrl"}


def milliseconds(call: Callable[[], Any]) -> list[float]:
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def here(sizes: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    import jax
    import numpy as np

    from spikedream.agents.mpc import MPC
    from spikedream.algorithm import Algorithm
    from spikedream.planners.cem import CEM
    from spikedream.replay.ring import ReplayBuffer
    from spikedream.snn.networks import SpikingNetwork
    from spikedream.snn.neurons import LIF
    from spikedream.spec import Spec
    from spikedream.world_models.ensemble import Ensemble

    spec = Spec(3, 1, discrete=False, action_low=(-2.0,), action_high=(2.0,))
    search = CEM(candidates=sizes.candidates, iterations=sizes.iterations, elites=max(2, sizes.candidates // 10))
    agent = MPC(search=search, horizon=sizes.horizon, particles="one")
    spiking = SpikingNetwork(hidden=(sizes.hidden,), neuron=LIF(decay=(0.99, 0.999)))
    calls = {}
    for name, dynamics in {"spikedream, spiking": spiking, "spikedream, MLP": spiking.twin()}.items():
        algorithm = Algorithm(spec, Ensemble(members=sizes.members, dynamics=dynamics), agent, None, ReplayBuffer(16), 1)
        state = algorithm.init(jax.random.key(0))
        policy, obs = algorithm.policy(state), np.zeros((1, 3), np.float32)

        def call(algorithm: Any = algorithm, state: Any = state, policy: Any = policy, obs: Any = obs) -> None:
            jax.block_until_ready(algorithm.act(policy, state.carry, obs, state.keys.evaluate, True).action)

        calls[name] = call
    return calls


def there(sizes: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """In the other Python: the same CEM over the same network sizes."""
    import torch

    torch.manual_seed(0)
    members, count, hidden = sizes.members, sizes.candidates // sizes.members, sizes.hidden
    first, second = torch.randn(members, 4, hidden) / 2, torch.randn(members, hidden, 4) / hidden**0.5
    skip = torch.randn(members, 4, 4) * 0.1
    elites = max(2, sizes.candidates // 10)

    @torch.inference_mode()
    def score(actions: Any) -> Any:  # (candidates, horizon, 1)
        groups = actions.reshape(members, count, sizes.horizon, 1)
        obs, total = torch.zeros(members, count, 3), torch.zeros(members, count)
        for t in range(sizes.horizon):
            inputs = torch.cat([obs, groups[:, :, t]], -1)
            out = torch.bmm(torch.nn.functional.silu(torch.bmm(inputs, first)), second) + torch.bmm(inputs, skip)
            obs = (obs + out[..., :3]).clamp(-20, 20)
            total = total + 0.99**t * out[..., 3]
        return total.reshape(-1)

    @torch.inference_mode()
    def plan() -> None:
        mean, spread = torch.zeros(sizes.horizon, 1), torch.full((sizes.horizon, 1), 0.5)
        for _ in range(sizes.iterations):
            actions = (mean + spread * torch.randn(sizes.candidates, sizes.horizon, 1)).clamp(-1, 1)
            best = actions[score(actions).topk(elites).indices]
            mean, spread = 0.1 * mean + 0.9 * best.mean(0), 0.1 * spread + 0.9 * best.std(0)
        float(mean[0, 0])

    return {"PyTorch, MLP": plan, **mbrl(sizes)}


def mbrl(sizes: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    try:
        import gymnasium
        import mbrl.models
        import mbrl.planning
        import numpy as np
        import torch
    except ImportError as error:
        print(f"mbrl-lib is left out: {error}", file=sys.stderr)
        return {}
    model = mbrl.models.GaussianMLP(
        4, 4, device="cpu", num_layers=1, ensemble_size=sizes.members, hid_size=sizes.hidden, deterministic=True,
        propagation_method="random_model", activation_fn_cfg={"_target_": "torch.nn.SiLU"},
    )  # fmt: skip
    dynamics = mbrl.models.OneDTransitionRewardModel(model, target_is_delta=True, normalize=True, learned_rewards=True)
    dynamics.input_normalizer.update_stats(np.random.randn(100, 4).astype(np.float32))
    env = gymnasium.make("Pendulum-v1")
    world = mbrl.models.ModelEnv(
        env, dynamics, lambda act, obs: torch.zeros(obs.shape[0], 1, dtype=torch.bool), None, torch.Generator()
    )
    low, high = [[-1.0]] * sizes.horizon, [[1.0]] * sizes.horizon
    search = mbrl.planning.CEMOptimizer(
        sizes.iterations, 0.1, sizes.candidates, low, high, 0.1, torch.device("cpu"), return_mean_elites=True
    )
    obs = np.zeros(3, np.float32)

    def plan() -> None:
        with torch.inference_mode():
            search.optimize(lambda actions: world.evaluate_action_sequences(actions, obs, 1), torch.zeros(sizes.horizon, 1))

    return {"mbrl-lib, MLP": plan}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"members": 5, "candidates": 500, "horizon": 20, "iterations": 4, "hidden": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--torch", type=Path, help="a Python that has torch, and mbrl if wanted")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    sizes = parser.parse_args()
    if sizes.serve:
        calls = there(sizes)
        for line in sys.stdin:
            print(json.dumps({name: milliseconds(call) for name, call in calls.items()} if line.strip() else {}), flush=True)
        return
    calls, other = here(sizes), None
    if sizes.torch:
        numbers = [f"--{k}={getattr(sizes, k)}" for k in ("members", "candidates", "horizon", "iterations", "hidden")]
        command = [str(sizes.torch), __file__, "--serve", *numbers]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        measured = {name: milliseconds(call) for name, call in calls.items()}
        if other is not None:
            assert other.stdin is not None and other.stdout is not None
            other.stdin.write("go\n")
            other.stdin.flush()
            measured |= json.loads(other.stdout.readline())
        for name, values in measured.items():
            times.setdefault(name, []).extend(values)
    steps = sizes.candidates * sizes.horizon * sizes.iterations
    reference = statistics.median(times["spikedream, MLP"])
    for name, values in times.items():
        median = statistics.median(values)
        rate = f"{steps / median:,.0f} steps/ms; x {median / reference:.1f} of the MLP here"
        print(f"{name:22} {median:8.1f} ms a plan ({min(values):.1f} to {max(values):.1f}; {rate})")
        if sizes.record:
            from spikedream.experiments.record import record_scores

            arguments = ["PYTHON" if argument == str(sizes.torch) else argument for argument in sys.argv[1:]]
            command = shlex.join(["python", "benchmarks/planning.py", *arguments])
            record_scores(f"planning-time-{ROWS[name]}", {"ms a plan": values}, command=command)


if __name__ == "__main__":
    main()
