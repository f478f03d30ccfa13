"""One run: the novelty that the communication layer measures on each batch, and the changes it detects."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torchmetrics.functional.classification import binary_auroc

from experiments.detection.sources import Source
from sal_lightning import CommunicationLayer


@dataclass(frozen=True)
class Heard:
    """Measurements of one run."""

    changes: tuple[int, ...]  # number of batches before each change
    excess: list[float]  # log distance of each batch beyond the usual one; NaN before the detector is ready
    events: list[int]  # number of batches at each detection
    lasting: int = 0  # duration of each change in batches


def listen(source: Source, tick: Callable[[], None] = lambda: None) -> Heard:
    """Run the communication layer on every batch, without optimizer steps."""
    net = source.net
    comm = CommunicationLayer(net, torch.optim.SGD(net.parameters(), lr=0.0), pull=0)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    excess = []
    for x in source.batches():
        net(x)
        known = comm.monitor.detector.ready
        comm.analyze()
        excess.append(comm.monitor.detector.excess if known else float("nan"))
        tick()
    return Heard(source.changes, excess, list(comm.events), source.lasting)


def delays(run: Heard) -> list[int | None]:
    """Delay of the detection of each change in batches; None if it was not detected.

    >>> delays(Heard((10, 20), [0.0] * 30, [4, 13, 15]))
    [3, None]
    """
    found: list[int | None] = []
    for start, end in pairwise((*run.changes, len(run.excess))):
        i = bisect_left(run.events, start + 1)
        found.append(run.events[i] - start if i < len(run.events) and run.events[i] <= end else None)
    return found


def false_alarms(run: Heard) -> int:
    """Number of detections that are neither the first after a change nor during one.

    >>> from dataclasses import replace
    >>> sudden = Heard((10, 20), [0.0] * 30, [4, 13, 15])
    >>> false_alarms(sudden), false_alarms(replace(sudden, lasting=5))
    (2, 1)
    """
    first = {change + delay for change, delay in zip(run.changes, delays(run), strict=True) if delay is not None}
    meant = first | {change + i for change in run.changes for i in range(1, run.lasting + 1)}
    return sum(event not in meant for event in run.events)


def auroc(runs: Iterable[Heard]) -> float | None:
    """AUROC of novelty as a classifier of the first batch after a change against other batches; None without both.

    Runs with gradual changes are left out, as their first batch hardly differs, and so are batches between a change and
    its detection, and those before the detector is ready.
    """
    scores, labels = [], []
    for run in (run for run in runs if not run.lasting):
        for i, kind in enumerate(kinds(run)):
            if kind is not None and run.excess[i] == run.excess[i]:
                scores.append(run.excess[i])
                labels.append(kind)
    if len(set(labels)) < 2:
        return None
    # Ranks, since torchmetrics treats scores outside [0, 1] as logits and rounds large ones to one.
    rank = torch.tensor(scores, dtype=torch.double).argsort().argsort().double() / len(scores)
    return float(binary_auroc(rank, torch.tensor(labels)))


def kinds(run: Heard) -> list[int | None]:
    """1 for the first batch after a change, None for those until its detection, 0 for the others.

    >>> kinds(Heard((2,), [0.0] * 6, [5]))
    [0, 0, 1, None, None, 0]
    """
    found: list[int | None] = [0] * len(run.excess)
    for change, delay in zip(run.changes, delays(run), strict=True):
        found[change] = 1
        for i in range(change + 1, change + (delay or 1)):
            found[i] = None
    return found


def measures(runs: Sequence[Heard]) -> dict[str, Any]:
    """Values of a table over several runs."""
    late = [delay for run in runs for delay in delays(run)]
    known = sorted(delay for delay in late if delay is not None)
    return {
        "batches": sum(len(run.excess) for run in runs),
        "changes": len(late),
        "found": len(known),
        "auroc": auroc(runs),
        "median_delay": known[len(known) // 2] if known else None,
        "longest_delay": known[-1] if known else None,
        "false_alarms": sum(false_alarms(run) for run in runs),
        "delays": late,
    }
