"""The card: figures of a hand-computed case, halves that do not mix, and its pages."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from safi_agent.calibration.agreement import krippendorff_alpha
from safi_agent.calibration.card import ALL, Agreement, Card, read_card
from safi_agent.calibration.card_page import Table, about, page, table, to_html, to_markdown, write_card
from safi_agent.calibration.judging import Judgement
from safi_agent.calibration.labels import Case, Label, Labels
from safi_agent.calibration.measurement import in_first_half, make_card
from safi_agent.ledger import ContinuousFinding
from tests.safi_agent.calibration.cases import labelled
from tests.safi_agent.fakes import THREE

JUDGES = {"will": "m", "conscience": "n", "values": "v", "prompts": "p", "calls": "all", "scores": "discrete"}


def judgement(row: Label, score: float | None, decision: str = "approve", confidence: float = 1.0) -> Judgement:
    fields = {"value": row.value, "score": score, "confidence": confidence, "reason": ""}
    findings = [] if score is None else [ContinuousFinding.model_validate(fields)]
    return Judgement.model_validate(
        {"case": row.case.id, "decision": decision, "code": "judge", "findings": findings, "seconds": 0.5}
    )


def card(rows: list[Label], judged: dict[Case, Judgement], seed: int = 0, resamples: int = 20) -> Card:
    return make_card(Labels(tuple(rows), "hash"), "l.jsonl", THREE, JUDGES, judged, seed, resamples)


def row(made: Card, faculty: str, value: str = ALL) -> Agreement:
    return next(one for one in made.rows if (one.faculty, one.value) == (faculty, value))


def test_judges_that_say_what_people_say_agree_fully() -> None:
    rows = labelled(80)
    judged = {r.case: judgement(r, r.score, "violation" if r.broken else "approve") for r in rows}
    made = card(rows, judged)
    for faculty, count in (("will", 80), ("conscience", 80 - made.chosen_on)):
        for value in (ALL, "Truth"):
            one = row(made, faculty, value)
            assert (one.labels, one.broken) == (count, count // 2)
            assert (one.accuracy, one.precision, one.recall, one.f1, one.alpha) == (1,) * 5
            assert one.intervals["alpha"] == (1, 1)
    assert (made.labels, made.answers, made.prompts, made.failed, made.warnings) == (80, 80, 40, 0, [])


def test_counts_are_those_of_a_hand_computed_case() -> None:
    rows = labelled(8)  # broken: 1, 3, 5, 7
    refused = {1, 3, 4}
    judged = {r.case: judgement(r, 1, "violation" if i in refused else "approve") for i, r in enumerate(rows)}
    one = row(card(rows, judged), "will")
    assert (one.true_positives, one.false_positives, one.false_negatives, one.true_negatives) == (2, 1, 2, 3)
    assert (one.precision, one.recall, one.accuracy) == (pytest.approx(2 / 3), 0.5, 0.625)
    pairs = [(r.broken, i in refused) for i, r in enumerate(rows)]
    assert one.alpha == krippendorff_alpha(pairs, "nominal")


def test_the_threshold_is_of_one_half_of_the_prompts_and_the_figures_of_the_other() -> None:
    """In the first half broken answers have signals below 0.3, in the second below -0.3."""
    rows = labelled(200)
    halves = {r.prompt: in_first_half(r.prompt, 0) for r in rows}
    edge = {prompt: 0.3 if first else -0.3 for prompt, first in halves.items()}
    judged = {r.case: judgement(r, edge[r.prompt] + (-0.2 if r.broken else 0.2)) for r in rows}
    made = card(rows, judged)
    assert made.threshold == pytest.approx(0.3)
    assert made.chosen_on == 2 * sum(halves.values())
    tested = row(made, "conscience")
    assert tested.labels == 200 - made.chosen_on
    assert (tested.recall, tested.precision) == (1, 0.5)  # all signals of the second half are below 0.3
    assert 60 < made.chosen_on < 140


def test_the_confidence_counts_in_the_signal() -> None:
    rows = labelled(80)
    judged = {r.case: judgement(r, 1, confidence=0.2 if r.broken else 0.9) for r in rows}
    made = card(rows, judged)
    assert made.threshold == pytest.approx(0.55)
    assert row(made, "conscience").accuracy == 1


def test_on_all_values_the_will_is_asked_for_answers_that_break_any() -> None:
    first, *rest = labelled(40)
    rows = [first, first.model_copy(update={"value": "Care", "verdict": "violation"}), *rest]
    judged = {r.case: judgement(r, 0, "violation" if "wrong" in r.answer else "approve") for r in rows}
    made = card(rows, judged)
    assert (row(made, "will").labels, row(made, "will").false_negatives) == (40, 1)
    assert (row(made, "will", "Truth").false_negatives, row(made, "will", "Care").false_negatives) == (0, 1)


def test_scores_of_several_raters_have_alphas() -> None:
    draw, rows, judged = random.Random(0), [], {}
    for i in range(120):
        truth = draw.choice((-1, -0.5, 0, 0.5, 1))
        raters = tuple(max(-1.0, min(1.0, truth + draw.choice((-0.5, 0, 0.5)))) for _ in range(3))
        rows.append(Label(prompt=f"{i}", answer="a", value="Truth", scores=raters))
        judged[rows[-1].case] = judgement(rows[-1], truth)
    made = card(rows, judged)
    tested = row(made, "conscience")
    second = [r for r in rows if not in_first_half(r.prompt, 0)]
    assert tested.alpha_raters == krippendorff_alpha([r.scores for r in second], "ordinal")
    pairs = [(r.score, judged[r.case].findings[0].score) for r in second]
    assert tested.alpha_scores == krippendorff_alpha(pairs, "ordinal")
    assert tested.alpha_scores > tested.alpha_raters > 0.5


def test_what_is_missing_is_counted_and_said() -> None:
    rows = labelled(40)
    judged = {r.case: judgement(r, None if i < 4 else r.score) for i, r in enumerate(rows[:-2])}
    made = card(rows, judged)
    assert (made.failed, made.unusable) == (2, 4)
    unscored = sum(not in_first_half(r.prompt, 0) for r in rows[:4])
    assert row(made, "conscience").unscored == unscored
    assert any("2 answers have no judgement" in warning for warning in made.warnings)
    approved = [r for r in rows if not r.broken]
    one_kind = card(approved, {r.case: judgement(r, 1) for r in approved})
    assert any("was not chosen" in warning for warning in one_kind.warnings)
    with pytest.raises(ValueError, match="judgements: expected at least one"):
        card(rows, {})


class Shape(HTMLParser):
    """Counts elements and the cells of a table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)


def test_it_is_read_as_it_was_written_and_its_pages_have_every_row(tmp_path: Path) -> None:
    rows = labelled(40)
    made = card(rows, {r.case: judgement(r, r.score) for r in rows})
    page = write_card(made, tmp_path / "l.card.json")
    assert read_card(tmp_path / "l.card.json") == made
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.card.json", "l.card.md"]
    assert len(re.findall(r"^\| ", page.read_text("utf-8"), re.MULTILINE)) == len(made.rows) + 2
    headings, lines = table(made.rows)
    assert headings[-1] == "α"  # there are no scores
    assert Shape(to_html(made)).tags.count("td") == len(made.rows) * len(headings)
    assert all(len(line) == len(headings) for line in lines)
    for text in (to_markdown(made), to_html(made)):
        assert all(part in text for part in ("hash", "l.jsonl", *JUDGES.values()))
        assert all(sentence.split(":")[0] in text for sentence in about(made)[:2])


def test_names_are_no_markup() -> None:
    rows = labelled(8)
    made = card(rows, {r.case: judgement(r, r.score) for r in rows})
    hostile = made.model_copy(update={"labels_file": "<script>|x|</script>", "value_set": "a|b\n# c"})
    assert "script" not in Shape(to_html(hostile)).tags
    assert "<script>" not in to_markdown(hostile)
    assert "\n# c" not in to_markdown(hostile)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}'])
def test_another_file_is_no_card(tmp_path: Path, content: str) -> None:
    (tmp_path / "c.json").write_text(content)
    with pytest.raises(ValueError, match="expected a calibration card"):
        read_card(tmp_path / "c.json")


def test_a_card_is_plain_json() -> None:
    rows = labelled(40)
    made = card(rows, {r.case: judgement(r, r.score) for r in rows})
    assert json.loads(made.model_dump_json())["judges"]["prompts"] == "p"


def test_texts_of_a_page_neither_end_a_cell_nor_begin_a_tag() -> None:
    made = page("A|B <b>", "Today.", Table(("value",), [("x | y\n<script>",)]), ["one\n\n# two"])
    assert made == ("# A\\|B &lt;b>\n\nToday.\n\n| value |\n| --- |\n| x \\| y &lt;script> |\n\n* one # two\n")
