"""What improves a `StableBaselines` agent: the library's own algorithm, its networks, optimisers and buffer, in PyTorch.

Only for those who have Stable-Baselines3: it is imported here. Nothing is unpickled: parameters are read as arrays, or from a .zip
as weights alone, into an algorithm that is built from the run's configuration.
"""

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import stable_baselines3 as sb3  # pyright: ignore[reportMissingImports] - an extra
import torch  # pyright: ignore[reportMissingImports]
from jax import Array
from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.logger import KVWriter, Logger  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.noise import NormalActionNoise  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr  # pyright: ignore[reportMissingImports]
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor  # pyright: ignore[reportMissingImports]

from spikedream.agents.stable_baselines import StableBaselines, StableBaselinesState
from spikedream.dream_env.vector import DreamVecEnv
from spikedream.snn.affine import Affine
from spikedream.snn.conventional import MLPParams
from spikedream.spec import Spec
from spikedream.types import Experience
from spikedream.world import World

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU, "silu": torch.nn.SiLU}
BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
COUNTS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "exploration_rate")  # what learning goes on from
Arrays = dict[str, np.ndarray]


class Standardise(BaseFeaturesExtractor):
    """Raw observations on the scale that the world model has: what is kept in a buffer does not depend on it.

    Saved agents name this class.
    """

    def __init__(self, observation_space: Any):
        size = observation_space.shape[0]
        super().__init__(observation_space, size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))

    def forward(self, observations: Any) -> Any:
        return (observations - self.mean) / self.scale


class StableBaselinesLearner:
    """The algorithm, its environment of dreams, and the way of its weights to the agent's state.

    Args:
        agent: hyper-parameters.
        spec: of the environment.
        world: in which it will dream; fitted or not.
        experience: from which dreams begin; nothing yet, maybe.
        key: decides its first weights.

    Raises:
        ValueError: the algorithm does not take the settings, or `weights` are not those of such an agent.
    """

    def __init__(self, agent: StableBaselines, spec: Spec, world: World, experience: Experience, key: Array):
        torch.set_num_threads(1)  # faster than several for networks of this size
        self.agent, self.spec = agent, spec
        self.dreams = DreamVecEnv(spec, world, experience, agent.trajectories, agent.dreams, remembered=True)
        self._noise = np.full(spec.action_size, agent.noise, np.float32)
        self.model = self._build(_seed(key))
        self._writer = _Latest()
        self.model.set_logger(Logger(None, [self._writer]))
        if agent.weights is not None:
            self._load(Path(agent.weights))

    def _build(self, seed: int) -> Any:
        agent, schedule = self.agent, self.agent.schedule

        def progress(self: Any, taken: int, total: int) -> None:
            self._current_progress_remaining = max(0.0, 1.0 - taken / schedule)

        # The library counts from one call of `learn` to its end; a run makes many.
        kind = type(agent.algorithm, (getattr(sb3, agent.algorithm),), {"_update_current_progress_remaining": progress})
        settings = {name: setting(value) for name, value in agent.settings.items() if name != "action_noise"}
        policy = dict(settings.pop("policy_kwargs", {}))
        policy |= {"net_arch": list(agent.hidden), "activation_fn": ACTIVATIONS[agent.activation]}
        policy |= {"features_extractor_class": Standardise}
        if self._noise.any():
            settings["action_noise"] = NormalActionNoise(np.zeros_like(self._noise), self._noise)
        settings = {"device": "cpu"} | settings
        try:
            return kind("MlpPolicy", self.dreams.stable_baselines3(), seed=seed, policy_kwargs=policy, **settings)
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"agent.settings does not fit {agent.algorithm}: {' '.join(str(error).split())}") from error

    def _load(self, file: Path) -> None:
        try:
            _, weights, _ = load_from_zip_file(file, device=self.model.device, load_data=False)
            self.model.set_parameters(weights)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            what = " ".join(str(error).split())[:200]
            raise ValueError(f"agent.weights is {file}, which does not hold the weights of this agent: {what}") from error

    # ---- learning

    def improve(
        self, state: StableBaselinesState, world: World, experience: Experience, updates: int, key: Array
    ) -> tuple[StableBaselinesState, dict[str, Any]]:
        """So many updates in dreams of this world, from fresh starts."""
        model = self.model
        self.dreams.dream_in(world, experience)
        self._standardise(world)
        model.set_random_seed(_seed(key))  # also of the dreams: what follows does not depend on what came before in this process
        model._last_obs = None
        before, watch = model.num_timesteps, _Watch()
        try:
            model.learn(self.agent.steps * updates, watch, log_interval=1, reset_num_timesteps=False)
        except ValueError:
            if self._finite():  # PyTorch refuses to draw from what is no longer a number
                raise
        metrics = {"imagined_steps": np.int32(model.num_timesteps - before)} | watch.metrics()
        latest = self._writer.values | model.logger.name_to_value
        told = {name.removeprefix("train/"): value for name, value in latest.items() if name.startswith("train/")}
        metrics |= {f"stable_baselines/{name}": float(value) for name, value in told.items()}
        if not self._finite():
            metrics["stable_baselines/weights"] = float("nan")
        return self.mirror(), metrics

    def _standardise(self, world: World) -> None:
        """What is remembered has no scale of its own."""
        for module in self.model.policy.modules():
            if isinstance(module, Standardise):
                size = self.spec.obs_size
                module.mean[:size] = torch.as_tensor(np.array(world.normalizer.mean))
                module.scale[:size] = torch.as_tensor(np.array(world.normalizer.scale))

    def _finite(self) -> bool:
        return all(bool(torch.isfinite(x).all()) for x in self.model.policy.parameters())

    def mirror(self) -> StableBaselinesState:
        """The actor as it is."""
        layers, spread = MIRRORS[self.agent.algorithm](self.model, self.spec, self._noise)
        actor = MLPParams(tuple(Affine(jnp.asarray(weight), jnp.asarray(bias)) for weight, bias in layers), None)
        return StableBaselinesState(actor, jnp.asarray(spread, jnp.float32), self.spec)

    # ---- saving

    def save(self) -> Arrays:
        """Everything that decides how it goes on."""
        model, arrays = self.model, {}
        modules, variables = model._get_torch_save_params()
        for name in modules:
            state = recursive_getattr(model, name).state_dict()
            entries = state if "param_groups" not in state else {
                f"{i}.{k}": v for i, slots in state["state"].items() for k, v in slots.items()
            }  # fmt: skip
            arrays |= {f"{name}:{k}": _array(v) for k, v in entries.items()}
        arrays |= {name: _array(recursive_getattr(model, name)) for name in variables}
        arrays |= {f"count:{name}": np.asarray(getattr(model, name), np.float64) for name in COUNTS if hasattr(model, name)}
        buffer: Any = getattr(model, "replay_buffer", None)
        if buffer is not None:
            arrays["buffer:pos"] = np.asarray([buffer.pos, buffer.full])
            arrays |= {f"buffer:{name}": getattr(buffer, name)[: buffer.size()] for name in BUFFER}
        return arrays

    def restore(self, arrays: Arrays) -> None:
        """Go on from there; the numbers are those of a learner that was never saved."""
        model = self.model
        modules, variables = model._get_torch_save_params()
        for name in modules:
            part, prefix = recursive_getattr(model, name), f"{name}:"
            entries = {k.removeprefix(prefix): torch.tensor(v) for k, v in arrays.items() if k.startswith(prefix)}
            state = part.state_dict()
            if "param_groups" in state:
                slots: dict[int, dict[str, Any]] = {}
                for entry, value in entries.items():
                    number, _, slot = entry.partition(".")
                    slots.setdefault(int(number), {})[slot] = value
                entries = state | {"state": slots}
            part.load_state_dict(entries)
        for name in variables:
            recursive_getattr(model, name).data.copy_(torch.tensor(arrays[name]))
        for name in COUNTS:
            if f"count:{name}" in arrays:
                setattr(model, name, type(getattr(model, name))(arrays[f"count:{name}"]))
        if "buffer:pos" in arrays:
            buffer = model.replay_buffer
            buffer.pos, buffer.full = int(arrays["buffer:pos"][0]), bool(arrays["buffer:pos"][1])
            for name in BUFFER:
                getattr(buffer, name)[: buffer.size()] = arrays[f"buffer:{name}"]

    def write(self, directory: Path) -> None:
        """`agent.zip`, which Stable-Baselines3 loads: it takes observations and gives actions in the environment's own units."""
        temporary = directory / ".agent.tmp.zip"
        self.model.save(temporary, exclude=["_last_obs", "_last_episode_starts", "_last_original_obs"])
        os.replace(temporary, directory / "agent.zip")


# ---- an actor's layers as arrays, and what it explores with

Layers = list[tuple[np.ndarray, np.ndarray]]  # weights (in_size, out_size) and biases (out_size,)


def _actor_critic(model: Any, spec: Spec, noise: np.ndarray) -> tuple[Layers, np.ndarray]:
    policy = model.policy
    layers = [*_linear(policy.mlp_extractor.policy_net), _affine(policy.action_net)]
    if spec.discrete:
        return layers, np.zeros(0)
    # Its actions are in the environment's own units.
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    scale, (weight, bias) = 2 / (high - low), layers[-1]
    return [*layers[:-1], (weight * scale, (bias - low) * scale - 1)], _array(policy.log_std) + np.log(scale)


def _soft(model: Any, spec: Spec, noise: np.ndarray) -> tuple[Layers, np.ndarray]:
    actor = model.policy.actor
    weight, bias = (np.concatenate(both, axis=-1) for both in zip(_affine(actor.mu), _affine(actor.log_std), strict=True))
    return [*_linear(actor.latent_pi), (weight, bias)], noise


def _deterministic(model: Any, spec: Spec, noise: np.ndarray) -> tuple[Layers, np.ndarray]:
    return _linear(model.policy.actor.mu), noise


def _values(model: Any, spec: Spec, noise: np.ndarray) -> tuple[Layers, np.ndarray]:
    return _linear(model.policy.q_net.q_net), np.asarray(model.exploration_rate)


MIRRORS = {"PPO": _actor_critic, "A2C": _actor_critic, "SAC": _soft, "TD3": _deterministic, "DQN": _values}


# ---- plain data


def setting(value: Any) -> Any:
    """As the library wants it: lists are tuples, text that is a number is one (PyYAML reads 3e-4 as text), and `lin_X` falls
    linearly from X to 0, as RL Baselines3 Zoo writes it."""
    if isinstance(value, list):
        return tuple(setting(x) for x in value)
    if not isinstance(value, str):
        return value
    if value.startswith("lin_"):
        start = float(value.removeprefix("lin_"))
        return lambda progress_remaining: progress_remaining * start
    try:
        return float(value)
    except ValueError:
        return value


def _seed(key: Array) -> int:
    return int(jax.random.bits(key, dtype=jnp.uint32) >> 1)


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy().copy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)


def _affine(linear: Any) -> tuple[np.ndarray, np.ndarray]:
    return _array(linear.weight).T, _array(linear.bias)


def _linear(layers: Any) -> Layers:
    return [_affine(layer) for layer in layers if isinstance(layer, torch.nn.Linear)]


class _Latest(KVWriter):
    """Keeps what the library's logger last said."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.values |= key_values

    def close(self) -> None: ...


class _Watch(BaseCallback):
    """What the dreams were like."""

    def __init__(self) -> None:
        super().__init__()
        self._steps, self._reward, self._doubt, self._ended, self._cut = 0, 0.0, 0.0, 0, 0

    def _on_step(self) -> bool:
        rewards, infos, dones = (self.locals[name] for name in ("rewards", "infos", "dones"))
        self._steps += len(rewards)
        self._reward += float(rewards.sum())
        self._doubt += sum(info["uncertainty"] for info in infos)
        cut = sum(info.get("TimeLimit.truncated", False) for info in infos)
        self._cut, self._ended = self._cut + cut, self._ended + int(dones.sum()) - cut
        return True

    def metrics(self) -> dict[str, float]:
        steps = max(self._steps, 1)
        return {
            "dream_reward": self._reward / steps,
            "dream_uncertainty": self._doubt / steps,
            "dream_terminated": self._ended / steps,
        }
