"""The workspace's layout, and what is said without a key; nothing is sent."""

import json
import warnings

import pytest
from lightning.pytorch.loggers import CSVLogger

from sal_lightning import SALCallback
from sal_lightning.drift_monitor import DriftMonitor
from sal_lightning.report import dashboard
from tests.everywhere.models import Batches
from tests.sal_lightning.report.runs import fit


@pytest.fixture(scope="module", autouse=True)
def _loaded():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pydantic, about how wandb-workspaces is written
        pytest.importorskip("wandb_workspaces.workspaces")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "often"])
def test_each_panel_shows_what_is_really_logged(tmp_path, name):
    fit(
        tmp_path,
        [SALCallback(name=name), DriftMonitor(Batches()[0][0])],
        logger=CSVLogger(tmp_path, name="", version="run"),
    )
    logged = set((tmp_path / "run" / "metrics.csv").read_text().splitlines()[0].split(","))
    layout = json.loads(dashboard.workspace("a project", "somebody", name)._to_model().model_dump_json())
    assert (layout["project"], layout["entity"]) == ("a project", "somebody")
    sections = layout["spec"]["section"]["panel_bank_config"]["sections"]
    assert [s["name"] for s in sections][:4] == ["Spectra", "Suppression", "Drift", "Emergence map"]
    shown = [panel["config"] for section in sections for panel in section["panels"]]
    assert len(shown) >= 9
    for panel in shown:
        assert {panel["x_axis"], *panel["metrics"]} <= logged, panel["chart_title"]
    spectra = shown[0]
    assert spectra["plot_type"] == "stacked-area"
    own = "sal/often/" if name else "sal/"
    assert spectra["metrics"] == [f"{own}{band}" for band in ("protected", "neutral", "volatile")]


@pytest.mark.slow
def test_without_a_key_it_says_so_and_creates_nothing(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(ValueError, match="WANDB_API_KEY; got none"):
        dashboard.create("a project")
