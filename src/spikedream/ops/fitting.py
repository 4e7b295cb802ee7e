"""Mini-batch fitting of an ensemble, with early stopping: the one loop in which every world model and bonus is fitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.types import PyTree

Loss = Callable[[PyTree, Any, Array], Array]  # (one member's parameters, its batch, key) -> ()


class Fit(NamedTuple):
    params: PyTree  # leaves (members, ...)
    optimizer: PyTree
    best: PyTree
    best_loss: Array  # (members,) lowest held-out loss so far
    waited: Array  # () int32, checks since any member improved
    updates: Array  # () int32
    train_loss: Array  # () mean over the last block


def matrices(params: PyTree, stacked: int = 0) -> PyTree:
    """Which leaves are weights: those of two axes, beside as many as are `stacked` in front."""
    return jax.tree.map(lambda x: x.ndim >= 2 + stacked, params)


def adamw(
    rate: float, updates: int, weight_decay: float, clip: float, weights: Callable[[PyTree], PyTree] = matrices
) -> optax.GradientTransformation:
    """`rate` falls to a hundredth along a cosine; only `weights` decay: a neuron's time constant or threshold has no reason to
    tend to zero. `clip` bounds the global norm of a member's gradient."""
    schedule = optax.cosine_decay_schedule(rate, updates, alpha=0.01)
    return optax.chain(optax.clip_by_global_norm(clip), optax.adamw(schedule, weight_decay=weight_decay, mask=weights))


def adam(rate: float, clip: float) -> optax.GradientTransformation:
    """`clip` bounds the gradient's global norm."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate))


def fit(
    params: PyTree,
    loss: Loss,
    draw: Callable[[PyTree, Array], Any],
    check: Callable[[PyTree], Array] | None,
    optimizer: optax.GradientTransformation,
    *,
    updates: int,
    block: int,
    patience: int,
    key: Array,
) -> Fit:
    """Up to `updates` steps, `block` of them between checks.

    Args:
        params: of all members, leaves (members, ...).
        loss: of one member on its own mini-batch.
        draw: (params, key) -> the members' mini-batches, leaves (members, batch, ...).
        check: params -> (members,) losses on held-out data. With it, fitting stops after `patience` checks without improvement, and
            `best` holds each member's best parameters; without, `best` are the last.
        optimizer: applied to each member by itself.
    """
    members = jax.tree.leaves(params)[0].shape[0]

    def one_update(state: Fit, key: Array) -> tuple[Fit, Array]:
        draw_key, loss_key = jax.random.split(key)
        batch = draw(state.params, draw_key)
        values, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(0, 0, None))(state.params, batch, loss_key)
        changes, moments = jax.vmap(optimizer.update)(gradients, state.optimizer, state.params)
        return state._replace(params=optax.apply_updates(state.params, changes), optimizer=moments), values.mean()

    def one_block(state: Fit) -> Fit:
        keys = jax.random.split(jax.random.fold_in(key, state.updates), block)
        state, losses = jax.lax.scan(one_update, state, keys)
        state = state._replace(updates=state.updates + block, train_loss=losses.mean())
        return state._replace(best=state.params) if check is None else _keep_best(state, check(state.params))

    first = Fit(
        params,
        jax.vmap(optimizer.init)(params),
        params,
        jnp.full(members, jnp.inf, jnp.float32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros(()),
    )
    return jax.lax.while_loop(lambda s: (s.updates < updates) & (s.waited < patience), one_block, first)


def _keep_best(state: Fit, losses: Array) -> Fit:
    better = losses < state.best_loss - 1e-4

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)

    return state._replace(
        best=jax.tree.map(choose, state.params, state.best),
        best_loss=jnp.where(better, losses, state.best_loss),
        waited=jnp.where(better.any(), 0, state.waited + 1),
    )
