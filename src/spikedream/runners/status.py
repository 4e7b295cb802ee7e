"""What a parallel run tells of its parts: to its metrics, and to people."""

import time
from typing import NamedTuple


class Status(NamedTuple):
    """Where the parts of a run stand."""

    real_steps: int  # received
    fitted_steps: int  # of these, when the newest model was fitted
    updates: int  # of the agent
    evaluations: int
    model: int  # newest version
    policy: int  # newest version
    lag: float  # versions that the policies of the last steps received were behind
    waiting: int  # steps that have been received and wait for those of other collectors
    collectors: int
    collecting: int  # of these
    fitting: bool
    dreaming: bool
    evaluating: bool


class StatusLog:
    """Counts what goes wrong, and how fast it goes."""

    def __init__(self) -> None:
        self.restarts = self.refused = 0
        self._since, self._before = time.monotonic(), 0

    def begin(self, real_steps: int) -> None:
        """Measure from here on."""
        self._since, self._before = time.monotonic(), real_steps

    def _rate(self, real_steps: int) -> float:
        return (real_steps - self._before) / max(time.monotonic() - self._since, 1e-9)

    def measured(self, status: Status) -> dict[str, float]:
        """Since the last time, for a row of `metrics.jsonl`."""
        rate = self._rate(status.real_steps)
        self.begin(status.real_steps)
        return {
            "parallel/steps_a_second": round(rate, 3),
            "parallel/model_version": status.model,
            "parallel/policy_version": status.policy,
            "parallel/policy_lag": status.lag,
            "parallel/model_lag_steps": status.real_steps - status.fitted_steps,
            "parallel/waiting_steps": status.waiting,
            "parallel/restarts": self.restarts,
            "parallel/refused": self.refused,
        }

    def parts(self, now: Status) -> dict[str, str]:
        """What each part does, in a line."""

        def at(work: bool, name: str) -> str:
            return name if work else "waiting"

        return {
            "collect": f"{now.collecting} of {now.collectors} at work · {self._rate(now.real_steps):,.1f} steps/s ·"
            f" {now.waiting} steps wait · policies {now.lag:.1f} versions behind",
            "fit": f"{at(now.fitting, 'fitting')} · model {now.model} · {now.real_steps - now.fitted_steps:,} steps behind",
            "dream": f"{at(now.dreaming, 'dreaming')} · policy {now.policy} · {now.updates:,} updates",
            "evaluate": f"{at(now.evaluating, 'evaluating')} · {now.evaluations} done",
            "faults": f"{self.restarts} parts started anew · {self.refused} handovers refused",
        }
