"""Runs read back from both kinds of logger."""

import json

import pytest
from lightning.pytorch.loggers import CSVLogger

from sal_lightning import SALCallback
from sal_lightning.drift_monitor import DriftMonitor
from sal_lightning.report.reading import Run, Series, find, read
from tests.everywhere.models import Batches
from tests.sal_lightning.report.runs import fit

CSV = """\
loss,sal/protected_step,sal/protected_epoch,sal/step_step,sal/step,sal/layers/a.b/held/protected,sal/consolidated_at,step
0.5,,,,,,,0
,10.0,,20,,,,19
,,,,20,1.5,,19
,,,,,,17,19
,nan,,40,,,,39
,12.0,,40,,,,39
,,11.0,,,,,39
"""


def test_rows_of_one_step_come_together_and_epoch_means_stay_out(tmp_path):
    (tmp_path / "metrics.csv").write_text(CSV)
    run = read([tmp_path])
    assert run.series["protected"] == ([20, 40], [10, 12])
    assert run.series["layers/a.b/held/protected"] == ([20], [1.5])
    assert run.layers() == ["a.b"]
    assert run.events == [17]
    assert "loss" not in run.series
    assert run.last("protected") == 12
    assert run.last("coherence") is None


def test_layers_come_in_the_order_of_their_numbers():
    logged = ("layers/blocks.10.up/held/protected", "layers/head/held/protected", "layers/blocks.2.up/held/protected")
    run = Run("", dict.fromkeys(logged, Series([0], [1])), [])
    assert run.layers() == ["blocks.2.up", "blocks.10.up", "head"]


def test_several_fits_are_one_run(tmp_path):
    for name, step in (("one", 20), ("two", 40)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text(f"sal/effect_step,sal/step_step\n{step / 100},{step}\n")
    assert read([tmp_path / "one", tmp_path / "two"]).series["effect"] == ([20, 40], [0.2, 0.4])


def test_a_cascade_that_lies_beside_it_is_read(tmp_path):
    (tmp_path / "metrics.csv").write_text(CSV)
    (tmp_path / "cascade.json").write_text(json.dumps({"generations": 3}))
    assert read([tmp_path / "metrics.csv"]).cascade == {"generations": 3}


def test_missing_and_ambiguous_runs_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        read([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match=r"a metrics\.csv or a run-\*\.wandb"):
        read([tmp_path])
    for i in range(7):
        (tmp_path / f"version_{i}").mkdir()
        (tmp_path / f"version_{i}" / "metrics.csv").write_text("loss,step\n1,0\n")
    with pytest.raises(ValueError, match=r"one run in .*version_0, version_1.* and 2 more"):
        find(tmp_path)
    with pytest.raises(ValueError, match=r"values named sal/…"):
        read([tmp_path / "version_3"])


@pytest.mark.slow
def test_the_same_run_in_both_loggers_reads_the_same(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    offline = WandbLogger(offline=True, save_dir=tmp_path, settings=wandb.Settings(silent=True, console="off"))
    callbacks = [SALCallback(histograms=True), DriftMonitor(Batches()[0][0], since=30)]
    fit(tmp_path, callbacks, logger=[offline, CSVLogger(tmp_path, name="", version="csv")])
    wandb.finish()
    wandb.teardown()
    a, b = read([tmp_path / "csv"]), read([tmp_path / "wandb"])
    assert a.events == b.events == callbacks[0].events == [43]
    # Of all layers together only Weights & Biases is given a histogram.
    assert {name for name in b.series if not name.startswith("stability/")} == set(a.series)
    for name, series in a.series.items():
        assert b.series[name].steps == series.steps
        assert b.series[name].values == pytest.approx(series.values, rel=1e-5, abs=1e-5), name
    assert a.series["feature_drift"].steps == [*range(30, 61, 10)]
