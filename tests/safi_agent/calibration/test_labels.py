"""The file of labels: what is accepted, and that errors name line and field."""

import hashlib
from pathlib import Path

import pytest

from safi_agent.calibration.labels import Case, Label, read_labels, write_labels
from tests.safi_agent.calibration.cases import labelled
from tests.safi_agent.fakes import THREE

GOOD = '{"prompt": "p", "answer": "a", "value": "truth", "scores": [-1, 0.5, 0]}'


def file(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "labels.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_file_is_read_with_its_hash_and_the_sets_spelling_of_names(tmp_path: Path) -> None:
    path = file(tmp_path, GOOD, "", '{"prompt": "", "answer": "b", "value": "Care", "verdict": "approve", "id": "t"}')
    labels = read_labels(path, THREE)
    assert [row.value for row in labels.rows] == ["Truth", "Care"]
    assert [row.broken for row in labels.rows] == [True, False]
    assert labels.rows[0].score == pytest.approx(-1 / 6)
    assert labels.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_labels(labelled(), tmp_path / "l.jsonl")
    assert list(read_labels(tmp_path / "l.jsonl", THREE).rows) == labelled()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Invalid JSON"),
        ("[]", "line 2: "),
        ('{"answer": "a", "value": "Truth", "verdict": "approve"}', "line 2: prompt: Field required"),
        ('{"prompt": "p", "answer": "", "value": "Truth", "verdict": "approve"}', "line 2: answer: "),
        ('{"prompt": 1, "answer": "a", "value": "Truth", "verdict": "approve"}', "line 2: prompt: .*got 1"),
        ('{"prompt": "p", "answer": "a", "value": "Luck", "verdict": "approve"}', "line 2: value: .*Truth.*got 'Luck'"),
        ('{"prompt": "p", "answer": "a", "value": "Truth", "verdict": "fine"}', "line 2: verdict: .*got 'fine'"),
        ('{"prompt": "p", "answer": "a", "value": "Truth", "verdict": null}', "line 2: .*either scores or a verdict"),
        ('{"prompt": "p", "answer": "a", "value": "Truth", "scores": [0, 2]}', r"line 2: .*\[-1, 1\], got 2"),
        ('{"prompt": "p", "answer": "a", "value": "Truth", "scores": [NaN]}', "line 2: .*"),
        ('{"prompt": "p", "answer": "a", "value": "Truth", "scores": ["1"]}', "line 2: scores.0: .*got '1'"),
        ('{"prompt": "p", "answer": "a", "value": "Truth", "scores": [1], "why": "x"}', "line 2: why: .*got 'x'"),
        (GOOD, "line 2: the same answer has a label on 'Truth' in line 1"),
    ],
)
def test_a_wrong_line_is_refused_by_line_and_field(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_labels(file(tmp_path, GOOD, line), THREE)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one label"):
        read_labels(file(tmp_path, ""), THREE)


def test_cases_that_only_share_their_joined_text_have_other_ids() -> None:
    ids = {Case("a", "b", "c").id, Case("ab", "", "c").id, Case("a", "", "bc").id, Case("", "ab", "c").id}
    assert len(ids) == 4


def test_labels_of_one_answer_are_one_case(tmp_path: Path) -> None:
    path = file(tmp_path, GOOD, GOOD.replace("truth", "Care"))
    ((case, rows),) = read_labels(path, THREE).cases().items()
    assert (case, [row.value for row in rows]) == (Case("p", "", "a"), ["Truth", "Care"])
    assert isinstance(rows[0], Label)
