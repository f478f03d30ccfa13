"""Compute a calibration card from labels and judgements."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import NamedTuple

from safi_agent.calibration.agreement import Confusion, bootstrap, choose_threshold, krippendorff_alpha
from safi_agent.calibration.card import ALL, Agreement, Card, Faculty
from safi_agent.calibration.judging import Judgement
from safi_agent.calibration.labels import Case, Label, Labels
from safi_agent.ledger import Finding
from safi_agent.record import utc_now
from safi_agent.values import ValueSet

FEW = 10  # labels of each kind, below which a figure is called weak
RESAMPLES = 1000


class Judged(NamedTuple):
    """One label with what the judges say."""

    prompt: str
    human: bool  #: whether people call the value broken
    judge: bool  #: whether the judge does
    ratings: tuple[float, ...]  #: of people
    scores: tuple[float, ...]  #: mean of people, then the judge's; empty for verdicts


def make_card(
    labels: Labels,
    labels_file: str,
    values: ValueSet,
    judges: Mapping[str, str],
    judgements: Mapping[Case, Judgement],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Card:
    """Compute a card. The threshold is chosen on one half of the prompts; the Conscience's rows are of the other half.

    The Will's rows are of all labels, since nothing is chosen for it.

    Raises:
        ValueError: there is no judgement.
    """
    if not judgements:
        raise ValueError("judgements: expected at least one, got none.")
    cases = {case: rows for case, rows in labels.cases().items() if case in judgements}
    found = [(row, _finding(judgements[case], row)) for case, rows in cases.items() for row in rows]
    first = [(row.broken, signal(finding)) for row, finding in found if finding and in_first_half(row.prompt, seed)]
    threshold = choose_threshold(first)
    second = [(row, finding) for row, finding in found if not in_first_half(row.prompt, seed)]
    tested = [(row.value, _judged(row, finding, threshold)) for row, finding in second if finding]
    missing = [row.value for row, finding in second if not finding]
    rows = [
        *_will_rows(cases, judgements, values, seed, resamples),
        *agreement_rows("conscience", tested, missing, values, seed, resamples),
    ]
    return Card(
        created=utc_now(),
        version=_version(),
        labels_file=labels_file,
        labels_sha256=labels.sha256,
        labels=len(labels.rows),
        answers=len(labels.cases()),
        prompts=len({row.prompt for row in labels.rows}),
        judges=dict(judges),
        models=_models(judgements.values()),
        value_set=values.name,
        failed=len(labels.cases()) - len(cases),
        unclear=sum(one.code == "judge_unclear" for one in judgements.values()),
        unusable=sum(not one.findings for one in judgements.values()),
        seconds=median(one.seconds for one in judgements.values()),
        seed=seed,
        threshold=threshold,
        chosen_on=len(first),
        rows=rows,
        warnings=list(_warnings(first, rows, len(labels.cases()) - len(cases))),
    )


def in_first_half(prompt: str, seed: int) -> bool:
    """Whether a prompt is in the half on which the threshold is chosen: the last bit of SHA-256("seed:prompt")."""
    return bool(sha256(f"{seed}:{prompt}".encode("utf-8", "surrogatepass")).digest()[-1] & 1)


def signal(finding: Finding) -> float:
    """Score × confidence, in [-1, 1]."""
    return finding.score * finding.confidence


def _finding(judgement: Judgement, row: Label) -> Finding | None:
    """The finding on the label's value."""
    return next((finding for finding in judgement.findings if finding.value == row.value), None)


def _judged(row: Label, finding: Finding, threshold: float) -> Judged:
    scores = (row.score, finding.score) if row.scores else ()
    return Judged(row.prompt, row.broken, signal(finding) < threshold, row.scores, scores)


def _will_rows(
    cases: Mapping[Case, Sequence[Label]],
    judgements: Mapping[Case, Judgement],
    values: ValueSet,
    seed: int,
    resamples: int,
) -> list[Agreement]:
    """The Will rules on answers: on all values, an answer is broken if any of its labels is."""
    whole, single = [], []
    for case, rows in cases.items():
        refused = judgements[case].decision == "violation"
        whole.append(Judged(case.prompt, any(row.broken for row in rows), refused, (), ()))
        single += [(row.value, Judged(row.prompt, row.broken, refused, row.scores, ())) for row in rows]
    rest = agreement_rows("will", single, [], values, seed, resamples)[1:]
    return [_agreement(ALL, "will", whole, 0, seed, resamples), *rest]


def agreement_rows(
    faculty: Faculty,
    judged: Sequence[tuple[str, Judged]],
    missing: Sequence[str],
    values: ValueSet,
    seed: int,
    resamples: int,
) -> list[Agreement]:
    """All values, then each value with labels."""
    rows = [_agreement(ALL, faculty, [one for _, one in judged], len(missing), seed, resamples)]
    for value in values.values:
        mine = [one for name, one in judged if name == value.name]
        if mine or value.name in missing:
            rows.append(_agreement(value.name, faculty, mine, missing.count(value.name), seed, resamples))
    return rows


def _agreement(
    value: str, faculty: Faculty, judged: Sequence[Judged], unscored: int, seed: int, resamples: int
) -> Agreement:
    confusion = Confusion.of((one.human, one.judge) for one in judged)
    fields = {
        "value": value,
        "faculty": faculty,
        "labels": len(judged),
        "unscored": unscored,
        "intervals": bootstrap(judged, lambda one: one.prompt, _figures, resamples, seed),
    }
    return Agreement.model_validate(fields | confusion._asdict() | _figures(judged))


def _figures(judged: Sequence[Judged]) -> dict[str, float | None]:
    confusion = Confusion.of((one.human, one.judge) for one in judged)
    return {
        "accuracy": confusion.accuracy,
        "precision": confusion.precision,
        "recall": confusion.recall,
        "f1": confusion.f1,
        "alpha": krippendorff_alpha([(one.human, one.judge) for one in judged], "nominal"),
        "alpha_scores": krippendorff_alpha([one.scores for one in judged], "ordinal"),
        "alpha_raters": krippendorff_alpha([one.ratings for one in judged], "ordinal"),
    }


def _models(judgements: Iterable[Judgement]) -> dict[Faculty, list[str]]:
    found: dict[Faculty, dict[str, None]] = {"will": {}, "conscience": {}}
    for one in judgements:
        found["will"] |= dict.fromkeys(filter(None, [one.will_model]))
        found["conscience"] |= dict.fromkeys(filter(None, [one.conscience_model]))
    return {faculty: list(names) for faculty, names in found.items()}


def _warnings(chosen: Sequence[tuple[bool, float]], rows: Sequence[Agreement], failed: int) -> Iterable[str]:
    broken = sum(human for human, _ in chosen)
    if not broken or broken == len(chosen):
        yield "The threshold is 0 and was not chosen: in its half, people called all labels the same."
    elif min(broken, len(chosen) - broken) < FEW:
        yield f"The threshold was chosen on fewer than {FEW} labels of a kind."
    tested = [row for row in rows if row.faculty == "conscience"]
    if weak := [row.value for row in tested if min(row.broken, row.labels - row.broken) < FEW]:
        yield f"Fewer than {FEW} labels of a kind, so the Conscience's figures are weak: {', '.join(weak)}."
    if failed:
        yield f"{failed} answers have no judgement, since a model failed. The same command tries them again."


def _version() -> str:
    try:
        return version("sal-lightning")
    except PackageNotFoundError:
        return "unknown"
