"""Fitting a bonus's own networks to replayed experience."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.ops.fitting import adamw, fit, start
from spikedream.snn.sparsity import pruned
from spikedream.types import Experience, PyTree, Transition

Loss = Callable[[PyTree, Transition, Array], Array]  # (parameters, batch with fields (batch, ...), key) -> ()


@dataclass(frozen=True)
class Fitting:
    """Hyper-parameters of one phase of mini-batches."""

    learning_rate: float = 5e-3  # at the start of a phase; falls to a hundredth along a cosine
    gradient_clip: float = 10.0  # global norm
    batch: int = 64
    updates: int = 200  # per phase

    def __post_init__(self) -> None:
        check_bounds(self, learning_rate=(0, None), gradient_clip=(1e-9, None), batch=(1, None), updates=(1, None))

    def __call__(self, experience: Experience, params: PyTree, loss: Loss, key: Array) -> tuple[PyTree, Array]:
        """One phase, from `params` on; returns the new parameters and the mean loss, ().

        Every transition is drawn equally often, whatever its priority for others: what has been seen is what a bonus has to know.
        """

        def draw(params: PyTree, key: Array) -> Transition:
            return experience.gather(experience.draw_evenly(key, (1, self.batch)))

        one = jax.tree.map(lambda x: x[None], params)  # the loop fits ensembles: this is one of a single member
        optimizer = adamw(0.0, self.gradient_clip)
        fitted = fit(
            one,
            start(optimizer, one),
            loss,
            draw,
            None,
            optimizer,
            rate=self.learning_rate,
            updates=self.updates,
            block=self.updates,
            patience=1,
            key=key,
            settle=pruned,
        )
        return jax.tree.map(lambda x: x[0], fitted.params), fitted.train_loss
