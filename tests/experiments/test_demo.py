"""The demo in its quick form."""

from pathlib import Path

import pytest

from experiments import demo
from experiments.continual.results import read_all
from experiments.figure import spread
from sal_lightning.report import reading

pytestmark = pytest.mark.slow

STEPS = 15  # of each of five tasks: enough for a change to be found
PNG = b"\x89PNG\r\n\x1a\n"


def test_it_leaves_figures_results_and_a_page_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of it in one test: a run of the demo takes seconds."""
    demo.main(["--steps", str(STEPS), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert all(word in said for word in ("average", "worst", "just learned", "drift"))
    assert f"Figures and results: {tmp_path}" in said.replace("\n", "")
    assert f"{tmp_path / 'split-domain.html'}" in said

    figures = sorted(tmp_path.glob("*.png"))
    assert "split-domain.png" in [figure.name for figure in figures]
    assert all(figure.read_bytes().startswith(PNG) for figure in figures)
    records = read_all(tmp_path)
    assert len(records) == 2 * len(figures)

    # Both methods saw the same stream.
    plain, sal = (r for r in records if r["scenario"] == "split-domain")
    assert (plain["method"], sal["method"]) == ("plain", "sal")
    assert [step for step, _ in plain["curve"]] == [step for step, _ in sal["curve"]]
    assert {step for step, _ in plain["curve"]} >= set(range(1, 5 * STEPS + 1))

    # The page shows what SAL did beside the plain run.
    text = (tmp_path / "split-domain.html").read_text(encoding="utf-8")
    assert "Not shown" not in text
    assert "The emerged pulse represents" in text
    run, other = (reading.read([tmp_path / "split-domain" / method]) for method in ("sal", "plain"))
    assert run.events == sal["events"] != []
    assert run.last("feature_drift") is not None
    assert f"{run.last('feature_drift'):.2f} here, {other.last('feature_drift'):.2f} in split-domain/plain" in text
    assert run.series["feature_drift"].steps[0] == STEPS


@pytest.mark.parametrize("heights", [[0.5, 0.5], [1.0, 0.0], [0.3, 0.31]])
def test_labels_keep_their_order_and_distance(heights: list[float]) -> None:
    a, b = spread(heights, gap=0.2)
    assert abs(a - b) >= 0.2 - 1e-9
    assert (a <= b) == (heights[0] <= heights[1])
