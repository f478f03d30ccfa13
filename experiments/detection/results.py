"""The table of a page, with text and figure."""

from pathlib import Path

from experiments.detection.figure import draw
from experiments.filing import Record, source
from experiments.pages import grid

HEADINGS = ("source", "batches", "changes", "found", "AUROC", "median delay", "longest", "false alarms")
NOTE = """\
Written by `python -m experiments.detection --from-records --table`, not by hand.

*AUROC* of the novelty that consolidation waits for: the first batch after a change against all batches of a task.
*Delay*: batches of the new kind that were seen when the change was believed. *False alarms*: changes believed where
there was none. Each is what the communication layer itself did; the network is not trained, since its first layer
sees the inputs. Where tasks shade into each other a change begins with the first batch that is mixed.
"""
FUZZY = """\
![Novelty along a stream whose tasks shade into each other]({figure})
"""


def cells(record: Record) -> list[str]:
    """A row of the table."""
    auroc = "" if record["auroc"] is None else f"{record['auroc']:.4f}"
    late = ["" if record[key] is None else str(record[key]) for key in ("median_delay", "longest_delay")]
    counts = [str(record[key]) for key in ("batches", "changes", "found")]
    return [record["name"], *counts, auroc, *late, str(record["false_alarms"])]


def page(records: dict[str, Record], picture: Path) -> str:
    """The table with its text; also draws the figure of the fuzzy stream."""
    parts = [NOTE, grid(HEADINGS, [cells(record) for record in records.values()])]
    if "rotated" in records:
        parts.append(rotations(records["rotated"]))
    if "split-domain-fuzzy" in records:
        draw(records["split-domain-fuzzy"], picture)
        parts.append(FUZZY.format(figure=picture.name))
    return "\n".join([*parts, source(next(iter(records.values())))])


def rotations(record: Record) -> str:
    """Rotations of the images that are too small to be detected."""
    turned = list(zip(record["turns"], record["delays"], strict=True))
    missed, found = (sorted(turn for turn, late in turned if (late is None) == lost) for lost in (True, False))
    listed = [", ".join(f"{turn:g}°" for turn in turns) for turns in (missed, found[:3])]
    return f"Rotated pictures: turns not found: {listed[0] or 'none'}; the smallest that were: {listed[1]}.\n"
