"""Mini-batch fitting of an ensemble, with early stopping: the one loop in which every world model and bonus is fitted."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.types import PyTree

BETTER = 1e-4  # by which a held-out loss must be lower to count as an improvement
Loss = Callable[[PyTree, Any, Array], Array]  # (one member's parameters, its batch, key) -> ()


class FitState(NamedTuple):
    params: PyTree  # leaves (members, ...)
    optimizer: PyTree
    best: PyTree
    best_loss: Array  # (members,) lowest held-out loss so far
    waited: Array  # () int32, checks since any member improved
    step: Array  # () int32, gradient steps made
    train_loss: Array  # () mean over the last block
    plateau: Any = ()  # state of what lets the learning rate fall, where that is asked for


def matrices(params: PyTree, stacked: int = 0) -> PyTree:
    """Which leaves are weights: those of two axes, beside as many as are `stacked` in front."""
    return jax.tree.map(lambda x: x.ndim >= 2 + stacked, params)


def adamw(weight_decay: float, clip: float, weights: Callable[[PyTree], PyTree] = matrices) -> optax.GradientTransformation:
    """The direction of a step, which `fit` multiplies by its learning rate. Only `weights` decay: a neuron's time constant or
    threshold has no reason to tend to zero. `clip` bounds the global norm of a member's gradient."""
    return optax.chain(
        optax.clip_by_global_norm(clip), optax.scale_by_adam(), optax.add_decayed_weights(weight_decay, mask=weights)
    )


def adam(rate: float, clip: float) -> optax.GradientTransformation:
    """`clip` bounds the gradient's global norm."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(rate))


def start(optimizer: optax.GradientTransformation, params: PyTree) -> PyTree:
    """The optimiser's state of each member by itself; leaves (members, ...)."""
    return jax.vmap(optimizer.init)(params)


def fit(
    params: PyTree,
    moments: PyTree,
    loss: Loss,
    draw: Callable[[PyTree, Array], Any],
    check: Callable[[PyTree], Array] | None,
    optimizer: optax.GradientTransformation,
    *,
    rate: float,
    updates: Array | int,
    block: int,
    patience: int,
    key: Array,
    settle: Callable[[PyTree, PyTree], PyTree] = lambda before, after: after,
    plateau: optax.GradientTransformationExtraArgs | None = None,
) -> FitState:
    """Up to `updates` steps, rounded up to whole blocks, with a check after each `block`.

    Args:
        params: of all members, leaves (members, ...).
        moments: the optimiser's state where the last fit left it, or as `start` makes it.
        loss: of one member on its own mini-batch.
        draw: (params, key) -> the members' mini-batches, leaves (members, batch, ...).
        check: params -> (members,) losses on held-out data. With it, fitting stops after `patience` checks without improvement, and
            `best` holds each member's best parameters; without, `best` are the last.
        optimizer: applied to each member by itself.
        rate: learning rate, which falls to a hundredth along a cosine.
        plateau: in place of the cosine, an `optax.contrib.reduce_on_plateau` of the members' mean held-out loss; needs `check`.
        settle: (before, after) -> what becomes of all members' parameters in a step.
    """
    members = jax.tree.leaves(params)[0].shape[0]

    def one_update(state: FitState, key: Array) -> tuple[FitState, Array]:
        draw_key, loss_key = jax.random.split(key)
        batch = draw(state.params, draw_key)
        values, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(0, 0, None))(state.params, batch, loss_key)
        directions, moments = jax.vmap(optimizer.update)(gradients, state.optimizer, state.params)
        now = rate * (_cosine(state.step / updates) if plateau is None else state.plateau.scale)
        changes = jax.tree.map(lambda x: -now * x, directions)
        params = settle(state.params, optax.apply_updates(state.params, changes))
        after = state._replace(params=params, optimizer=moments, step=state.step + 1)
        return after, values.mean()

    def one_block(state: FitState) -> FitState:
        state, losses = jax.lax.scan(one_update, state, jax.random.split(jax.random.fold_in(key, state.step), block))
        state = state._replace(train_loss=losses.mean())
        if check is None:
            return state._replace(best=state.params)
        losses = check(state.params)
        if plateau is not None:
            state = state._replace(plateau=plateau.update((), state.plateau, value=losses.mean())[1])
        return _keep_best(state, losses)

    first = FitState(
        params,
        moments,
        params,
        jnp.full(members, jnp.inf, jnp.float32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros(()),
        () if plateau is None else plateau.init(jnp.zeros(())),
    )
    return jax.lax.while_loop(lambda s: (s.step < updates) & (s.waited < patience), one_block, first)


def _cosine(along: Array) -> Array:
    """() from 1 to a hundredth, where `along` () goes from 0 to 1."""
    return 0.01 + 0.99 * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(along, 1)))


def _keep_best(state: FitState, losses: Array) -> FitState:
    better = losses < state.best_loss - BETTER

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(better.shape + (1,) * (new.ndim - 1)), new, old)

    return state._replace(
        best=jax.tree.map(choose, state.params, state.best),
        best_loss=jnp.where(better, losses, state.best_loss),
        waited=jnp.where(better.any(), 0, state.waited + 1),
    )
