"""The demo in its quick form."""

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from experiments import demo
from experiments.continual.results import read_all
from experiments.figure import spread
from sal_lightning.report import reading

pytestmark = pytest.mark.slow

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that it wrote to, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    with redirect_stdout(io.StringIO()) as said:
        demo.main(["--steps", "15", "--out", str(folder)])
    return folder, said.getvalue()


@pytest.fixture(scope="module")
def out(shown: tuple[Path, str]) -> Path:
    return shown[0]


def test_it_leaves_figures_and_results(out: Path) -> None:
    figures = sorted(out.glob("*.png"))
    assert "split-domain.png" in [figure.name for figure in figures]
    assert all(figure.read_bytes().startswith(PNG) for figure in figures)
    assert len(read_all(out)) == 2 * len(figures)


def test_it_leaves_a_page_of_what_sal_did_beside_the_plain_run(out: Path) -> None:
    text = (out / "split-domain.html").read_text(encoding="utf-8")
    assert "Not shown" not in text
    assert "The emerged pulse represents" in text
    run, plain = (reading.read([out / "split-domain" / method]) for method in ("sal", "plain"))
    (sal,) = (r for r in read_all(out) if (r["method"], r["scenario"]) == ("sal", "split-domain"))
    assert run.events == sal["events"] != []
    assert run.last("feature_drift") is not None
    assert f"{run.last('feature_drift'):.2f} here, {plain.last('feature_drift'):.2f} in split-domain/plain" in text
    assert run.series["feature_drift"].steps[0] == 15


def test_both_methods_saw_the_same_stream(out: Path) -> None:
    plain, sal = (r for r in read_all(out) if r["scenario"] == "split-domain")
    assert (plain["method"], sal["method"]) == ("plain", "sal")
    assert [step for step, _ in plain["curve"]] == [step for step, _ in sal["curve"]]
    assert {step for step, _ in plain["curve"]} >= set(range(1, 76))


def test_it_says_what_it_found_and_where(shown: tuple[Path, str]) -> None:
    out, said = shown
    assert all(word in said for word in ("average", "worst", "just learned", "drift"))
    assert f"Figures and results: {out}" in said.replace("\n", "")
    assert f"{out / 'split-domain.html'}" in said


@pytest.mark.parametrize("heights", [[0.5, 0.5], [1.0, 0.0], [0.3, 0.31]])
def test_labels_keep_their_order_and_distance(heights: list[float]) -> None:
    a, b = spread(heights, gap=0.2)
    assert abs(a - b) >= 0.2 - 1e-9
    assert (a <= b) == (heights[0] <= heights[1])
