"""Examples as notebooks: what is committed is of the scripts beside them, small, and tells nothing of a machine."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from experiments.notebooks import PARAMETERS, PLOTLY, drawn, execute, main, outputs, read, sources, unlike
from experiments.provenance import ROOT
from tests.browser import need

SMALL = 300_000  # bytes


@pytest.fixture(params=sources(), ids=lambda source: source.stem)
def source(request) -> Path:
    return request.param


def test_there_are_three() -> None:
    assert [source.stem for source in sources()] == ["character_lora", "governed_agent", "image_stream"]


def test_the_committed_notebook_has_the_cells_of_its_script(source: Path) -> None:
    kept = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(kept)
    assert unlike(read(source), kept) == []


def test_the_committed_notebook_has_run_is_small_and_tells_nothing_of_a_machine(source: Path) -> None:
    file = source.with_suffix(".ipynb")
    kept = nbformat.read(file, as_version=4)
    cells = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for output in outputs(kept)} <= {"stream", "display_data", "execute_result"}
    assert any("image/png" in output.get("data", {}) for output in outputs(kept))
    assert not any(PLOTLY in output.get("data", {}) or output.get("name") == "stderr" for output in outputs(kept))
    said = json.dumps([output.get("text", output.get("data", {}).get("text/plain")) for output in outputs(kept)])
    assert not re.search(r"/tmp|/home|/root|/usr|\.venv|0x[0-9a-f]{6}", said)
    assert str(ROOT) not in said
    assert file.stat().st_size < SMALL


def test_one_cell_has_the_settings_and_it_is_the_first_of_code(source: Path) -> None:
    first, *others = (cell for cell in read(source).cells if cell.cell_type == "code")
    assert first.metadata["tags"] == [PARAMETERS]
    assert not any(PARAMETERS in cell.metadata.get("tags", ()) for cell in others)


def test_a_cell_that_differs_is_named() -> None:
    a, b = (nbformat.v4.new_notebook() for _ in range(2))
    a.cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_markdown_cell("2")]
    b.cells = [nbformat.v4.new_code_cell("1"), nbformat.v4.new_markdown_cell("3"), nbformat.v4.new_code_cell("4")]
    assert unlike(a, a) == []
    assert unlike(a, b) == [1, 2]


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.py"
    figure = "go.Figure(go.Scatter(y=[1, 2]))"
    file.write_text(
        f'# %% tags=["parameters"]\nA = 1\n\n# %%\nB = A + 1\nprint(B)\n\n'
        f"# %%\nimport plotly.graph_objects as go\n\n{figure}\n"
    )
    return file


@pytest.mark.slow
def test_settings_take_the_place_of_those_of_the_script(script: Path, tmp_path: Path) -> None:
    done = execute(read(script), tmp_path, {"A": 41})
    assert next(outputs(done)).text == "42\n"


@pytest.mark.slow
def test_a_notebook_is_written_with_pictures_for_figures(
    script: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need()
    main(["tiny", "--folder", str(tmp_path)])
    kept = nbformat.read(tmp_path / "tiny.ipynb", as_version=4)
    printed, picture = outputs(kept)
    assert printed.text == "2\n"
    assert picture.data["image/png"].startswith("iVBORw0KGgo")
    assert unlike(read(script), kept) == []
    assert "tiny.ipynb" in capsys.readouterr().out


def test_a_notebook_without_figures_is_left_as_it_is() -> None:
    empty = nbformat.v4.new_notebook()
    assert drawn(empty) is empty
