"""Change detection: tests on the novelty of inputs and on the loss, and the decision that the data have changed."""

import math
from collections import deque
from collections.abc import Mapping
from enum import Enum
from statistics import mean, pstdev
from typing import NamedTuple

from sal_lightning.consolidation_reasons import LOSS
from sal_lightning.rules.base import State

SUSPECT = 3.0  # evidence for a provisional hold: one batch at 5 standard deviations, or two weaker ones
CONFIRM = 9.0  # evidence of a change: three such batches in a row, or more weaker ones

# Cumulative sum test
WARM = 20  # values needed before the test starts
KNOWN = 100  # values after which the baseline is fixed, so that it does not adapt to a slow change
DOUBT = 2.0  # factor on the deviation right after a refresh, until the new baseline has WARM values
REFRESH = 128  # familiar batches after which the reference is refreshed, and again after 256, 512, …
SPREAD = 0.02  # lower bound of the standard deviation (of log distance)
CLIP, EXPECTED = 5.0, 2.0  # a batch adds its standard score, clipped at CLIP, minus EXPECTED
PATIENCE = 20  # batches after which a persistent suspicion counts as a change

# Jump test of the loss
JUMP, FEW = 6, 3  # consecutive values above all usual ones that make a jump, and a suspicion
OUTLIER = 3.0  # standard score from which a single value above all usual ones is a suspicion
LONGEST, SHORTEST = 64, 32  # usual values: kept at most, and needed at least
MARGIN = 0.05  # margin above the usual values, in log

# A new fit
TRIAL = 16  # batches of a new fit that are judged together
DIFFERENT = 1.5  # mean standard score from which they count as changed data


class Batch(Enum):
    """How a batch compares with the data of the window."""

    FAMILIAR = "familiar"
    FIRST_OTHER = "the first of other data, as is suspected"
    OTHER = "of other data, as is suspected or confirmed"
    UNUSABLE = "with overflows, or of padding only"


class Baseline(NamedTuple):
    """Mean and standard deviation of the values of familiar batches."""

    n: int = 0
    total: float = 0.0
    square: float = 0.0

    def updated(self, value: float) -> "Baseline":
        """The baseline with one more value."""
        return Baseline(self.n + 1, self.total + value, self.square + value**2)

    @property
    def mean(self) -> float:
        """The mean."""
        return self.total / self.n

    @property
    def deviation(self) -> float:
        """The standard deviation, at least ``SPREAD``."""
        return math.sqrt(max(self.square / self.n - self.mean**2, SPREAD**2))


class CumulativeSumTest:
    """One-sided cumulative sum test (Page 1954) of a value that is larger the more unusual a batch is.

    ``S ← max(0, S + min(z, 5) − 2)``, where ``z`` is the standard score of the value. While a change is suspected
    the baseline is not updated, so a suspicion that lasts ``PATIENCE`` batches counts as a change.

    The reference that values are measured against is refreshed at doubling intervals: one that adapted continuously
    would hide a slow change. After a refresh the old baseline decides until the new one has ``WARM`` values.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start a new window without a baseline."""
        self.count = 0  # familiar batches
        self.baseline = self.recent = Baseline()  # the one in use, and the one learned since the last refresh
        self.evidence, self.suspected = 0.0, 0

    def excess(self, value: float) -> float:
        """The value less the baseline's mean (in log distance); 0 before there is a baseline."""
        return value - self.baseline.mean if self.baseline.n >= WARM else 0.0

    def detect(self, value: float) -> float:
        """The evidence of a change, this batch included."""
        if self.baseline.n >= WARM:
            doubt = 1.0 if self.recent.n >= WARM else DOUBT
            z = (value - self.baseline.mean) / (self.baseline.deviation * doubt)
            self.evidence = max(0.0, self.evidence + min(z, CLIP) - EXPECTED)
            self.suspected = self.suspected + 1 if self.evidence >= SUSPECT else 0
            if self.suspected >= PATIENCE:
                self.evidence = max(self.evidence, CONFIRM)
        return self.evidence

    def update(self, value: float) -> bool:
        """Add the value of a familiar batch to the baseline. Returns whether the reference is to be refreshed now."""
        self.count += 1
        if self.recent.n < KNOWN:
            self.recent = self.recent.updated(value)
        if self.recent.n >= WARM or self.baseline.n < WARM:
            self.baseline = self.recent
        due = self.count >= REFRESH and self.count & (self.count - 1) == 0
        if due:
            self.recent = Baseline()
        return due

    def state_dict(self) -> State:
        """Plain numbers."""
        return {
            "evidence": self.evidence,
            "suspected": self.suspected,
            "count": self.count,
            "usual": list(self.baseline),
            "fresh": list(self.recent),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state."""
        self.evidence, self.suspected, self.count = state["evidence"], state["suspected"], state["count"]
        self.baseline, self.recent = Baseline(*state["usual"]), Baseline(*state["fresh"])


class LossJumpTest:
    """Tests whether the newest losses, in log, all lie above all usual ones by more than ``MARGIN``.

    A jump of the loss is the only sign of new labels on old inputs. Of values in random order, whatever their
    distribution, the 6 newest of 70 are the 6 largest once in ``C(70, 6)`` = 131,115,985 times: neither heavy tails nor
    noise raise false alarms. A slow rise, for example from a learning rate schedule, is no jump, since the usual values
    rise with it. Nor is a fast rise, as in diverging training: a jump is more than three times as large as the rise of
    the usual values from their older half to their newer half, and new labels raise the first loss as much as the next
    ones, while a training that collapses needs some steps.

    A suspicion comes earlier: at the first value if it stands out clearly, since a single step on other data that is
    not held back forgets much, and otherwise at the third.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Start a new window."""
        self.usual = deque[float](maxlen=LONGEST)
        self.above: list[float] = []  # the newest consecutive values above the usual ones
        self.first = False  # whether the next value is the first one of a fit

    def begin_fit(self) -> None:
        """Start a new fit: the first steps of its new optimizer may raise the loss on any data.

        The first value is computed before the weights move. If it is usual, a new window is started.
        """
        self.above, self.first = [], True

    @property
    def long(self) -> bool:
        """Whether more consecutive values lie above than expected by chance, even if too few for a jump."""
        return len(self.above) > FEW and not self._continues_a_rise

    @property
    def _continues_a_rise(self) -> bool:
        usual, half = list(self.usual), len(self.usual) // 2
        older, newer = mean(usual[:half]), mean(usual[half:])
        return min(self.above) - newer <= 3 * (newer - older)

    @property
    def _builds_up(self) -> bool:
        """Whether the last two values are more than twice as far above the usual ones as the first two."""
        first, second, *_, newest, last = (value - max(self.usual) for value in self.above)
        return newest + last > 2 * (first + second)

    @property
    def _stands_out(self) -> bool:
        """Whether a value above the usual ones is more than ``OUTLIER`` of their standard deviations off their mean."""
        return max(self.above) - mean(self.usual) > OUTLIER * pstdev(self.usual)

    def detect(self, value: float) -> float:
        """The evidence of a jump, this value included: 0, or from ``SUSPECT`` to ``CONFIRM``."""
        high = len(self.usual) >= SHORTEST and value > max(self.usual) + MARGIN
        if self.first and not high:
            self.usual.clear()
        self.first = False
        if not high:
            self.usual.extend(self.above)  # they were outliers
            self.above = []
            return 0.0
        self.above.append(value)
        if len(self.above) >= JUMP and (self._continues_a_rise or self._builds_up):
            self.usual.extend(self.above)
            self.above = []
            return 0.0
        if self._continues_a_rise or (len(self.above) < FEW and not self._stands_out):
            return 0.0
        return SUSPECT + (CONFIRM - SUSPECT) * max(0, len(self.above) - FEW) / (JUMP - FEW)

    def update(self, value: float) -> None:
        """Add a value to the usual ones; values above them are kept apart until the next values decide."""
        if not self.above:
            self.usual.append(value)

    def state_dict(self) -> State:
        """Plain numbers."""
        return {"usual": list(self.usual), "above": list(self.above), "first": self.first}

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state."""
        self.clear()
        self.usual.extend(state["usual"])
        self.above, self.first = list(state["above"]), state["first"]


class Detection(NamedTuple):
    """The result for one batch."""

    evidence: float  #: from ``SUSPECT`` a change is suspected, from ``CONFIRM`` it is certain
    signal: str  #: the name of the signal with the most evidence


class ChangeDetector:
    """Detects a change of the data in several signals: rows and whole samples of layers' inputs, and the loss.

    A signal is one number a step, larger the more unusual the batch is; a step may lack some signals. Each
    input signal has a ``CumulativeSumTest``, the loss a ``LossJumpTest``. While any signal is suspicious no
    baseline is updated.

    The first ``TRIAL`` batches of a new fit always raise a suspicion: a small difference that all of them share counts
    as a change.
    """

    def __init__(self) -> None:
        self.tests: dict[str, CumulativeSumTest] = {}
        self.loss = LossJumpTest()
        self.excess = 0.0  # log distance of the last batch above the baseline mean
        self.trial: dict[str, list[float]] | None = None  # standard scores of each signal in a new fit so far
        self.tried = 0

    def clear(self) -> None:
        """Start a new window."""
        for test in self.tests.values():
            test.clear()
        self.loss.clear()
        self.trial, self.tried = None, 0

    @property
    def ready(self) -> bool:
        """Whether any signal has a baseline."""
        return any(test.baseline.n >= WARM for test in self.tests.values())

    def begin_fit(self) -> bool:
        """Start a new fit, perhaps with other data. Returns whether its first batches can be judged together."""
        self.loss.begin_fit()
        if self.ready:
            self.trial, self.tried = {}, 0
        return self.ready

    def detect(self, signals: Mapping[str, float]) -> Detection:
        """The evidence of a change, this batch included."""
        self._measure_excess(signals)
        found = {name: self._test(name).detect(x) for name, x in signals.items() if name != LOSS}
        if LOSS in signals:
            found[LOSS] = self.loss.detect(signals[LOSS])
        if self.trial is not None:
            self._judge_trial(signals, found)
        signal = max(found, key=lambda name: found[name], default="")
        return Detection(found.get(signal, 0.0), signal)

    def update(self, signals: Mapping[str, float]) -> list[str]:
        """Add a familiar batch to the baselines. Returns the signals whose reference is to be refreshed now."""
        self._measure_excess(signals)
        if LOSS in signals:
            self.loss.update(signals[LOSS])
        return [name for name, x in signals.items() if name != LOSS and self._test(name).update(x)]

    def _measure_excess(self, signals: Mapping[str, float]) -> None:
        self.excess = max((self._test(n).excess(x) for n, x in signals.items() if n != LOSS), default=0.0)

    def _test(self, name: str) -> CumulativeSumTest:
        return self.tests.setdefault(name, CumulativeSumTest())

    def _judge_trial(self, signals: Mapping[str, float], found: dict[str, float]) -> None:
        """Test the first batches of a new fit together; until the last of them a change is suspected."""
        assert self.trial is not None
        for name in found:
            if name != LOSS and (baseline := self.tests[name].baseline).n >= WARM:
                self.trial.setdefault(name, []).append((signals[name] - baseline.mean) / baseline.deviation)
        self.tried += 1
        for name, scores in self.trial.items():
            least = SUSPECT if self.tried < TRIAL else 0.0
            if self.tried == TRIAL and sum(scores) / len(scores) >= DIFFERENT:
                least = CONFIRM
            found[name] = max(found.get(name, 0.0), least)
        if self.tried == TRIAL:
            self.trial = None

    def state_dict(self) -> State:
        """Plain numbers and lists of them."""
        return {
            "signals": {name: test.state_dict() for name, test in self.tests.items()},
            "jumps": self.loss.state_dict(),
            "trial": self.trial,
            "tried": self.tried,
        }

    def load_state_dict(self, state: State) -> None:
        """Continue from a saved state."""
        self.tests = {}
        for name, kept in state["signals"].items():
            self._test(name).load_state_dict(kept)
        self.loss.load_state_dict(state["jumps"])
        self.trial, self.tried = state["trial"], state["tried"]
