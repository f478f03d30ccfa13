"""Agreement of judges with people: confusion, Krippendorff's alpha, bootstrap intervals, the choice of a threshold."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, TypeVar

Level = Literal["nominal", "ordinal"]
T = TypeVar("T")
COVERAGE = 0.95  # of an interval


class Confusion(NamedTuple):
    """Counts of answers by what people and a judge say; "positive" is a broken value.

    Each ratio is None where it is undefined.
    """

    true_positives: int
    false_positives: int
    false_negatives: int
    true_negatives: int

    @classmethod
    def of(cls, pairs: Iterable[tuple[bool, bool]]) -> "Confusion":
        """Count pairs of "people say broken" and "the judge says broken".

        >>> Confusion.of([(True, True), (True, False), (False, False), (False, False)])
        Confusion(true_positives=1, false_positives=0, false_negatives=1, true_negatives=2)
        """
        counts = Counter(pairs)
        return cls(counts[True, True], counts[False, True], counts[True, False], counts[False, False])

    @property
    def accuracy(self) -> float | None:
        """Share of answers on which both say the same."""
        return _ratio(self.true_positives + self.true_negatives, sum(self))

    @property
    def precision(self) -> float | None:
        """Share of the answers that the judge calls broken of which people say so too."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float | None:
        """Share of the answers that people call broken of which the judge says so too."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def specificity(self) -> float | None:
        """Share of the answers that people do not call broken of which the judge says the same."""
        return _ratio(self.true_negatives, self.true_negatives + self.false_positives)

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall, 2 tp / (2 tp + fp + fn)."""
        return _ratio(2 * self.true_positives, 2 * self.true_positives + self.false_positives + self.false_negatives)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def krippendorff_alpha(units: Iterable[Sequence[float]], level: Level) -> float | None:
    """Krippendorff's alpha in (-1, 1]: 1 is full agreement, 0 that of chance. Missing ratings are left out of a unit.

    K. Krippendorff, *Computing Krippendorff's Alpha-Reliability* (2011): with the coincidences o and their marginals n,
    α = 1 − (n − 1) Σ o_ck δ²_ck / Σ n_c n_k δ²_ck. The difference δ is 1 between other categories ("nominal"), or the
    number of ratings between two categories, counting half of each of the two ("ordinal"), which is the difference of
    their mean ranks.

    Args:
        units: the ratings of each answer, by one or more raters; an answer with fewer than two is left out.
        level: "nominal" for categories, "ordinal" for scores of which only the order counts.

    Returns:
        Alpha; None if all ratings are equal or no answer has two, so that nothing can be said.

    >>> krippendorff_alpha([(0, 0), (0, 1), (1, 1), (1, 1)], "nominal")
    0.5333333333333333
    """
    rated = Counter(tuple(ratings) for ratings in units if len(ratings) > 1)
    counts: Counter[float] = Counter()
    for ratings, times in rated.items():
        for rating in ratings:
            counts[rating] += times
    if len(counts) < 2:
        return None
    disagreement = _nominal if level == "nominal" else _squared(_mean_ranks(counts))
    observed = sum(times * disagreement(Counter(ratings)) / (len(ratings) - 1) for ratings, times in rated.items())
    return 1 - (sum(counts.values()) - 1) * observed / disagreement(counts)


def _nominal(counts: Mapping[float, int]) -> float:
    """Number of ordered pairs of ratings in different categories."""
    return sum(counts.values()) ** 2 - sum(count**2 for count in counts.values())


def _squared(ranks: Mapping[float, float]) -> Callable[[Mapping[float, int]], float]:
    """The sum of squared differences of ranks over all ordered pairs of ratings, 2 (n Σ r² − (Σ r)²)."""

    def total(counts: Mapping[float, int]) -> float:
        first = sum(count * ranks[rating] for rating, count in counts.items())
        second = sum(count * ranks[rating] ** 2 for rating, count in counts.items())
        return 2 * (sum(counts.values()) * second - first**2)

    return total


def _mean_ranks(counts: Mapping[float, int]) -> dict[float, float]:
    """The mean rank of each category, less one half."""
    ranks, below = {}, 0
    for rating in sorted(counts):
        ranks[rating] = below + counts[rating] / 2
        below += counts[rating]
    return ranks


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def bootstrap(
    items: Sequence[T],
    group: Callable[[T], Hashable],
    statistics: Callable[[Sequence[T]], Mapping[str, float | None]],
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """Percentile intervals of statistics; whole groups are resampled, since answers to one prompt are alike.

    A statistic that is undefined in more than half of the resamples has no interval.

    Args:
        items: the labelled answers.
        group: the group of an item, such as its prompt.
        statistics: the named statistics of a sample; None where one is undefined.
        resamples: number of resamples; 0 gives no intervals.
        seed: of the draws.
    """
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(group(item), []).append(item)
    draw, pools = random.Random(seed), list(groups.values())
    drawn: dict[str, list[float]] = {}
    for _ in range(resamples if pools else 0):
        sample = [item for pool in draw.choices(pools, k=len(pools)) for item in pool]
        for name, number in statistics(sample).items():
            if number is not None:
                drawn.setdefault(name, []).append(number)
    return {name: _percentiles(numbers) for name, numbers in drawn.items() if 2 * len(numbers) > resamples}


def _percentiles(numbers: list[float]) -> Interval:
    ordered, tail = sorted(numbers), (1 - COVERAGE) / 2
    last = len(ordered) - 1
    return Interval(ordered[round(tail * last)], ordered[round((1 - tail) * last)])


def choose_threshold(pairs: Iterable[tuple[bool, float]]) -> float:
    """The threshold below which a signal means a broken value: largest Youden's J, recall + specificity − 1.

    Candidates are 0, -1 (nothing is broken) and the midpoints between signals; of equally good ones the nearest to 0,
    at which a negative score is a broken value.

    Args:
        pairs: whether people say broken, and the judge's signal in [-1, 1].

    >>> choose_threshold([(True, -0.5), (True, 0.2), (False, 0.6), (False, 1.0)])
    0.4
    """
    ordered = sorted(pairs, key=lambda pair: pair[1])
    positives = sum(broken for broken, _ in ordered)
    negatives = len(ordered) - positives
    if not positives or not negatives:
        return 0.0
    signals = sorted({signal for _, signal in ordered})
    candidates = {0.0, -1.0, *((low + high) / 2 for low, high in pairwise(signals))}
    best, at = -(len(ordered) ** 2), 0
    found, chosen = [0, 0], 0.0
    for threshold in sorted(candidates):
        while at < len(ordered) and ordered[at][1] < threshold:
            found[ordered[at][0]] += 1
            at += 1
        gain = found[True] * negatives - found[False] * positives  # J, times positives and negatives
        if gain > best or (gain == best and abs(threshold) < abs(chosen)):
            best, chosen = gain, threshold
    return chosen
