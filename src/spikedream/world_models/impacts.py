"""Impacts, such as those of a contact: rare changes which robust dynamics leave out, told from the state that they lead to.

Of each entry a network tells how likely it jumps there, and how far: a mixture of two experts (Jacobs et al. 1991, "Adaptive
mixtures of local experts"), but which of them a change is an example of is known by its error.
"""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from spikedream.replay.normalizer import Moments
from spikedream.world_models.robust import usual_change, width

FAR = 10.0  # widths of an entry's errors, beyond which a miss is no error but an impact


def hits(missed: Array, counts: Array) -> Array:
    """(rows, entries) bool, which of what the dynamics miss, (rows, entries) in typical changes, are impacts; widths are of the
    rows where `counts`, (rows,), is more than 0."""
    return jnp.abs(missed) > FAR * width(missed, counts)


def impacts_met(missed: Array, counts: Array) -> Array:
    """(entries,) bool, of which the dynamics, which miss (rows, entries), met impacts where `counts`, (rows,), is more than 0: a
    change may be rare and yet as smooth as any."""
    return (hits(missed, counts) & (counts > 0)[:, None]).any(0)


def typical_impact(moments: Moments) -> Array:
    """(obs_size,) in typical changes: the mean magnitude of changes, each as likely as it is large; 0 of an entry whose changes are
    not rare. Raises ValueError where nothing measures it."""
    usual = usual_change(moments)
    assert moments.moved is not None
    rare = usual < jnp.sqrt(moments.change)
    return jnp.where(rare, moments.change / jnp.maximum(moments.moved * usual, 1e-12), 0.0)


def impact_loss(told: Array, missed: Array, impact: Array, counts: Array) -> Array:
    """() cross-entropy of impacts, and squared errors of how far those went that there were.

    Args:
        told: (rows, 2 obs_size) logits of impacts, and how far each goes in units of `impact`.
        missed: (rows, obs_size) by what the dynamics miss, in typical changes.
        impact: (obs_size,) typical ones, likewise; 0 of entries without any, which do not count.
        counts: (rows,) how often each row does.
    """
    logits, far = jnp.split(told, 2, axis=1)
    hit = hits(missed, counts)
    surprise = optax.sigmoid_binary_cross_entropy(logits, hit.astype(jnp.float32))
    surprise = surprise + hit * jnp.square(far - missed / jnp.maximum(impact, 1e-6)[None])
    return (surprise * (impact > 0)[None] * counts[:, None]).mean()


def struck(told: Array, impact: Array, key: Array) -> Array:
    """(obs_size,) by how many typical changes each entry jumps, which it does as likely as `told`, (2 obs_size,), says: an impact
    that is to come within a few steps comes, at whichever of them. All entries draw one number: a contact moves several at once."""
    logits, far = jnp.split(told, 2)
    return jnp.where(jax.random.uniform(key) < jax.nn.sigmoid(logits), far * impact, 0.0)
