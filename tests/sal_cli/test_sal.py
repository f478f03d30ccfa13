"""``sal report`` and ``sal dashboard``."""

import pytest
from typer.testing import CliRunner

from sal_cli.sal import app


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.csv").write_text("sal/suppressed_step,sal/effect_step,sal/step_step\n0.5,0.25,10\n0.6,0.2,20\n")
    return folder


def test_a_page_is_written_where_it_is_asked_for(run, tmp_path):
    done = CliRunner().invoke(app, ["report", str(run), "--out", str(tmp_path / "new" / "page.html")])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "new" / "page.html") in done.output.replace("\n", "")
    text = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert "At the end 60% and 20%" in text
    assert "Not logged in this run" in text


def test_a_callback_with_a_name_is_asked_for_by_it(run, tmp_path):
    file = run / "metrics.csv"
    file.write_text(file.read_text().replace("sal/", "sal/often/"))
    for name, code in (("often", 0), ("seldom", 2)):
        done = CliRunner().invoke(app, ["report", str(run), "--name", name, "--out", str(tmp_path / f"{name}.html")])
        assert done.exit_code == code, done.output
    assert "At the end 60% and 20%" in (tmp_path / "often.html").read_text(encoding="utf-8")


def test_a_run_that_is_not_there_is_an_error_in_words(tmp_path):
    done = CliRunner().invoke(app, ["report", str(tmp_path / "none"), "--out", str(tmp_path / "page.html")])
    assert done.exit_code == 2
    assert done.stderr == (
        f"sal report: Expected the folder or file of a run, got {tmp_path / 'none'}, which does not exist.\n"
    )
    assert not (tmp_path / "page.html").exists()
