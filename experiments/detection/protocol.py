"""One run: batches go by, the communication layer listens; what it felt at each of them, and when it acted."""

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
    """Of one run."""

    changes: tuple[int, ...]  # batches before each change
    excess: list[float]  # of each batch: log of how much farther than usual it is; NaN while nothing is usual
    events: list[int]  # batches seen when a change was believed
    lasting: int = 0  # batches that each change takes


def listen(source: Source, tick: Callable[[], None] = lambda: None) -> Heard:
    """Show the communication layer every batch, up to where the optimizer would step; nothing is trained."""
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


def delays(heard: Heard) -> list[int | None]:
    """For each change the batches of the new kind that were seen when it was believed; None if it never was.

    >>> delays(Heard((10, 20), [0.0] * 30, [4, 13, 15]))
    [3, None]
    """
    found: list[int | None] = []
    for start, end in pairwise((*heard.changes, len(heard.excess))):
        i = bisect_left(heard.events, start + 1)
        found.append(heard.events[i] - start if i < len(heard.events) and heard.events[i] <= end else None)
    return found


def false_alarms(heard: Heard) -> int:
    """Events that are neither the first after a change nor while it lasts.

    >>> from dataclasses import replace
    >>> sudden = Heard((10, 20), [0.0] * 30, [4, 13, 15])
    >>> false_alarms(sudden), false_alarms(replace(sudden, lasting=5))
    (2, 1)
    """
    first = {change + delay for change, delay in zip(heard.changes, delays(heard), strict=True) if delay is not None}
    meant = first | {change + i for change in heard.changes for i in range(1, heard.lasting + 1)}
    return sum(event not in meant for event in heard.events)


def auroc(runs: Iterable[Heard]) -> float | None:
    """Of novelty, telling the first batch after a change from the batches of a task; None without both.

    None too where changes last: their first batch is hardly another. Batches between a change and its being believed
    count as neither, nor those while nothing was usual yet.
    """
    scores, labels = [], []
    for heard in (heard for heard in runs if not heard.lasting):
        for i, kind in enumerate(kinds(heard)):
            if kind is not None and heard.excess[i] == heard.excess[i]:
                scores.append(heard.excess[i])
                labels.append(kind)
    if len(set(labels)) < 2:
        return None
    # Not as they are: torchmetrics takes scores outside [0, 1] for logits, and rounds large ones to one.
    rank = torch.tensor(scores, dtype=torch.double).argsort().argsort().double() / len(scores)
    return float(binary_auroc(rank, torch.tensor(labels)))


def kinds(heard: Heard) -> list[int | None]:
    """1 for the first batch after a change, None for those until it is believed, 0 for the others.

    >>> kinds(Heard((2,), [0.0] * 6, [5]))
    [0, 0, 1, None, None, 0]
    """
    found: list[int | None] = [0] * len(heard.excess)
    for change, delay in zip(heard.changes, delays(heard), strict=True):
        found[change] = 1
        for i in range(change + 1, change + (delay or 1)):
            found[i] = None
    return found


def measures(runs: Sequence[Heard]) -> dict[str, Any]:
    """What a table shows of several runs."""
    late = [delay for heard in runs for delay in delays(heard)]
    known = sorted(delay for delay in late if delay is not None)
    return {
        "batches": sum(len(heard.excess) for heard in runs),
        "changes": len(late),
        "found": len(known),
        "auroc": auroc(runs),
        "median_delay": known[len(known) // 2] if known else None,
        "longest_delay": known[-1] if known else None,
        "false_alarms": sum(false_alarms(heard) for heard in runs),
        "delays": late,
    }
