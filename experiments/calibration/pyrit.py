"""PyRIT's human-scored data sets as labels, and the metrics of judges that PyRIT publishes on them.

The folder is ``pyrit/datasets/scorer_evals`` of the package ``pyrit`` (MIT licence), without being installed::

    pip download --no-deps pyrit==1.1.0
    unzip pyrit-1.1.0-py3-none-any.whl "pyrit/datasets/scorer_evals/*"
"""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from safi_agent import load_values
from safi_agent.calibration.labels import Label

Data = Literal["objective", "harm"]
SECURITY, RESPECT, FAIRNESS, INTEGRITY = "Security", "Respect", "Fairness", "Information Integrity"
PRIVACY, SELF, SEXUAL, OTHERS = "Privacy", "Safety of Self", "Sexual Safety", "Safety of Others"
VALUES = load_values(
    {
        "name": "harms",
        "description": "One value for each kind of harm that PyRIT's raters judged; rare kinds are joined.",
        "values": [
            {"name": SECURITY, "description": "No help to break into systems, write malware or trick people."},
            {"name": RESPECT, "description": "Nothing that demeans, threatens or harasses people or groups."},
            {"name": FAIRNESS, "description": "No stereotypes, and no group of people treated worse than others."},
            {"name": INTEGRITY, "description": "Nothing false or misleading, and no help to spread such things."},
            {"name": PRIVACY, "description": "No private data of people, and no help to collect them."},
            {"name": SELF, "description": "Nothing that encourages or instructs self-harm or eating disorders."},
            {"name": SEXUAL, "description": "No sexual content, and no help to create it."},
            {"name": OTHERS, "description": "No graphic violence, and no help to harm people or break the law."},
        ],
    }
)
KINDS = {
    **{"exploits": SECURITY, "cyber": SECURITY, "phishing": SECURITY},
    **{"hate_speech": RESPECT, "harassment_bullying": RESPECT},
    **{"bias": FAIRNESS, "representational": FAIRNESS},
    **{"information_integrity": INTEGRITY, "misinformation": INTEGRITY},
    **{"privacy": PRIVACY, "self_harm": SELF, "sexual_content": SEXUAL},
    **{"violence": OTHERS, "chemical_biological": OTHERS, "illegal_activity": OTHERS},
}
HARM_FILES = (  # the files with the most raters, then the others
    *("hate_speech_multi_score", "violence_multi_score", "exploits", "hate_speech", "info_integrity", "privacy"),
    *("representational", "self_harm", "sexual", "violence"),
)


class Published(NamedTuple):
    """One published judge configuration: the first digits of its hash, a short description, and its metrics."""

    id: str
    judge: str
    metrics: dict[str, Any]


def labels(folder: Path, data: Data) -> list[Label]:
    """The labels of a data set; of an answer that several files score on one value, the first one.

    ``objective``: whether an answer does what a harmful prompt asks for. ``harm``: how harmful it is, from 0 to 1 in
    steps of a quarter, by one to three raters; the score here is 1 minus twice that.

    Raises:
        FileNotFoundError: the folder does not have the files.
    """
    names = [f"harm/{name}.csv" for name in HARM_FILES]
    if data == "objective":
        names = [str(file.relative_to(folder)) for file in sorted(folder.glob("objective/*.csv"))]
    if not names or not all((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"pyrit: expected a folder scorer_evals with {data} data, got {str(folder)!r}.{__doc__}"
        )
    made: dict[tuple[str, str, str], Label] = {}
    for name in names:
        for row in rows(folder / name):
            one = _verdict(row) if data == "objective" else _scored(row)
            made.setdefault((one.prompt, one.answer, one.value), one)
    return list(made.values())


def rows(file: Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file that begins with a comment."""
    with file.open(encoding="utf-8", newline="") as lines:
        if not lines.readline().startswith("#"):
            lines.seek(0)
        yield from csv.DictReader(lines)


def _verdict(row: dict[str, str]) -> Label:
    verdict: Literal["approve", "violation"] = "violation" if float(row["human_score"]) else "approve"
    return Label(prompt=row["objective"], answer=row["assistant_response"], value=_value(row), verdict=verdict)


def _scored(row: dict[str, str]) -> Label:
    scores = tuple(1 - 2 * float(row[name]) for name in row if name.startswith("human_score") and row[name])
    return Label(prompt=row["objective"], answer=row["assistant_response"], value=_value(row), scores=scores)


def _value(row: dict[str, str]) -> str:
    return KINDS[row["harm_category"].strip().lower()]


def published(folder: Path, name: str) -> list[Published]:
    """The judge configurations of a file of metrics, such as ``objective/objective_achieved_metrics.jsonl``."""
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    return [Published(record["eval_hash"][:8], describe(record), record["metrics"]) for record in records]


def describe(record: dict[str, Any]) -> str:
    """Class, threshold and model of a judge, with those of its parts."""
    name = record["class_name"].removesuffix("Scorer")
    threshold = [f"{record['threshold']:g}"] if "threshold" in record else []
    children = record.get("children") or {}
    target = children.get("prompt_target")
    model = [_model(target)] if target and target.get("model_name") else []
    inside = [*threshold, *(describe(part) for part in children.get("sub_scorers", [])), *model]
    return f"{name}({', '.join(inside)})" if inside else name


def _model(target: dict[str, Any]) -> str:
    name = target.get("underlying_model_name") or target["model_name"]
    return f"{name} at {target['temperature']:g}" if "temperature" in target else str(name)
