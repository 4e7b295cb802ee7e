"""Random shooting: the plainest planner, and the one to beat."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.planners.plan import Plan, Score, check_proposals
from spikedream.spec import Spec


@dataclass(frozen=True)
class RandomShooting:
    """Scores uniformly drawn action sequences and the proposals once, and executes the best (Nagabandi et al. 2018).

    It has no memory: each plan starts from nothing. Nor does its search distribution ever narrow, so a draw from it would tell
    nothing of the plan; the few candidates explore by themselves, and the sample is the plan.
    """

    candidates: int = 500
    repeat: int = 1  # steps for which a drawn action is held; systems that answer slowly need more than one

    def __post_init__(self) -> None:
        check_bounds(self, candidates=(1, None), repeat=(1, None))

    @property
    def places(self) -> int:
        """Of the candidates, for drawn and proposed sequences together."""
        return self.candidates

    def start(self, spec: Spec, horizon: int) -> tuple[()]:
        return ()

    def plan(self, spec: Spec, memory: tuple[()], score: Score, proposals: Array, key: Array) -> Plan:
        check_proposals(proposals.shape[0], self.places)
        draw_key, score_key = jax.random.split(key)
        horizon = proposals.shape[1]
        shape = (self.candidates - proposals.shape[0], -(-horizon // self.repeat))
        if spec.discrete:
            drawn = jax.nn.one_hot(jax.random.randint(draw_key, shape, 0, spec.action_size), spec.action_size)
        else:
            drawn = jax.random.uniform(draw_key, (*shape, spec.action_size), minval=-1, maxval=1)
        held = jnp.repeat(drawn, self.repeat, axis=1)[:, :horizon]
        candidates = jnp.concatenate([held, proposals])
        scores = score(candidates, score_key)
        best = jnp.argmax(scores)
        return Plan(candidates[best], candidates[best], scores[best], ())
