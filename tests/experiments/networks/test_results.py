"""Lines of results, and what is made of them."""

import json

from experiments.networks.goals import changes, comparisons
from experiments.networks.page import STREAM, detection, page, rows
from experiments.networks.results import append, cell, grouped, read
from experiments.networks.streams import STREAMS


def record(network="mlp", stream="split-two", method="sal", seed=0, **other):
    learned, kept = other.pop("learned", [0.9, 0.8]), other.pop("kept", [0.7, 0.8])
    return {
        **{"network": network, "stream": stream, "method": method, "seed": seed, "data": "mnist"},
        **{"steps": 250, "batch": 32, "length": 500, "changes": [250], "events": [], "warned": []},
        **{"learned": learned, "kept": kept, "cpu_seconds": 36.0, "commit": "0123456789" * 4},
        **{"hardware": {"cpu": "a processor", "cores": 2}, "versions": {"python": "3.11"}},
        **other,
    }


def test_lines_come_back_in_order_and_the_last_of_a_run_counts(tmp_path):
    file = tmp_path / "new" / "runs.jsonl"
    assert read(file) == []
    for made in (record(seed=1), record(method="plain"), record(seed=1, events=[253]), record("gru"), record(seed=0)):
        append(made, file)
    assert len(file.read_text().splitlines()) == 5
    found = [(r["network"], r["method"], r["seed"], r["events"]) for r in read(file)]
    assert found == [("mlp", "plain", 0, []), ("mlp", "sal", 0, []), ("mlp", "sal", 1, [253]), ("gru", "sal", 0, [])]


def test_a_line_that_was_cut_short_is_dropped(tmp_path):
    file = tmp_path / "runs.jsonl"
    append(record(seed=0), file)
    whole = file.read_bytes()
    append(record(seed=1), file)
    file.write_bytes(file.read_bytes()[:-20])
    assert [r["seed"] for r in read(file)] == [0]
    append(record(seed=2), file)
    assert [r["seed"] for r in read(file)] == [0, 2]
    file.write_bytes(whole[:-20])  # nothing whole is left
    append(record(seed=3), file)
    assert [json.loads(line)["seed"] for line in file.read_text().splitlines()] == [3]


def test_a_cell_is_the_mean_over_seeds_and_over_the_tasks_before_the_last():
    five = [
        record(learned=[0.9, 0.7, 0.5], kept=[0.2, 0.4, 0.5]),
        record(learned=[1.0, 1.0, 0.7], kept=[0.6, 0.8, 0.7]),
    ]
    found = cell(five)
    assert [round(value, 9) for value in found] == [0.9, 0.5, 0.6]
    assert str(found) == "0.500 / 0.600"
    assert str(cell([record(learned=[0.9], kept=[0.9])])) == "0.900 / 0.900"


def test_changes_delays_and_false_alarms_are_counted_over_seeds():
    two = [record(events=[100, 253]), record(events=[271, 300]), record(events=[])]
    assert detection(two) == ("2 of 3", "3 to 21", "2")
    assert detection([record(events=[251])]) == ("1 of 1", "1", "0")
    assert detection([record(changes=[], events=[9])]) == ("", "", "1")


def test_a_row_shows_each_method_and_a_blank_where_none_was_run():
    groups = grouped(
        [record(method="plain", kept=[0, 0.9]), record(events=[255], warned=["elements"]), record(seed=1, events=[252])]
    )
    (row,) = rows(groups, "split-two")
    scores = ("0.000 / 0.900", "0.700 / 0.800", "", "")
    assert row == ("mlp", "2", "2 of 2", "2 to 5", "0", "0.900", *scores, "elements")
    assert list(rows(groups, "permuted")) == []


def test_goals_by_hand():
    groups = grouped(
        [
            record(events=[253]),
            record(seed=1, events=[271]),
            record(method="told", kept=[0.8, 0.79]),
            record("mlp-eval", events=[253], kept=[0.72, 0.8]),
            record("mlp-eval", method="told", kept=[0.73, 0.8]),
            record(stream="stationary", changes=[], length=5000, learned=[0.9], kept=[0.9]),
            record("resnet", "brighter", events=[251, 400], kept=[0.96, 0.9]),
        ]
    )
    assert list(changes(groups)) == [
        ("changes found within 20 steps", "all", "3 of 4", "missed"),
        ("false alarms where nothing changes", "0", "0 in 5,000 steps", "met"),
        ("false alarms elsewhere", "0", "1 in 2,000 steps", "missed"),
    ]
    assert list(comparisons(groups)) == [
        ("not told within 2 points of told", "all", "3 of 4; worst 10.0 (mlp, split-two, old)", "missed"),
        ("evaluation mode within 1 point of training mode", "all", "worst 2.0 (split-two, old)", "missed"),
        ("resnet, old after brighter", "≥ 0.95", "0.960, of 0.900 when learned", "met"),
    ]


def test_a_page_has_goals_a_table_a_stream_and_the_command():
    made = [record(events=[253]), record("mobilenet-imagenet", "brighter", data="fashion-mnist", commit="unknown")]
    text = page(made)
    assert "### split-two: classes 0-4, then 5-9, in one fit" in text
    assert "| mlp | 1 | 1 of 1 | 3 | 0 | 0.900 |  | 0.700 / 0.800 |  |  |  |" in text
    assert "permuted" not in text.partition("### ")[2].partition("`python")[0]
    named = "--networks mlp mobilenet-imagenet --streams split-two brighter --methods sal --seeds 0 --data mnist"
    assert f"`python -m experiments.networks {named} --steps 250 --batch 32 --weights FOLDER`" in text
    assert "Commit 01234567, unknown; a processor, one thread a run, 0.0 hours of CPU in all; python 3.11." in text


def test_each_stream_is_described():
    assert list(STREAM) == list(STREAMS)
