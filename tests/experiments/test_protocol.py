"""A run, its record, and the two ways to start one."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback

from experiments import provenance
from experiments.continual import __main__ as command_line
from experiments.continual import cli, methods
from experiments.continual.batches import StreamData
from experiments.continual.evaluation import TaskAccuracy, accuracy, evaluating
from experiments.continual.model import MLP
from experiments.continual.protocol import Result, run, trainer
from experiments.continual.reported import REPORTED
from experiments.continual.results import Run, headings, markdown, overview, read_all, rows, save
from experiments.continual.streams import StreamName
from sal_lightning import SALCallback
from sal_lightning.rules import subspace

CONFIGS = sorted((provenance.ROOT / "configs" / "experiments").glob("*.yaml"))


class Watch(Callback):
    """Remember what a method could see."""

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []
        self.fits, self.training, self.optimizers, self.adam_steps = 0, set[bool](), set[int](), 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.fits += 1

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.batches.append(batch.x)
        self.training.add(all(m.training for m in pl_module.modules()) and torch.is_grad_enabled())
        self.optimizers.add(id(trainer.optimizers[0]))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.adam_steps = int(trainer.optimizers[0].state[pl_module.head.weight].get("step", 0))


@pytest.fixture(scope="module")
def plain() -> Result:
    return run("split-domain", "plain", seed=0, steps=60, data="digits", every=20)


class TestRun:
    def test_every_task_is_measured_after_each(self, plain: Result) -> None:
        assert [len(row) for row in plain.R] == [5] * 5
        assert all(0 <= value <= 1 for row in plain.R for value in row)

    def test_plain_training_learns_and_forgets(self, plain: Result) -> None:
        learned, kept, lowest = (plain.measures[name] or 0.0 for name in ("just_learned", "average", "lowest"))
        assert learned > 0.9
        assert lowest < kept < learned - 0.1
        assert plain.drift is not None
        assert plain.drift > 0.1

    def test_the_summary_is_that_of_the_matrix(self, plain: Result) -> None:
        R = plain.R
        assert plain.measures["average"] == pytest.approx(sum(R[-1]) / 5)
        assert plain.measures["worst"] == pytest.approx(min(R[-1]))
        assert plain.measures["just_learned"] == pytest.approx(sum(R[i][i] for i in range(5)) / 5)
        assert plain.measures["backward_transfer"] == pytest.approx(sum(R[-1][i] - R[i][i] for i in range(4)) / 4)

    def test_the_curve_passes_through_the_matrix(self, plain: Result) -> None:
        steps = [60 * task + place for task in range(5) for place in (*range(1, 11), 20, 40, 60)]
        assert [point.step for point in plain.curve] == steps
        ends = [point.accuracy for point in plain.curve if point.step % 60 == 0]
        assert ends == [row[: t + 1] for t, row in enumerate(plain.R)]

    def test_the_lowest_is_that_of_the_curve(self, plain: Result) -> None:
        lowest = [min(p.accuracy[t] for p in plain.curve if p.step > 60 * (t + 1)) for t in range(4)]
        assert plain.measures["lowest"] == pytest.approx(sum(lowest) / 4)

    def test_looking_more_often_changes_no_number_and_another_seed_is_another_run(self) -> None:
        seldom, often, other = (
            run("split-domain", "plain", seed, steps=15, data="digits", every=every)
            for seed, every in ((0, 15), (0, None), (1, 15))
        )
        assert len(often.curve) > len(seldom.curve)
        assert (often.R, often.drift) == (seldom.R, seldom.drift)
        assert other.R != seldom.R

    def test_one_fit_one_optimizer_and_no_reset(self) -> None:
        watch = Watch()
        run("split-class", "plain", seed=0, steps=3, data="digits", callbacks=[watch])
        assert (watch.fits, len(watch.optimizers), watch.adam_steps) == (1, 1, 15)

    def test_training_mode_and_gradients_come_back_after_each_look(self) -> None:
        watch = Watch()
        run("split-task", "plain", seed=0, steps=4, data="digits", every=1, callbacks=[watch])
        assert watch.training == {True}

    @pytest.mark.parametrize("stream", ["split-task", "split-domain-fuzzy"])
    def test_every_method_gets_the_same_batches_and_leaves_a_whole_record(self, stream: StreamName) -> None:
        seen = {}
        for method in methods.METHODS:
            seen[method] = watch = Watch()
            result = run(stream, method, seed=2, steps=4, data="digits", callbacks=[watch])
            assert json.loads(json.dumps(result.record(), allow_nan=False))["method"] == method
            assert all(isinstance(step, int) for step in result.events)
        del seen["joint"]
        reference = seen.pop("plain").batches
        for watch in seen.values():
            assert all(a.equal(b) for a, b in zip(watch.batches, reference, strict=True))

    def test_one_task_has_no_drift(self) -> None:
        result = run("stationary", "plain", seed=0, steps=4, data="digits")
        assert (len(result.R), result.drift) == (1, None)

    def test_permuted_takes_its_published_rate_unless_told(self) -> None:
        assert run("permuted", "plain", seed=0, steps=1, data="digits").lr == 1e-4
        assert run("permuted", "plain", seed=0, steps=1, data="digits", lr=0.01).lr == 0.01

    def test_a_variant_has_its_options_and_constants_for_as_long_as_it_runs(self) -> None:
        before = subspace.MIN_RANK
        with methods.varied("sal:strength=8,rules.subspace.MIN_RANK=7", "split-task") as guard:
            assert isinstance(guard, SALCallback)
            assert (guard.settings.strength, subspace.MIN_RANK) == (8, 7)
        assert before == subspace.MIN_RANK

    @pytest.mark.parametrize("method", ["sal:strength", "sal:strength=open()"])
    def test_a_variant_that_cannot_be_read_is_refused(self, method: str) -> None:
        with pytest.raises(ValueError, match=f"Expected method to be .* got {re.escape(repr(method))}"):
            methods.known(method)

    def test_an_unknown_method_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"Expected method to be one of .*got 'magic'"):
            run("split-domain", "magic", seed=0, steps=1, data="digits")


class TestModel:
    def test_only_the_outputs_in_play_are_trained(self) -> None:
        L.seed_everything(0, verbose=False)
        data = StreamData("split-task", "digits", steps=2, batch=16)
        model = MLP(data.inputs, data.outputs, width=8)
        model.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
        model.training_step(data.train_dataloader().dataset[3], 3).backward()
        moved = model.head.weight.grad.abs().sum(1) > 0  # type: ignore[union-attr]
        assert moved.nonzero().flatten().tolist() == [2, 3]

    def test_features_are_the_input_of_the_head(self) -> None:
        model, x = MLP(64, 10, width=8), torch.rand(3, 64)
        assert model(x).equal(model.head(model.features(x)))
        assert (model.features(x) >= 0).all()

    def test_published_nets_have_their_published_size(self) -> None:
        def size(*shape: int) -> int:
            return sum(p.numel() for p in MLP(*shape).parameters())

        assert size(784, 10, 400) == 478_410
        assert size(1024, 10, 1000) == 2_036_010

    def test_accuracy_counts_within_the_outputs_in_play(self) -> None:
        task = StreamData("split-task", "digits").stream.tasks[4]
        model = MLP(64, 10, width=8)
        with torch.no_grad():
            model.head.weight.zero_()
            model.head.bias.copy_(torch.tensor([9.0] * 8 + [0.0, 1.0]))
        assert accuracy(model, task) == pytest.approx(float((task.test_y == 9).float().mean()))

    def test_evaluating_leaves_evaluation_mode_as_it_was(self) -> None:
        model = MLP(4, 2, width=2).eval()
        with evaluating(model):
            assert not torch.is_grad_enabled()
        assert not model.training


class TestResults:
    def test_a_record_says_where_it_comes_from(self, plain: Result) -> None:
        assert plain.command == (
            "python -m experiments.continual --stream split-domain --methods plain --seeds 0 --steps 60 --data digits"
        )
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?|unknown", plain.commit)
        assert plain.versions["torch"] == torch.__version__
        assert plain.hardware["cores"]

    def test_the_commit_is_unknown_outside_git(self, tmp_path: Path) -> None:
        assert provenance.commit(tmp_path) == "unknown"

    def test_a_commit_with_changes_is_called_dirty(self, tmp_path: Path) -> None:
        def git(*args: str) -> str:
            identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
            done = subprocess.run(["git", *identity, *args], cwd=tmp_path, capture_output=True, text=True, check=True)
            return done.stdout.strip()

        git("init")
        (tmp_path / "file").write_text("one")
        git("add", "file")
        git("commit", "--message=one")
        assert provenance.commit(tmp_path) == git("rev-parse", "HEAD")
        (tmp_path / "file").write_text("two")
        assert provenance.commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"

    def test_a_saved_record_reads_back(self, plain: Result, tmp_path: Path) -> None:
        save(plain, tmp_path)
        (record,) = read_all(tmp_path)
        assert record == json.loads(json.dumps(plain.record()))

    def test_records_come_in_the_order_of_streams_methods_and_seeds(self, plain: Result, tmp_path: Path) -> None:
        for stream, method, seed in [("permuted", "plain", 0), ("split-task", "sal", 1), ("split-task", "plain", 2)]:
            record = plain.record() | {"scenario": stream, "method": method, "seed": seed}
            (tmp_path / f"{stream}-{method}.json").write_text(json.dumps(record))
        assert [(r["scenario"], r["method"]) for r in read_all(tmp_path)] == [
            ("split-task", "plain"),
            ("split-task", "sal"),
            ("permuted", "plain"),
        ]

    def test_rows_hold_mean_and_standard_error(self, plain: Result) -> None:
        record = plain.record()
        records = [
            record | {"measures": record["measures"] | {"average": value}, "drift": None} for value in (0.8, 0.9, 1.0)
        ]
        (row,) = rows(records)
        assert row.estimates["average"].mean == pytest.approx(0.9)
        assert row.estimates["average"].error == pytest.approx(0.1 / 3**0.5)
        assert row.cells()[headings().index("drift")] == ""
        assert row.cells()[headings().index("average")] == "0.900 ± 0.058"

    def test_markdown_has_a_table_a_setting(self, plain: Result) -> None:
        record = plain.record()
        text = markdown([record, record | {"method": "other"}, record | {"steps": 7}])
        assert text.count("| plain |") == 2
        assert text.count("## split-domain, digits,") == 2

    def test_markdown_names_the_methods_and_streams_that_were_not_run(self, plain: Result) -> None:
        record = plain.record() | {"data": "mnist"}
        text = markdown([record, record | {"method": "sal"}])
        lines = [line for line in text.splitlines() if "| not run |" in line]
        assert {line.split("|")[1].strip() for line in lines} == set(methods.METHODS) - {"plain", "sal"}
        assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {len(headings()) + 2}
        assert f"| lwf | not run |  | {REPORTED['split-domain']['lwf']:.3f} |" in text
        assert "## permuted, mnist\n\nNot run.\n" in text
        assert "## split-domain, mnist\n" not in text
        assert "ot run" not in markdown([plain.record()])

    def test_what_others_report_stands_beside_what_was_run_where_not_all_methods_are_compared(
        self, plain: Result
    ) -> None:
        ordered = plain.record() | {"data": "mnist", "scenario": "split-domain-ordered"}
        lines = [line.split(" | ") for line in markdown([ordered]).splitlines() if line.startswith("| ")]
        assert lines[0][3] == "reported"
        assert lines[2][3] == f"{REPORTED['split-domain-ordered']['plain']:.3f}"
        assert len(lines) == 3
        assert "reported" not in markdown([ordered | {"data": "digits"}]).split("## ")[1]

    def test_markdown_says_how_to_get_the_numbers_again(self, plain: Result) -> None:
        record = plain.record()
        text = markdown([record, record | {"seed": 5}])
        assert f"--stream split-domain --data digits --steps {record['steps']}" in text
        assert f"--methods plain --seeds {record['seed']} 5`" in text
        assert record["versions"]["torch"] in text

    def test_the_overview_holds_mnist_and_the_methods_asked_for(self, plain: Result) -> None:
        record = plain.record() | {"data": "mnist"}
        events = [record["steps"] * t + 3 for t in range(1, 5)] + [7]
        table = overview(
            [
                record,
                record | {"method": "sal", "events": events},
                record | {"scenario": "split-domain-ordered"},
                plain.record() | {"scenario": "permuted"},
            ]
        )
        assert "| split-domain | plain |" in table
        assert "4 of 4, 1 false" in table
        assert "ordered" not in table
        assert "permuted" not in table


class TestCommandLine:
    def arguments(self, out: Path, *more: str) -> list[str]:
        return ["--data", "digits", "--methods", "plain", "--steps", "3", "--out", str(out), *more]

    def test_it_resumes_where_results_are_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        command_line.main(self.arguments(tmp_path, "--seeds", "0"))
        command_line.main(self.arguments(tmp_path, "--seeds", "0", "1", "--table", str(tmp_path / "new" / "table.md")))
        assert "1 run, 1 there already" in " ".join(capsys.readouterr().out.split())
        assert len(read_all(tmp_path)) == 2
        assert "| plain | 2 |" in (tmp_path / "new" / "table.md").read_text()

    def test_the_quick_form_compares_all_methods(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        all_there_are = {name: methods.METHODS[name] for name in ("plain", "sal", "online-ewc")}
        monkeypatch.setattr(command_line, "METHODS", all_there_are)
        command_line.main(["--quick", "--stream", "split-domain-fuzzy", "--out", str(tmp_path)])
        assert {(r["method"], r["steps"], r["data"]) for r in read_all(tmp_path)} == {
            (method, 20, "digits") for method in all_there_are
        }

    def test_force_runs_again(self, tmp_path: Path) -> None:
        file = Run("split-domain", "plain", "digits", 0, 3, 1e-3).file(tmp_path)
        command_line.main(self.arguments(tmp_path))
        file.write_text(file.read_text().replace('"method": "plain"', '"method": "old"'))
        command_line.main(self.arguments(tmp_path, "--force"))
        assert json.loads(file.read_text())["method"] == "plain"


class TestLightningCLI:
    @pytest.fixture(autouse=True)
    def _no_arguments_of_pytest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.argv", ["cli"])

    def arguments(self, config: Path, out: Path) -> list[str]:
        small = ["--data.data=digits", "--data.steps=4", "--model.width=16", "--trainer.log_every_n_steps=1"]
        return ["fit", f"--config={config}", *small, f"--trainer.logger.init_args.save_dir={out}"]

    def test_there_is_a_config_for_each_published_stream(self) -> None:
        assert {c.stem for c in CONFIGS} >= {
            f"{s}-sal" for s in ("split-task", "split-domain", "split-class", "permuted")
        }

    @pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
    def test_every_config_runs(self, config: Path, tmp_path: Path) -> None:
        made = cli.main(self.arguments(config, tmp_path))
        (watch,) = (c for c in made.trainer.callbacks if isinstance(c, TaskAccuracy))
        assert len(watch.R) == len(made.datamodule.stream.tasks)
        assert any(type(c).__name__ == "SALCallback" for c in made.trainer.callbacks)
        (metrics,) = tmp_path.rglob("metrics.csv")
        assert "accuracy/average" in metrics.read_text().splitlines()[0]

    def test_it_is_the_same_experiment(self, tmp_path: Path) -> None:
        config = next(c for c in CONFIGS if c.stem == "split-domain-sal")
        made = cli.main([*self.arguments(config, tmp_path), "--model.width=400"])
        (watch,) = (c for c in made.trainer.callbacks if isinstance(c, TaskAccuracy))
        assert watch.R == run("split-domain", "sal", seed=0, steps=4, data="digits").R


def test_every_must_be_positive() -> None:
    with pytest.raises(ValueError, match="Expected every to be at least 1 or None, got 0"):
        TaskAccuracy(every=0)


def test_a_second_fit_starts_a_new_matrix() -> None:
    watch, data = TaskAccuracy(), StreamData("split-domain", "digits", steps=2, batch=8)
    for _ in range(2):
        trainer([watch], "cpu").fit(MLP(64, 2, width=4), datamodule=data)
    assert len(watch.R) == 5
