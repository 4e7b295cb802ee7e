"""How far the parts of a parallel run may go, each by what the others have done."""

import math

from spikedream.config import Config
from spikedream.processes import Parallel


class Schedule:
    """The bounds between experience and learning.

    Dreams and fits are due as `Sync` would make them, times `ahead`, and no further: a slow collector does not mean that the same
    few steps are learned from over and over. Experience may be `lead` turns ahead of both.

    Args:
        config: of the run, whose runner is `Parallel`.
    """

    def __init__(self, config: Config):
        assert isinstance(config.runner, Parallel)
        collect, improve, runner = config.collect, config.improve, config.runner
        self.turn = max(collect.steps, config.environments)  # real steps
        self._block, self._then = improve.block, config.fit.then
        self._updates = config.world_model.updates
        self.first_blocks = math.ceil(improve.first / improve.block)
        by_turn = math.ceil(improve.then / improve.block) / self.turn
        self._blocks = runner.ahead * (by_turn if improve.ratio is None else improve.ratio / improve.block)  # for each real step
        self._fit_every = (config.fit.every or self.turn) / runner.ahead
        self._lead = math.inf if runner.lead is None else runner.lead * self.turn

    def blocks(self, real_steps: int, first_turn: int) -> int:
        """Of agent updates, that may have been made by then. All in real steps; `first_turn` is the length of the first."""
        return self.first_blocks + max(0, int(self._blocks * (real_steps - first_turn) + 1e-9))

    def fit(self, real_steps: int, fitted_at: int | None) -> int:
        """Gradient steps of the fit that is due; 0 where none is."""
        if fitted_at is None:
            return self._updates
        if real_steps - fitted_at < self._fit_every:
            return 0
        return self._updates if self._then is None else self._then

    def learned(self, blocks: int, first_turn: int) -> float:
        """Real steps that so many blocks of agent updates have made use of."""
        if blocks < self.first_blocks:
            return first_turn * blocks / self.first_blocks
        return first_turn + (blocks - self.first_blocks) / self._blocks if self._blocks else math.inf

    def most(self, blocks: int, first_turn: int, fitted_at: int | None) -> float:
        """Real steps that may have been collected by now."""
        if fitted_at is None:
            return first_turn
        return min(self.learned(blocks, first_turn), fitted_at + self._fit_every) + self._lead
