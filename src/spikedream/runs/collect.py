"""Acting in the real environments: the collector, which needs a policy and knows nothing of what is learned from its steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jax import Array

from spikedream.algorithm import Algorithm, PolicyState
from spikedream.config import Config
from spikedream.envs.host import EXPLORE, HostEnvironments, Position, episode_seed
from spikedream.envs.make import registered
from spikedream.envs.real_time import Timing
from spikedream.envs.spaces import random_action, random_log_prob
from spikedream.replay.spread import cycle
from spikedream.types import PyTree, Transition

LARGEST_BLOCK = 1024  # rows of real steps that enter the replay in one call
PROBE = 100  # real steps by which it is measured for how many an action is held


class Acting(NamedTuple):
    """What a policy carries from one step to the next."""

    carry: PyTree  # (environments, ...) its memory of the episodes under way
    key: Array


class Unfetched:
    """Real steps that nobody has fetched yet."""

    def __init__(self) -> None:
        self.pending: list[Transition] = []  # leaves (environments, ...)
        self.ended: list[float] = []  # returns of the episodes that have ended

    def fetch(self, most: int) -> tuple[Transition, int]:
        """The oldest pending steps, at least one and at most `most`, as rows, leaves (rows, environments, ...), filled up to one of
        few sizes, so that few programs are compiled; and how many rows there are."""
        taken, self.pending = self.pending[:most], self.pending[most:]
        return filled(Transition(*(cast(Any, np.stack(field)) for field in zip(*taken, strict=True))), most)


class Collector(Unfetched):
    """The real environments of a run, and the steps taken in them that nobody has fetched yet.

    Args:
        config: of the run.
        algorithm: decides.
        environments: as `environments_of` makes them.
    """

    stride = 1  # steps that are taken at once

    def __init__(self, config: Config, algorithm: Algorithm, environments: HostEnvironments):
        super().__init__()
        self.config, self.algorithm, self.environments = config, algorithm, environments
        self.returns = np.zeros(config.collect.environments)  # of the episodes under way, so far

    @property
    def episodes(self) -> int:
        """That have ended, in all environments."""
        return sum(position.episode // len(self.positions) for position in self.positions)

    @property
    def between_episodes(self) -> bool:
        """Whether none is under way."""
        return all(position.obs is None for position in self.positions)

    @property
    def positions(self) -> list[Position]:
        return self.environments.positions

    def explore(self, acting: Acting, policy: PolicyState, salt: int, steps: int = 1) -> tuple[Acting, int]:
        """Random steps in each environment, which `salt` decides; and how many steps of their own the environments took."""
        spec, count, taken = self.algorithm.spec, len(self.positions), 0
        for _ in range(steps):
            acting = self._begin(acting, policy)
            rng = np.random.default_rng(episode_seed(self.config.seed, EXPLORE, salt + taken))
            actions = np.stack([random_action(spec, rng) for _ in range(count)])
            taken += self._step(actions, np.full(count, random_log_prob(spec), np.float32))
        return acting, taken

    def act(self, acting: Acting, policy: PolicyState, steps: int = 1) -> tuple[Acting, int]:
        """Steps of the noisy policy in each environment; and how many steps of their own the environments took."""
        taken = 0
        for _ in range(steps):
            acting = self._begin(acting, policy)
            act = self.algorithm.act(policy, acting.carry, self.environments.obs, acting.key, False)
            taken += self._step(np.asarray(act.action), np.asarray(act.log_prob))
            acting = Acting(act.carry, act.key)
        return acting, taken

    def take_timing(self) -> Timing:
        return self.environments.take_timing()

    def warm_up(self, acting: Acting, policy: PolicyState) -> None:
        """Have the next decision compiled, while no clock runs."""
        self.algorithm.restart(policy, acting.carry, np.ones(len(self.positions), bool))
        self.algorithm.act(policy, acting.carry, self.environments.obs, acting.key, False).action.block_until_ready()

    def _begin(self, acting: Acting, policy: PolicyState) -> Acting:
        begins = self.environments.begin()
        if not begins.any():
            return acting
        return acting._replace(carry=self.algorithm.restart(policy, acting.carry, begins))

    def _step(self, actions: np.ndarray, log_prob: np.ndarray) -> int:
        step, taken = self.environments.step(actions, log_prob)
        self.pending.append(step)
        self.returns += step.reward
        for i, position in enumerate(self.positions):
            if position.obs is None:
                self.ended.append(float(self.returns[i]))
                self.returns[i] = 0.0
        return taken

    # ---- saving

    def save(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Where the environments stand, as arrays and as plain data; the pending steps too."""
        spec = self.algorithm.spec
        nothing = np.zeros(spec.obs_size, np.float32)
        actions = [action for position in self.positions for action in position.actions]
        arrays = {
            "position.obs": np.stack([nothing if p.obs is None else p.obs for p in self.positions]),
            "position.actions": np.asarray(actions, np.float32).reshape(-1, spec.action_size),
            "returns": np.array(self.returns),
        }
        if self.pending:
            names = (f"pending.{name}" for name in Transition._fields)
            arrays |= dict(zip(names, (np.stack(field) for field in zip(*self.pending, strict=True)), strict=True))
        counters = {
            "episode": [p.episode for p in self.positions],
            "length": [len(p.actions) if p.obs is not None else None for p in self.positions],
            "ended": self.ended,
        }
        return arrays, counters

    def restore(self, arrays: dict[str, np.ndarray], counters: dict[str, Any]) -> np.ndarray:
        """Go on from there; (environments,) bool says for which that was possible: one that is not deterministic begins another
        episode."""
        actions, positions = list(arrays["position.actions"]), []
        for i, (episode, length) in enumerate(zip(counters["episode"], counters["length"], strict=True)):
            own, actions = actions[: length or 0], actions[length or 0 :]
            positions.append(Position(episode, own, None if length is None else arrays["position.obs"][i]))
        self.ended, self.returns = list(counters["ended"]), np.array(arrays["returns"])
        if f"pending.{Transition._fields[0]}" in arrays:
            fields = [arrays[f"pending.{name}"] for name in Transition._fields]
            self.pending = [Transition(*row) for row in zip(*fields, strict=True)]
        same = self.environments.restore(positions)
        self.returns[~same] = 0.0
        if self.pending and not same.all():
            last = self.pending[-1]
            self.pending[-1] = last._replace(truncated=np.where(same, last.truncated, np.float32(1)))
        return same

    def close(self) -> None:
        self.environments.close()


def filled(steps: Transition, most: int) -> tuple[Transition, int]:
    """`steps`, fields (rows, environments, ...), of at most `most` rows, with the last one over and over, up to one of few sizes;
    and how many there were."""
    number = len(steps.reward)
    size = min(1 << (number - 1).bit_length(), most)
    index = np.minimum(np.arange(size), number - 1)
    return Transition(*(cast(Any, field[index]) for field in steps)), number


def cycle_of(steps: Sequence[Transition]) -> float:
    """How many of `steps`, fields (environments, ...), the observation would take to go round once."""
    obs, after = (np.stack([np.asarray(getattr(step, name), np.float64) for step in steps]) for name in ("obs", "next_obs"))
    return float(cycle(jnp.asarray(obs.var((0, 1))), jnp.asarray(np.square(after - obs).mean((0, 1)))))


def environments_of(config: Config) -> HostEnvironments:
    """The environments that a run's experience comes from; raises BrokenEnvironment as its text says."""
    limits = (config.collect.episode_steps, config.max_episode_steps or registered(config.env).max_episode_steps)
    return HostEnvironments(
        config.env,
        config.env_kwargs,
        min((limit for limit in limits if limit is not None), default=None),
        config.seed,
        config.collect.environments,
        config.collect.workers,
        config.repeat,
        config.realtime,
        config.collect.threads,
    )
