"""What a parallel run has learned, in versions: its driver owns them, and hands on the newest."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from spikedream.algorithm import Algorithm, TrainState
from spikedream.replay.ring import Replay
from spikedream.runners.account import LEARNER, held_outside
from spikedream.runners.parts import Begun, Learned, ModelVersion
from spikedream.runners.states import Arrays
from spikedream.runs import checkpoint
from spikedream.runs.replay_log import rows_of
from spikedream.world import HostLearner


class PolicyVersion(NamedTuple):
    """A version of what acts."""

    version: int
    real_steps: int  # received by then
    arrays: Arrays  # the training state: of the agent, of what improves it outside, and of the world in which it has learned
    acting: Arrays  # what acting needs of it


class Newest:
    """Of each.

    Args:
        algorithm: of the run.
        state: where it begins.
        model: version of the world model there.
        real_steps: that it has learned from.
        learner: what improves the agent outside, where there is one.
    """

    def __init__(self, algorithm: Algorithm, state: TrainState, model: int, real_steps: int, learner: HostLearner | None = None):
        held = replace(state, replay=replace(state.replay, data=None))
        arrays = checkpoint.flatten(held, "state") | held_outside(learner)
        self.model = ModelVersion(model, {})
        self.policy = PolicyVersion(0, real_steps, arrays, checkpoint.flatten(algorithm.policy(state), "policy"))

    def fitted(self, learned: Learned) -> None:
        self.model = ModelVersion(self.model.version + 1, learned.arrays, learned.ranks)

    def dreamt(self, learned: Learned, model: ModelVersion, real_steps: int) -> None:
        """`model` is the one in which the agent has dreamt."""
        assert learned.policy is not None
        arrays = self.policy.arrays | model.arrays | learned.arrays
        self.policy = PolicyVersion(self.policy.version + 1, real_steps, arrays, learned.policy)

    @property
    def counters(self) -> tuple[np.ndarray, np.ndarray]:
        """Imagined steps and updates of the agent, as the training state counts them."""
        arrays = self.policy.arrays
        return arrays["state.counters.imagined_steps"], arrays["state.counters.updates"]

    @property
    def agent(self) -> Arrays:
        """The newest, for who measures its errors."""
        return {name: x for name, x in self.policy.arrays.items() if name.startswith("state.agent")}

    def state(self, replay: Replay) -> Arrays:
        """The training state without what was experienced: the newest agent beside the world in which it has learned."""
        return self.policy.arrays | _counted(replay)

    @staticmethod
    def acts(policy: PolicyVersion, replay: Replay) -> Arrays:
        """The same of any agent, without what improves it outside."""
        return {name: x for name, x in policy.arrays.items() if not name.startswith(LEARNER)} | _counted(replay)

    def begun(self, replay: Replay, model: bool) -> Begun:
        """For a trainer that knows nothing yet: of the `model`, or else of the agent."""
        arrays, added = self.state(replay) | (self.model.arrays if model else {}), int(replay.added)
        return Begun(arrays, rows_of(replay, max(0, added - replay.rows), added))


def _counted(replay: Replay) -> Arrays:
    """Of what was experienced all but itself, and but its scales: they belong to the world."""
    arrays = checkpoint.flatten(replace(replay, data=None), "state.replay")
    return {name: x for name, x in arrays.items() if not name.startswith("state.replay.normalizer")}
