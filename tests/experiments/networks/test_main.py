"""The command: runs once, goes on where it was stopped, and says what it leaves out."""

import json

import pytest

from experiments.networks.__main__ import main, parser, wanted
from experiments.networks.jobs import carry_out
from experiments.networks.mobilenet import FILE
from experiments.networks.protocol import Run

QUICK = ["--quick", "--networks", "mlp", "--streams", "split-two", "--methods"]


@pytest.mark.slow
def test_runs_are_lines_and_are_run_once(tmp_path, capsys):
    page, file = tmp_path / "page.md", tmp_path / "out" / "runs.jsonl"
    out = ["--out", str(file.parent)]
    main([*QUICK, "sal", *out])
    (record,) = map(json.loads, file.read_text().splitlines())
    named = "--networks mlp --streams split-two --methods sal --seeds 0"
    assert record["command"] == f"python -m experiments.networks {named} --data digits --steps 20 --batch 32"
    assert record.keys() >= {"commit", "hardware", "versions", "cpu_seconds"}
    main([*QUICK, "sal", "plain", *out, "--table", str(page)])
    assert [json.loads(line)["method"] for line in file.read_text().splitlines()] == ["sal", "plain"]
    assert "1 run, 1 there already" in capsys.readouterr().out
    assert "| mlp | 1 | " in page.read_text()
    assert page.read_text().rstrip().endswith("<!-- /networks -->")


def test_mobilenet_without_weights_is_left_out_and_the_rest_is_run(tmp_path, capsys):
    main([*QUICK, "plain", "--out", str(tmp_path), "--networks", "mobilenet-imagenet", "mlp"])
    said = " ".join(capsys.readouterr().out.split())
    assert f"mobilenet-imagenet is left out. Expected weights to be a folder with {FILE}, got None." in said
    assert "1 run, 0 there already" in said


def test_a_run_that_fails_is_named_and_ends_no_other(tmp_path, capsys):
    (tmp_path / FILE).write_bytes(b"no weights")
    asked = [*QUICK, "plain", "--out", str(tmp_path), "--networks", "mobilenet-imagenet", "mlp"]
    with pytest.raises(SystemExit, match="1 failed"):
        main([*asked, "--weights", str(tmp_path)])
    said = " ".join(capsys.readouterr().out.split())
    assert "--networks mobilenet-imagenet --streams split-two --methods plain" in said
    assert "failed: UnpicklingError" in said
    assert [json.loads(line)["network"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == ["mlp"]


@pytest.mark.slow
def test_runs_in_processes_of_their_own_give_the_same():
    asked = [Run("mlp", "split-two", "plain", 0, "digits", steps=3)]
    (alone,), (apart,) = (list(carry_out(asked, None, jobs)) for jobs in (1, 2))
    assert apart["kept"] == alone["kept"]
    assert apart["hardware"]["threads"] == 1
    with pytest.raises(ValueError, match="jobs to be at least 1, got 0"):
        list(carry_out(asked, None, 0))


def test_by_default_all_that_is_useful_is_run():
    runs = list(wanted(parser().parse_args([])))
    assert len(runs) == len(set(runs))
    assert {run.seed for run in runs} == {0, 1, 2}
    assert {run.data for run in runs if run.network == "mobilenet-imagenet"} == {"fashion-mnist"}
    chosen = parser().parse_args(["--networks", "gru", "--streams", "labels", "--seeds", "4", "5"])
    assert [(run.method, run.seed) for run in wanted(chosen)] == [("plain", 4), ("sal", 4), ("sal", 5)]


@pytest.mark.slow
def test_variants_have_a_table_of_their_own(tmp_path, capsys):
    page = tmp_path / "page.md"
    asked = ["told", "told:pull=0", "ewc:strength=100"]
    main([*QUICK, *asked, "--out", str(tmp_path), "--variants", str(page)])
    assert "variants, old / new" in capsys.readouterr().out
    heading = next(line for line in page.read_text().splitlines() if line.startswith("| network"))
    assert [cell.strip() for cell in heading.strip("|").split("|")] == [
        "network",
        "stream",
        "told",
        "ewc:strength=100",
        "told:pull=0",
    ]
    assert "--methods told ewc:strength=100 told:pull=0" in page.read_text()
    first = page.read_text()
    main([*QUICK, *asked, "--out", str(tmp_path), "--variants", str(page), "--block", "other"])
    _, _, other = page.read_text().partition(first.rstrip())
    assert other.strip() == first.strip().replace("networks-variants-digits", "other")


def test_an_unknown_method_is_named(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--methods", "tolt:pull=0"])
    assert "Expected method to be one of ('plain', 'sal', 'told', 'joint', 'ewc', 'slda')" in capsys.readouterr().err
