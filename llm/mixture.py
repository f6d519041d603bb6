"""Mixtures: which source each window is from, by their weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from llm.errors import ConfigError
from llm.shuffle import Ints, permutation

PERIOD = 4096  # windows in which the sources come in just their parts


def check_weights(weights: Mapping[str, float], sources: Collection[str]) -> None:
    """Raises ConfigError unless the weights speak of each of the dataset's sources and of no other,
    and give a source that they do not leave out a window in every period at least."""
    if missing := sorted(set(sources) - weights.keys()):
        raise ConfigError(
            f"train.data.weights says nothing of the source {missing[0]!r}: give it a weight, or 0 "
            "to leave it out"
        )
    if unknown := sorted(name for name in weights.keys() - set(sources) if weights[name]):
        raise ConfigError(
            f"train.data.weights names {unknown[0]!r}, of which the dataset has no document; its "
            f"sources: {', '.join(sorted(sources))}"
        )
    least = sum(weights.values()) / PERIOD
    if small := sorted(name for name, weight in weights.items() if 0 < weight < least):
        raise ConfigError(
            f"train.data.weights gives {small[0]!r} {weights[small[0]]:g}, less than one part in "
            f"{PERIOD} of all: give it {least:.3g} or more, or 0 to leave it out"
        )


class Mixture:
    """Which source each window is from. In `PERIOD` windows each source has its part, to the next
    whole number, in an order drawn anew for each period."""

    def __init__(self, parts: Sequence[float], seed: int) -> None:
        self.seed = seed
        exact = np.array(parts) / sum(parts) * PERIOD
        counts = np.floor(exact).astype(np.int64)
        # What is left goes to those that lost most by rounding down, the first of equals first.
        counts[np.argsort(counts - exact, kind="stable")[: PERIOD - counts.sum()]] += 1
        self.counts = counts
        self._held = (-1, np.empty(0, np.int64), np.empty(0, np.int64))

    def places(self, first: int, n: int) -> tuple[Ints, Ints]:
        """(source, number among its windows) of n windows from `first` on."""
        sources, numbers = np.empty(n, np.int64), np.empty(n, np.int64)
        done = 0
        while done < n:
            period, start = divmod(first + done, PERIOD)
            of_period, number = self._period(period)
            size = min(n - done, PERIOD - start)
            sources[done : done + size] = of_period[start : start + size]
            numbers[done : done + size] = number[start : start + size]
            done += size
        return sources, numbers

    def _period(self, period: int) -> tuple[Ints, Ints]:
        if self._held[0] != period:
            dealt = np.repeat(np.arange(len(self.counts)), self.counts)
            sources = dealt[permutation(PERIOD, "mixture", self.seed, period)]
            numbers = np.empty(PERIOD, np.int64)
            for source, count in enumerate(self.counts.tolist()):
                numbers[sources == source] = period * count + np.arange(count)
            self._held = (period, sources, numbers)
        return self._held[1:]
