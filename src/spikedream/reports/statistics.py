"""Statistics over seeds, in rliable's manner: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical
precipice". Intervals are 95 % percentile bootstraps that draw whole seeds; methods are drawn independently of each other."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

RESAMPLES = 2000
BATCH = 100  # resamples at once, to bound memory


class Improvement(NamedTuple):
    """P(X > Y): how often a random seed of X does better than a random seed of Y, a tie counting half."""

    probability: float
    low: float | None  # None where a method has a single seed
    high: float | None


class Curve(NamedTuple):
    """A statistic over seeds and its 95 % interval, at each of the points."""

    x: np.ndarray  # (points,)
    middle: np.ndarray  # (points,)
    low: np.ndarray  # (points,)
    high: np.ndarray  # (points,)


def iqm(x: np.ndarray, axis: int = -1) -> Any:
    """The mean of the middle half along `axis`; the mean itself for fewer than four values."""
    from scipy import stats  # takes a third of a second, which every start of the command line would wait for

    return stats.trim_mean(x, 0.25, axis=axis)


Statistic = Literal["iqm", "mean"]
COMPUTED: dict[str, Callable[..., Any]] = {"iqm": iqm, "mean": np.mean}


def _interval(samples: tuple[np.ndarray, ...], statistic: Any, **options: Any) -> tuple[Any, Any]:
    """Low and high of `statistic` over resampled seeds."""
    from scipy import stats  # as above

    rng = np.random.default_rng(0)  # the same runs give the same interval
    settings: dict[str, Any] = {"n_resamples": RESAMPLES, "batch": BATCH, "method": "percentile", "rng": rng}
    interval = stats.bootstrap(samples, statistic, **settings, **options).confidence_interval
    return interval.low, interval.high


def summary(values: np.ndarray, statistic: Statistic = "iqm") -> dict[str, float]:
    """Of one score over seeds, (seeds,): median, the statistic with its 95 % interval, lowest and highest. The interval of a single
    seed is that seed."""
    compute = COMPUTED[statistic]
    low = high = float(compute(values))
    if len(values) > 1 and np.ptp(values) > 0:
        low, high = (float(x) for x in _interval((values,), compute))
    return {
        "median": float(np.median(values)),
        statistic: float(compute(values)),
        "low": low,
        "high": high,
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }


def improvement(x: np.ndarray, y: np.ndarray) -> Improvement:
    """P(X > Y) from scores where more is better, (seeds of X,) and (seeds of Y,): the Mann-Whitney U statistic over the number of
    pairs. Infinite scores are allowed."""

    def probability(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        x, y = x[..., :, None], y[..., None, :]
        return ((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1))

    low = high = None
    if len(x) > 1 and len(y) > 1:
        low, high = (float(v) for v in _interval((x, y), probability, paired=False))
    return Improvement(float(probability(x, y)), low, high)


def curve(x: np.ndarray, values: np.ndarray, statistic: Statistic = "iqm") -> Curve:
    """Of curves on a common grid, `x` (points,) and `values` (seeds, points). A single seed has a band of no width."""
    compute = COMPUTED[statistic]
    middle = compute(values, axis=0)
    low = high = middle
    if len(values) > 1:
        low, high = _interval((values,), compute, axis=0)
    return Curve(x, np.asarray(middle), np.asarray(low), np.asarray(high))


def shares(x: np.ndarray, strata: Sequence[np.ndarray]) -> Curve:
    """Of all strata together, how large a share is true at each of `x`, (points,): each of `strata`, (seeds, points) bool, counts
    the same, and its seeds are drawn by themselves. Single seeds have a band of no width."""
    rng = np.random.default_rng(0)  # as above
    drawn = np.zeros((RESAMPLES, len(x)))
    for stratum in strata:
        seeds = len(stratum)
        drawn += np.stack([stratum[rows].mean(0) for rows in rng.integers(seeds, size=(RESAMPLES, seeds))])
    low, high = np.quantile(drawn / len(strata), (0.025, 0.975), axis=0)
    return Curve(x, np.mean([stratum.mean(0) for stratum in strata], axis=0), low, high)
