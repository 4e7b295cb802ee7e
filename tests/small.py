"""What several test files share: the registered kinds, small parts, and experience to feed them."""

import dataclasses
import functools
import types
import typing
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spikedream import config as configuration
from spikedream.config import Config
from spikedream.replay.normalizer import identity
from spikedream.replay.ring import Replay, ReplayBuffer
from spikedream.snn.encoders import AnyEncoder
from spikedream.spec import Spec
from spikedream.types import Transition
from spikedream.world import World

DISCRETE = Spec(4, 2, discrete=True)  # cart-pole's
CONTINUOUS = Spec(3, 1, discrete=False, action_low=(-2.0,), action_high=(2.0,))  # pendulum's
SPECS = {"discrete": DISCRETE, "continuous": CONTINUOUS}

# Fields that decide how much work a part does, by name.
SIZES = {
    "hidden": (6,), "ticks": 2, "fields": 4, "neurons": 4, "members": 2, "batch": 8, "updates": 4, "check_every": 2,
    "trajectories": 4, "horizon": 3, "passes": 2, "minibatches": 2, "bins": 11,
    "latent": 3, "context": 3, "open_loop": 2, "candidates": 8, "iterations": 2, "elites": 3,
    "population": 4, "rollout": 8, "size": 4, "least": 2, "most": 4, "chunk": 2,
}  # fmt: skip


def kinds(union: Any) -> tuple[type, ...]:
    """The classes of a union; of a single class, that class."""
    several = isinstance(union, types.UnionType) or typing.get_origin(union) is typing.Union
    return typing.get_args(union) if several else (union,)


def encoders() -> list[Any]:
    """Every encoder, with every choice of its mode."""
    found = []
    for kind in kinds(AnyEncoder):
        modes = typing.get_args(typing.get_type_hints(kind).get("mode"))
        found += [kind(mode=mode) for mode in modes] if modes else [kind()]
    return found


def small(part: Any, **changes: Any) -> Any:
    """`part` and the parts that it holds with the sizes above, then `changes` on the top one."""
    fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    sized = {
        name: small(value) if dataclasses.is_dataclass(value) else _size(name, value)
        for name, value in fields.items()
        if dataclasses.is_dataclass(value) or name in SIZES
    }
    return dataclasses.replace(part, **{**sized, **changes})


def _size(name: str, value: Any) -> Any:
    """A GRU has one hidden layer, and its width is a number."""
    return SIZES[name][0] if isinstance(SIZES[name], tuple) and isinstance(value, int) else SIZES[name]


def filled(spec: Spec, rows: int, capacity: int, key: jax.Array) -> Replay:
    """A normalised replay of random steps; about one in eight ends its episode."""
    obs_key, change_key, action_key, reward_key, end_key = jax.random.split(key, 5)
    obs = 2 * jax.random.normal(obs_key, (rows, spec.obs_size)) + 1
    if spec.discrete:
        action = jax.nn.one_hot(jax.random.randint(action_key, (rows,), 0, spec.action_size), spec.action_size)
    else:
        action = jax.random.uniform(action_key, (rows, spec.action_size), minval=-1, maxval=1)
    steps = Transition(
        obs,
        action,
        jax.random.uniform(reward_key, (rows,), minval=-1, maxval=1),
        obs + 0.1 * jax.random.normal(change_key, obs.shape),
        (jax.random.uniform(end_key, (rows,)) < 0.125).astype(jnp.float32),
        jnp.zeros(rows),
        jnp.full(rows, -0.7),
    )
    return holding(spec, steps, capacity)


def holding(spec: Spec, steps: Transition, capacity: int) -> Replay:
    """A normalised replay that holds `steps`, fields (rows, ...)."""
    return _holding(spec, steps, capacity)


@partial(jax.jit, static_argnums=(0, 2))
def _holding(spec: Spec, steps: Transition, capacity: int) -> Replay:
    rows = jax.tree.map(lambda x: x[:, None], steps)  # of one environment
    return ReplayBuffer(capacity).init(spec).add(rows, jnp.asarray(steps.reward.shape[0])).normalise()


def known(model: Any, state: Any, spec: Spec) -> World:
    """A world in which observations are what they are."""
    return World(model, state, identity(spec.obs_size))


def changed_rows(replay: Replay, **fields: Any) -> Replay:
    """With other transitions in the ring of one environment, as functions of what is there, (capacity, ...)."""
    data = {name: change(getattr(replay.data, name)[:, 0])[:, None] for name, change in fields.items()}
    return replace(replay, data=replay.data._replace(**data))


def same(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits in the same places."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(_bits(x), _bits(y)) for x, y in pairs)


def finite(tree: Any) -> bool:
    numbers = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert numbers, "the tree holds no numbers"
    return all(np.isfinite(np.asarray(x)).all() for x in numbers)  # which compiles nothing


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def _bits(leaf: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def changed(value: Any) -> Any:
    """Another value that is valid wherever the first one was."""
    if isinstance(value, tuple):
        return [changed(value[0]), *value[1:]] if len(value) > 1 else [changed(value[0])]
    if isinstance(value, int):
        return value * 2
    return value * 0.5 if value else 0.1


def with_changed(config: Config, name: str) -> Config:
    """`config` with another value of the field of this dotted name."""
    value: Any = changed(functools.reduce(getattr, name.split("."), config))
    for key in reversed(name.split(".")):
        value = {key: value}
    return configuration.merge(config, value)
