"""What each kind of logger is given, read back from where it wrote it."""

import csv
import json

import lightning as L
import pytest
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import DummyLogger

from sal_lightning import SALCallback
from sal_lightning.report import panels
from sal_lightning.report.histograms import BINS, EDGES, banded, views
from tests import offline_wandb
from tests.sal_lightning.report.runs import fit

LAYERS = ("net.0", "net.3")


pytestmark = pytest.mark.slow  # a run with W&B and one without


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory):
    """Two fits of one callback in one offline run: its rows, and the callback."""
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    folder, patch = tmp_path_factory.mktemp("wandb"), pytest.MonkeyPatch()
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        patch.setenv(name, str(folder / name))
    patch.setenv("WANDB_MODE", "offline")
    logger = WandbLogger(offline=True, save_dir=folder, settings=wandb.Settings(silent=True, console="off"))
    callback = SALCallback(histograms=True)
    _, model = fit(folder, [callback], logger=logger)
    fit(folder, [callback], model=model, logger=logger)
    wandb.finish()
    wandb.teardown()
    patch.undo()
    return offline_wandb.history(folder), callback, folder


def test_steps_go_on_over_several_fits(wandb_run):
    rows, _, _ = wandb_run
    by_fit = list(range(10, 121, 10))
    assert [row["sal/step"] for row in rows if "sal/suppressed" in row] == by_fit
    assert [row["sal/step"] for row in rows if "sal/stability/held/values" in row] == by_fit


def test_every_layer_has_a_histogram_and_all_together_one(wandb_run):
    rows, callback, _ = wandb_run
    last = [row for row in rows if "sal/stability/held/values" in row][-1]
    seen = views(callback.layers)
    total = [0.0] * BINS
    for name in LAYERS:
        counts = last[f"sal/layers/{name}/held/values"]
        assert counts == pytest.approx(list(seen[name].held))
        assert last[f"sal/layers/{name}/held/bins"] == pytest.approx(list(EDGES))
        total = [a + b for a, b in zip(total, counts, strict=True)]
        assert sum(last[f"sal/layers/{name}/observed/values"]) == pytest.approx(seen[name].weights)
    assert last["sal/stability/held/values"] == pytest.approx(total)


def test_the_histograms_agree_with_the_scalars_of_the_same_step(wandb_run):
    rows, _, _ = wandb_run
    scalars = {row["sal/step"]: row for row in rows if "sal/protected" in row}
    for row in rows:
        if "sal/stability/held/values" in row:
            for kind, prefix in (("held", ""), ("observed", "observed/")):
                percents = banded(row[f"sal/stability/{kind}/values"])
                for band, percent in percents._asdict().items():
                    assert percent == pytest.approx(scalars[row["sal/step"]][f"sal/{prefix}{band}"], abs=0.01)


def test_the_exact_steps_of_consolidation_are_listed(wandb_run):
    rows, callback, _ = wandb_run
    assert callback.events[0] == 43
    told = [row["sal/consolidated_at"] for row in rows if "sal/consolidated_at" in row]
    assert sorted(set(told)) == callback.events


def test_a_table_of_layers_comes_at_the_end_of_each_fit(wandb_run):
    rows, callback, folder = wandb_run
    tables = [row for row in rows if "sal/table/path" in row]
    assert len(tables) == 2
    (file,) = folder.rglob(tables[-1]["sal/table/path"].rpartition("/")[2])
    kept = json.loads(file.read_text())
    headings, expected = panels.table(views(callback.layers))
    assert kept["columns"] == headings
    assert [row[:3] for row in kept["data"]] == [["net.0", "subspace", 416], ["net.3", "subspace", 132]]
    assert kept["data"] == expected
    assert all(sum(row[3:6]) == pytest.approx(100, abs=0.02) for row in kept["data"])


def test_a_csv_file_has_each_layer_in_percent(tmp_path):
    callback = SALCallback()
    fit(tmp_path, [callback], logger=CSVLogger(tmp_path, name="", version="run"))
    with open(tmp_path / "run" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["sal/layers/net.0/held/protected"]][-1]
    assert float(last["sal/step"]) == 60
    for name, view in views(callback.layers).items():
        for band, percent in banded(view.held)._asdict().items():
            assert float(last[f"sal/layers/{name}/held/{band}"]) == pytest.approx(percent)
    assert [float(row["sal/consolidated_at"]) for row in rows if row["sal/consolidated_at"]] == callback.events == [43]


class Writer:
    """As much of TensorBoard's writer as is used."""

    def __init__(self):
        self.histograms = []

    def add_histogram_raw(
        self, tag, min, max, num, sum, sum_squares, bucket_limits, bucket_counts, global_step=None, walltime=None
    ):
        self.histograms.append((tag, num, sum, bucket_limits, bucket_counts, global_step))


class Board(DummyLogger):
    """A logger whose experiment draws histograms."""

    def __init__(self):
        super().__init__()
        self.writer, self.logged = Writer(), []

    @property
    def experiment(self):
        return self.writer

    def log_metrics(self, *args, **kwargs):
        self.logged.append(args or kwargs)


def test_several_loggers_each_get_what_they_can_show(tmp_path):
    board = Board()
    fit(tmp_path, [SALCallback()], logger=[board, CSVLogger(tmp_path, name="", version="run")])
    tags = {tag for tag, *_ in board.writer.histograms}
    assert tags == {f"sal/{of}/{kind}" for of in ("layers/net.0", "layers/net.3", "stability") for kind in panels.KINDS}
    _, num, total, limits, counts, step = board.writer.histograms[-1]
    assert num == sum(counts) == pytest.approx(548)
    assert len(limits) == len(counts) == BINS
    assert 0 <= total <= num
    assert step == 59
    assert (tmp_path / "run" / "metrics.csv").is_file()


@pytest.mark.parametrize("options", [{"logger": False}, {"fast_dev_run": 3}, {"barebones": True}])
def test_without_a_logger_nothing_breaks(tmp_path, options):
    if "barebones" in options:
        for name in (
            "log_every_n_steps",
            "logger",
            "enable_progress_bar",
            "enable_model_summary",
            "enable_checkpointing",
        ):
            options = {**options, name: None}
    callback = SALCallback()
    fit(tmp_path, [callback], **options)
    assert callback.layers[0].step >= 3


class Counted(SALCallback):
    """Writes down at which steps the spectrum is asked for: there the host waits for the device."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def bands(self):
        self.asked.append(self.layers[0].step)
        return super().bands()


class Bar(L.pytorch.callbacks.TQDMProgressBar):
    """Writes down what it shows."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def on_train_batch_end(self, trainer, *args):
        super().on_train_batch_end(trainer, *args)
        self.shown.append(self.get_metrics(trainer, trainer.lightning_module).get("sal"))


def test_the_progress_bar_shows_the_spectrum_and_asks_only_on_log_steps(tmp_path):
    callback, bar = Counted(), Bar()
    fit(tmp_path, [callback, bar], enable_progress_bar=True)
    assert callback.asked == list(range(10, 61, 10))
    assert bar.shown[:9] == [None] * 9
    assert bar.shown[20] == "0/0/100"
    assert bar.shown[-1] == "/".join(f"{percent:.0f}" for percent in callback.spectrum())
    assert bar.shown[-1] != "0/0/100"
