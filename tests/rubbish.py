"""A collector that goes wrong now and then, in a process of its own."""

from typing import Any

import numpy as np

from spikedream.runners.parts import Collecting


class Rubbish(Collecting):
    """Every sixth handover is not as it should be."""

    number = 0

    def collect(self, *arguments: Any) -> Any:
        handover = super().collect(*arguments)
        self.number += 1
        if self.number % 6:
            return handover
        steps = handover.steps
        wrong = (steps._replace(obs=np.full_like(steps.obs, np.nan)), steps._replace(reward=np.zeros(3)), None)
        return handover._replace(steps=wrong[self.number // 6 % 3])
