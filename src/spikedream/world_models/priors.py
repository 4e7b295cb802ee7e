"""Which priors a world model is given: chosen by what they predict of experience that was held out."""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.types import Metrics, PyTree

SMALL = 1e-4  # squared error, in typical changes, that makes no difference


class Prior(NamedTuple):
    """Of one member."""

    curvature: Array  # () penalty on the dynamics' departure from a linear map
    additive: Array  # () float, 1 where each neuron of the ending listens to one entry of the observation


class SearchState(eqx.Module):
    members: PyTree  # one for each candidate, leaves (candidates, ...), which never see what is held out
    optimizer: PyTree
    chosen: Prior


@dataclass(frozen=True)
class PriorSearch:
    """A further small ensemble, whose members differ in their priors, is fitted to a part of the experience beside the model; what
    predicts the rest best is the model's prior, anew in each fit. Half of the members have additive endings.

    The simpler prior stays unless another is better by `margin`: the stronger penalty, the additive ending."""

    curvatures: tuple[float, ...] = (1.0, 0.1, 0.01, 0.0)  # of each member, strongest first
    holdout: float = 0.25  # share of the transitions that decide
    effort: float = 0.25  # gradient steps, as a share of the model's own
    margin: float = 0.1  # share of the held-out error by which a weaker prior must be better

    def __post_init__(self) -> None:
        check_bounds(self, curvatures=(0, None), holdout=(0.01, 0.9), effort=(0.01, None), margin=(0, 1))
        if len(self.curvatures) < 2 or list(self.curvatures) != sorted(self.curvatures, reverse=True):
            raise ValueError(f"curvatures is {list(self.curvatures)}; it must be at least two, the strongest first")

    @property
    def candidates(self) -> Prior:
        """Leaves (candidates,)."""
        curvature = jnp.asarray(self.curvatures, jnp.float32)
        return Prior(curvature, (jnp.arange(curvature.shape[0]) % 2 == 0).astype(jnp.float32))

    def init(self, members: PyTree, optimizer: PyTree) -> SearchState:
        """Begins with the strongest priors."""
        strongest = jnp.asarray(self.curvatures[0], jnp.float32)
        return SearchState(members, optimizer, Prior(strongest, jnp.ones(())))

    def choose(self, change: Array, ending: Array, terminations: Array) -> tuple[Prior, Metrics]:
        """The prior of the model, and what decided.

        Args:
            change: (candidates,) mean squared errors of the dynamics on what was held out.
            ending: (candidates,) mean cross-entropies of the endings there.
            terminations: () how many are among it; without any, endings stay additive.
        """
        candidates = self.candidates
        strongest = jnp.argmax(change <= (1 + self.margin) * change.min() + SMALL)
        curvature = candidates.curvature[strongest]
        share = candidates.additive
        additive = (ending * share).sum() / share.sum()
        free = (ending * (1 - share)).sum() / (1 - share).sum()
        enough = (terminations == 0) | (additive <= (1 + self.margin) * free)
        return Prior(curvature, enough.astype(jnp.float32)), {
            "prior/curvature": curvature,
            "prior/error": change[strongest],
            "prior/additive_ending": enough.astype(jnp.float32),
            **{f"prior/error_{strength:g}": change[i] for i, strength in enumerate(self.curvatures)},
            "prior/loss_additive": additive,
            "prior/loss_free": free,
        }


def under(network: PyTree, params: PyTree, prior: Prior | None) -> PyTree:
    """Parameters of the ending's `network` as it is to be called under a `prior`."""
    return params if prior is None else network.additive(params, prior.additive)
