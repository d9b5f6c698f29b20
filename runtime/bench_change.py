"""Change: what an encoder takes in one report of `bgem3 bench` and in another, and whether that is more than noise."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNREPEATED = 0.05  # relative uncertainty of what was measured once
COLD_START, PEAK_MEMORY = "cold start", "peak memory"


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast a machine multiplied matrices when each report was made, in FLOP/s.

    Attributes
    ----------
    uncertainty : relative, of the two rates' ratio
    """

    old: float
    new: float
    uncertainty: float

    @property
    def slowdown(self) -> float:
        """How many times as long the new machine takes; 1 where that is within the noise."""
        ratio = self.old / self.new
        return ratio if abs(math.log(ratio)) > 2 * self.uncertainty else 1.0


@dataclass(frozen=True, kw_only=True)
class Change:
    """What an encoder took in both reports: seconds (median), or bytes.

    Attributes
    ----------
    measure : a scenario's name, "cold start" or "peak memory"
    is_ours : whether the encoder is bgem3; the others are the control
    old_tokens_per_s, new_tokens_per_s : of scenarios
    machine : how many times as long the new machine takes for the same matrix products
    noise : relative; a ratio that is no further from 1 can be chance
    threshold : relative; a ratio that is no further from 1 does not matter
    """

    encoder: str
    measure: str
    is_ours: bool
    old: float
    new: float
    noise: float
    threshold: float
    old_tokens_per_s: float | None = None
    new_tokens_per_s: float | None = None
    machine: float = 1.0

    @property
    def ratio(self) -> float:
        """How many times as much as before it took."""
        return self.new / self.old

    @property
    def own_ratio(self) -> float:
        """The ratio without the machine's."""
        return self.ratio / self.machine

    @property
    def verdict(self) -> str:
        """Return "worse", "better", or "" where the change is within the noise or the threshold."""
        change = math.log(self.own_ratio)
        if abs(change) <= max(math.log1p(self.threshold), math.log1p(self.noise)):
            return ""
        return "worse" if change > 0 else "better"


def uncertainty(turns: Sequence[Sequence[float]]) -> float:
    """Return the relative standard error of the median of all turns' calls.

    A median's is about the interquartile range over the square root of the number of calls; where turns differ by more
    than that, it is half the range of their medians.

    >>> round(uncertainty([[1.0, 1.2], [1.0, 1.2], [1.0, 1.2]]), 4)  # 0.2 / sqrt(6) / 1.1
    0.0742
    >>> round(uncertainty([[1.0], [1.2], [1.4]]), 4)  # half of 0.4, / 1.2
    0.1667
    """
    calls = [seconds for turn in turns for seconds in turn]
    if len(calls) < 2:
        return UNREPEATED
    low, median, high = np.percentile(calls, (25, 50, 75))
    medians = [statistics.median(turn) for turn in turns if turn]
    return float(max((high - low) / math.sqrt(len(calls)), (max(medians) - min(medians)) / 2) / median)
