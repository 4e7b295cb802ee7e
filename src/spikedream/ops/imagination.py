"""How much an agent imagines beside what it really does."""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from spikedream.bounds import check_bounds
from spikedream.ops.schedule import ImaginedShare


@dataclass(frozen=True)
class Imagination:
    """How much an update imagines.

    `least` rollouts at the lowest confidence that is trusted, `most` at confidence 1, on a straight line between (after Janner et
    al. 2019, "When to trust your model", which shortens the rollouts instead; here `uncertainty_limit` does that).
    """

    threshold: float = 0.5  # confidence, exp(-held-out loss) of the world model, below which nothing is imagined
    least: int = 32
    most: int = 128
    horizon: int = 16
    discount: float = 1.0  # an imagined step weighs this times the confidence beside real ones, which weigh 1 (in the first round)
    chunk: int = 32  # rollouts imagined in one go; a chunk that is not needed is skipped and costs nothing
    uncertainty_limit: float | None = None  # on the sum over a rollout's steps; those after it do not count
    recent: int = 1000  # rollouts start from this many newest real states
    rounds: int = 1  # times in an update that the agent imagines and learns; the real steps take part in the first
    share: ImaginedShare = ImaginedShare()  # multiplies the number of rollouts: from model-based to model-free learning

    def __post_init__(self) -> None:
        at_least_one, share = (1, None), (0, 1)
        check_bounds(self, threshold=share, least=(0, None), most=at_least_one, horizon=at_least_one, discount=share)
        check_bounds(self, chunk=at_least_one, recent=at_least_one, rounds=at_least_one)
        if self.uncertainty_limit is not None:
            check_bounds(self, uncertainty_limit=(0, None))
        if self.least > self.most:
            raise ValueError(f"least is {self.least}, which is above most ({self.most})")
        if self.most % self.chunk:
            raise ValueError(f"chunk is {self.chunk}, which does not divide most ({self.most})")

    @property
    def chunks(self) -> int:
        return self.most // self.chunk

    def chunks_needed(self, confidence: Array, real_steps: Array) -> Array:
        """() int32, from the world model's confidence () and the number of real steps (); rounded up to whole chunks."""
        # At a threshold of 1 the line has no length: a perfect model gets `most`.
        along = jnp.where(self.threshold < 1, (confidence - self.threshold) / max(1 - self.threshold, 1e-9), 1.0)
        rollouts = (self.least + (self.most - self.least) * along) * self.share(real_steps)
        # A hundredth of a rollout is rounding error, not a reason for one more chunk.
        chunks = jnp.ceil((rollouts - 0.01) / self.chunk)
        return jnp.where(confidence >= self.threshold, jnp.clip(chunks, 0, self.chunks), 0).astype(jnp.int32)

    def trusted(self, uncertainty: Array) -> Array:
        """(horizon,) 1 for the steps that count, from the uncertainty of each, (horizon,). Errors add up along a rollout."""
        if self.uncertainty_limit is None:
            return jnp.ones(uncertainty.shape)
        return (jnp.cumsum(uncertainty) <= self.uncertainty_limit).astype(jnp.float32)
