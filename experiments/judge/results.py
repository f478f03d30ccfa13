"""The tables of a local judge, from its records, and the picture of values learned in sequence."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from experiments.filing import Record, source
from experiments.pages import grid

SHARE = 0.3  # of the findings, to escalate
TARGET = 0.9  # agreement from which on findings are sure
ANCHORS = {"objective": "26 LLM judges .585 to .896; static embeddings .767", "harm": "static embeddings .706"}
JUDGES = {"best published": 0.896, "median published": 0.733, "worst published": 0.585}
NOTE = """\
Written by `python -m experiments.judge --table`, not by hand. all-MiniLM-L6-v2; PyRIT's labels, divided by prompt into
five folds: each label is tested once, a fifth of the other prompts are for validation. Early stopping, temperature and
thresholds were chosen on validation examples. The first three layers, 128 principal components, a linear shared layer
and the weight decay were chosen before, on validation parts of other divisions of the same labels, the layers by a look
at cross-validated logistic regressions on all of them, so that these figures are a little optimistic. That the target
has to be reached by a lower limit was decided after a first look at the column *accuracy where sure*. `sal`: SAL
detects changes; `sal-fit`: it consolidates at each new training, as `safi train-judge` has it. ±: standard error
over folds.
"""


def of(records: Iterable[Record], task: str, **wanted: Any) -> list[Record]:
    """The records of some runs, by fold."""
    found = [
        one
        for one in records
        if one["run"]["task"] == task and all(one["run"][name] == value for name, value in wanted.items())
    ]
    return sorted(found, key=lambda one: int(one["run"]["fold"]))


def markdown(records: Sequence[Record], picture: str = "") -> str:
    """All tables."""
    parts = [NOTE]
    for title, rows in (
        ("Agreement with people: whether a value is broken", agreement(records)),
        (f"Escalation of the least certain {SHARE:.0%} of the findings", escalation(records)),
        ("Values learned one after another: accuracy on all after the last", sequences(records)),
        ("The same answers under two policies, one after the other", policies(records)),
    ):
        if len(rows) > 1:
            parts.append(f"**{title}**\n\n{grid(rows[0], rows[1:])}")
    if cost := next((one for one in records if one["run"]["task"] == "cost"), None):
        parts.append(f"**Cost**\n\n{cost_table(cost)}")
    if picture:
        parts.append(f"![Agreement per value over the sequence, plain against SAL]({picture})\n")
    newest = {(one["run"]["task"], one["run"]["train_encoder"]): one for one in records}
    parts += [source(one) for one in newest.values()]
    return "\n".join(parts)


def spread(figures: Sequence[float]) -> str:
    """Mean ± standard error; the mean alone of a single one."""
    if len(figures) < 2:
        return f"{mean(figures):.3f}"
    return f"{mean(figures):.3f} ± {stdev(figures) / len(figures) ** 0.5:.3f}"


def right(findings: Iterable[Mapping[str, Any]]) -> list[bool]:
    """Whether each finding agrees with people."""
    return [one["human"] == one["judge"] for one in findings]


def by_value(findings: Sequence[Mapping[str, Any]]) -> float:
    """Mean over values of the accuracy on each."""
    values = sorted({one["value"] for one in findings})
    return float(mean(mean(right(one for one in findings if one["value"] == value)) for value in values))


def error(findings: Sequence[Mapping[str, Any]], name: str) -> float:
    """Expected calibration error."""
    from safi_agent.local.confidence import calibration_error

    return (
        calibration_error([(one[name], agrees) for one, agrees in zip(findings, right(findings), strict=True)]) or 0.0
    )


def agreement(records: Sequence[Record]) -> list[list[str]]:
    """One row per data set."""
    rows = [
        [
            "labels",
            "folds",
            "encoder",
            "accuracy",
            "mean over values",
            "sure",
            "accuracy where sure",
            "calibration error, before → after",
            "anchors",
        ]
    ]
    for data in ("objective", "harm"):
        for whole in (False, True):
            runs = of(records, "agreement", data=data, train_encoder=whole)
            if not runs:
                continue
            pooled = [one for run in runs for one in run["findings"]]
            sure = [one for run in runs for one in sure_ones(run)]
            rows.append(
                [
                    f"{data}, {len(pooled)}",
                    str(len(runs)),
                    "trained" if whole else "frozen",
                    spread([mean(right(run["findings"])) for run in runs]),
                    f"{by_value(pooled):.3f}",
                    f"{len(sure) / len(pooled):.2f}",
                    f"{mean(right(sure)):.3f}" if sure else "",
                    f"{error(pooled, 'uncalibrated'):.3f} → {error(pooled, 'confidence'):.3f}",
                    ANCHORS[data],
                ]
            )
    return rows


def sure_ones(run: Record) -> list[Mapping[str, Any]]:
    """The findings at or above the confidence that the validation examples give for an agreement of 90 %."""
    from safi_agent.local.confidence import choose_confidence

    least = choose_confidence([(one["confidence"], one["agrees"]) for one in run["validation"]], TARGET)
    return [] if least is None else [one for one in run["findings"] if one["confidence"] >= least]


def escalated(run: Record) -> tuple[list[bool], int]:
    """Whether kept findings agree with people, and the number of escalated ones.

    The confidence below which a finding is escalated is that of ``SHARE`` of the validation examples.
    """
    ordered = sorted(one["confidence"] for one in run["validation"])
    threshold = ordered[round(SHARE * len(ordered))]
    kept = [one for one in run["findings"] if one["confidence"] >= threshold]
    return right(kept), len(run["findings"]) - len(kept)


def escalation(records: Sequence[Record]) -> list[list[str]]:
    """Expected accuracy with judges of known accuracy, whose errors are taken as independent of the confidence."""
    rows = [["labels", "escalated", "accuracy of the others", "judge asked", "alone", "with the local judge"]]
    for data in ("objective", "harm"):
        runs = [escalated(run) for run in of(records, "agreement", data=data, train_encoder=False)]
        if not runs:
            continue
        kept = [agrees for one, _ in runs for agrees in one]
        asked = sum(count for _, count in runs)
        share = asked / (asked + len(kept))
        for name, alone in JUDGES.items():
            both = share * alone + (1 - share) * mean(kept)
            rows.append([data, f"{share:.2f}", f"{mean(kept):.3f}", name, f"{alone:.3f}", f"{both:.3f}"])
    return rows


def final(run: Record) -> float:
    """Accuracy on the test examples of all values after the last one was learned."""
    counts = run["accuracy"][-1].values()
    return float(sum(good for good, _ in counts) / sum(count for _, count in counts))


def forgetting(run: Record) -> float:
    """Accuracy when just learned less that at the end, on the test examples of all values but the last."""
    stages, order = run["accuracy"], run["order"]
    earlier = list(enumerate(order[:-1]))
    lost = sum(stages[at][value][0] - stages[-1][value][0] for at, value in earlier)
    return float(lost / sum(stages[at][value][1] for at, value in earlier))


def ways(records: Sequence[Record], task: str) -> list[tuple[bool, int | None, str, list[Record]]]:
    """The runs of each way to learn."""
    sizes = sorted({(one["run"]["train_encoder"], one["run"]["most"] or 0) for one in of(records, task)})
    found = []
    for whole, most in sizes:
        for method in ("joint", "replay", "plain", "sal", "sal-fit"):
            if runs := of(records, task, train_encoder=whole, most=most or None, method=method):
                found.append((whole, most or None, method, runs))
    return found


def sequences(records: Sequence[Record]) -> list[list[str]]:
    """One row per way to learn the values of the harm data in sequence."""
    rows = [["encoder", "examples of a value", "method", "folds", "accuracy on all", "forgotten", "CPU seconds"]]
    for whole, most, method, runs in ways(records, "sequence"):
        lost = "" if method == "joint" else spread([forgetting(run) for run in runs])
        cost = f"{median(run['cpu_seconds'] for run in runs):.0f}"
        rows.append(
            [_encoder(whole), _most(most), method, str(len(runs)), spread([final(run) for run in runs]), lost, cost]
        )
    return rows


def policies(records: Sequence[Record]) -> list[list[str]]:
    """One row per way to learn a policy after its opposite."""
    rows = [["encoder", "examples of a value", "method", "folds", "first, when learned", "first, at the end", "second"]]
    for whole, most, method, runs in ways(records, "policies"):
        first, second = runs[0]["order"]
        learned = "" if method == "joint" else spread([_share(run["accuracy"][0][first]) for run in runs])
        rows.append(
            [
                _encoder(whole),
                _most(most),
                method,
                str(len(runs)),
                learned,
                spread([_share(run["accuracy"][-1][first]) for run in runs]),
                spread([_share(run["accuracy"][-1][second]) for run in runs]),
            ]
        )
    return rows


def _share(counts: Sequence[int]) -> float:
    """Of a number of right findings and that of all; half where a fold tests none."""
    return counts[0] / counts[1] if counts[1] else 0.5


def _encoder(whole: bool) -> str:
    return "trained" if whole else "frozen"


def _most(most: int | None) -> str:
    return "all" if most is None else str(most)


def cost_table(record: Record) -> str:
    """Milliseconds to judge one answer."""
    rows = [[f"{words} words", f"{ms:.1f}"] for words, ms in record["milliseconds"].items()]
    return grid(["answer", "milliseconds on one core, median"], rows)


def draw(records: Sequence[Record], file: Path) -> bool:
    """Accuracy on each value after each stage, for plain training and SAL; False if there is nothing to draw."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = {way[:3]: way for way in ways(records, "sequence")}
    both = [(whole, most) for whole, most, method in found if method == "sal" and (whole, most, "plain") in found]
    pairs = [(found[*size, "plain"], found[*size, "sal"]) for size in both]
    if not pairs:
        return False
    shown = max(pairs, key=lambda pair: len(pair[1][3]))  # the pair of most folds
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axis, (whole, _, method, runs) in zip(axes, shown, strict=False):
        stages = len(runs[0]["order"])
        for place in range(stages):
            line = [
                mean(_share(run["accuracy"][at][run["order"][place]]) for run in runs) for at in range(place, stages)
            ]
            axis.plot(range(place + 1, stages + 1), line, marker="o", markersize=3, linewidth=1.2)
        axis.set_title(f"{'SAL' if method == 'sal' else 'plain'}, encoder {_encoder(whole)}", fontsize=10)
        axis.set_xlabel("values learned")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("agreement with people")
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return True
