"""Records on disk, and the tables made from them."""

import json
import re
from pathlib import Path

import pytest
import torch

from experiments.continual import methods
from experiments.continual.protocol import Result
from experiments.continual.reported import REPORTED
from experiments.continual.results import headings, markdown, read_all, rows, save


def test_a_record_says_where_it_comes_from(plain: Result) -> None:
    assert plain.command == (
        "python -m experiments.continual --stream split-domain --methods plain --seeds 0 --steps 40 --data digits"
    )
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", plain.commit)
    assert plain.versions["torch"] == torch.__version__
    assert plain.hardware["cores"]


def test_a_saved_record_reads_back(plain: Result, tmp_path: Path) -> None:
    save(plain, tmp_path)
    (record,) = read_all(tmp_path)
    assert record == json.loads(json.dumps(plain.record()))


def test_records_come_in_the_order_of_streams_methods_and_seeds(plain: Result, tmp_path: Path) -> None:
    for stream, method, seed in [("permuted", "plain", 0), ("split-task", "sal", 1), ("split-task", "plain", 2)]:
        record = plain.record() | {"scenario": stream, "method": method, "seed": seed}
        (tmp_path / f"{stream}-{method}.json").write_text(json.dumps(record))
    assert [(r["scenario"], r["method"]) for r in read_all(tmp_path)] == [
        ("split-task", "plain"),
        ("split-task", "sal"),
        ("permuted", "plain"),
    ]


def test_rows_hold_mean_and_standard_error(plain: Result) -> None:
    record = plain.record()
    records = [
        record | {"measures": record["measures"] | {"average": value}, "drift": None} for value in (0.8, 0.9, 1.0)
    ]
    (row,) = rows(records)
    assert row.estimates["average"].mean == pytest.approx(0.9)
    assert row.estimates["average"].error == pytest.approx(0.1 / 3**0.5)
    assert row.cells()[headings().index("drift")] == ""
    assert row.cells()[headings().index("average")] == "0.900 ± 0.058"


def test_markdown_has_a_table_a_setting(plain: Result) -> None:
    record = plain.record()
    text = markdown([record, record | {"method": "other"}, record | {"steps": 7}])
    assert text.count("| plain |") == 2
    assert text.count("### split-domain, digits,") == 2


def test_markdown_names_the_methods_and_streams_that_were_not_run(plain: Result) -> None:
    record = plain.record() | {"data": "mnist"}
    text = markdown([record, record | {"method": "sal"}])
    (line,) = [line for line in text.splitlines() if line.startswith("Not run: ")]
    assert set(re.findall("`([a-z0-9-]+)`", line)) == set(methods.METHODS) - {"plain", "sal"}
    assert f"`lwf` (reported {REPORTED['split-domain']['lwf']:.3f})" in line
    assert "### permuted, mnist\n\nNot run.\n" in text
    assert "### split-domain, mnist\n" not in text
    assert "ot run" not in markdown([plain.record()])


def test_what_others_report_stands_beside_what_was_run_where_not_all_methods_are_compared(plain: Result) -> None:
    ordered = plain.record() | {"data": "mnist", "scenario": "split-domain-ordered"}
    lines = [line.split(" | ") for line in markdown([ordered]).splitlines() if line.startswith("| ")]
    assert lines[0][4] == "reported"
    assert lines[2][4] == f"{REPORTED['split-domain-ordered']['plain']:.3f}"
    assert len(lines) == 3
    assert "reported" not in markdown([ordered | {"data": "digits"}]).split("### ")[1]


def test_a_row_says_whether_the_method_trains_features(plain: Result) -> None:
    record = plain.record()
    made = [record | {"method": m} for m in ("plain", "sal:strength=8", "ridge", "slda")]
    lines = [line.split(" | ") for line in markdown(made).splitlines() if line.startswith("| ")]
    assert lines[0][1] == "features"
    assert [line[1] for line in lines[2:]] == ["trained", "trained", "random", "pixels"]


def test_a_method_in_closed_form_joins_the_table_of_trained_ones_with_its_own_steps(plain: Result) -> None:
    record = plain.record() | {"data": "mnist"}
    ridge = record | {"method": "ridge", "steps": 7, "seed": 3}
    text = markdown([ridge, record, record | {"method": "sal"}, record | {"steps": 9}])
    assert "mnist, 7 steps a task" not in text
    first = text.split("### ")[1]
    assert "| ridge, 7 steps | random | 1 |" in first
    assert "`ridge`" not in first.split("Not run: ")[1].splitlines()[0]
    assert f"--steps {record['steps']} --lr 0.001 --methods plain sal --seeds 0`" in first
    assert "--steps 7 --lr 0.001 --methods ridge --seeds 3`" in first
    assert "### split-domain, mnist, 7 steps a task" in markdown([ridge])


def test_markdown_says_how_to_get_the_numbers_again(plain: Result) -> None:
    record = plain.record()
    text = markdown([record, record | {"seed": 5}])
    assert f"--stream split-domain --data digits --steps {record['steps']}" in text
    assert f"--methods plain --seeds {record['seed']} 5`" in text
    assert record["versions"]["torch"] in text


def test_a_row_far_from_what_others_report_says_why(plain: Result) -> None:
    ordered = plain.record() | {"data": "mnist", "scenario": "split-domain-ordered"}

    def lines(method: str, *averages: float) -> list[str]:
        records = [ordered | {"method": method, "measures": ordered["measures"] | {"average": a}} for a in averages]
        return [line for line in markdown(records).splitlines() if line.startswith("- ")]

    reported = REPORTED["split-domain-ordered"]
    assert lines("plain", reported["plain"] + 0.014) == []
    assert lines("plain", reported["plain"] - 0.02) == ["- `plain` -2.0: one seed."]
    near, far = reported["plain"] + 0.01, reported["plain"] + 0.05
    assert lines("plain", near, far) == ["- `plain` +3.0: less than two standard errors over seeds."]
    assert lines("plain", far, far) == ["- `plain` +5.0: no reason known."]
    assert lines("mas", reported["mas"] + 0.05)[0].startswith("- `mas` +5.0: theirs is the size of a batch's mean")
    assert lines("si", 0.5) == []
