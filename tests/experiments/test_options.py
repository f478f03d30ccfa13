"""The options that commands share mean the same in each."""

from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["continual", "detection", "selection"])
def test_a_command_has_them_with_its_own_folder(name: str) -> None:
    parser = import_module(f"experiments.{name}.__main__").parser()
    usual = {
        "data": "mnist",
        "out": Path(f"results/{name}"),
        "force": False,
        "table": None,
        "threads": 1,
        "from_records": False,
    }
    assert vars(parser.parse_args([])).items() >= usual.items()
    other = {"data": "digits", "out": Path("a"), "force": True, "table": Path("b.md"), "threads": 2}
    asked = parser.parse_args(["--data", "digits", "--out", "a", "--force", "--table", "b.md", "--threads", "2"])
    assert vars(asked).items() >= other.items()


WRITERS = {
    "experiments.continual.__main__": "docs/results.md",
    "experiments.networks.__main__": "docs/results.md",
    "experiments.anatomy": "docs/results.md",
    "experiments.language.__main__": "docs/results.md",
    "experiments.selection.__main__": "docs/field.md",
    "experiments.detection.__main__": "docs/field.md",
    "benchmarks.overhead": "docs/results.md",
    "benchmarks.growth": "docs/results.md",
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_without_a_page_goes_where_its_block_is(name: str) -> None:
    args = import_module(name).parser().parse_args(["--from-records", "--table"])
    assert args.from_records
    assert args.table == Path(WRITERS[name])
    assert args.table.is_file()


@pytest.mark.parametrize("name", ["anatomy", "selection", "detection", "language"])
def test_without_records_nothing_is_run_or_written(name: str, tmp_path: Path) -> None:
    module = import_module(f"experiments.{name}" if name == "anatomy" else f"experiments.{name}.__main__")
    page = tmp_path / "page.md"
    with pytest.raises(SystemExit, match=f"Expected records of what was asked for in {tmp_path}, got none"):
        module.main(["--from-records", "--out", str(tmp_path), "--table", str(page)])
    assert not page.exists()


@pytest.mark.parametrize(
    ("name", "asked", "block"),
    [
        ("anatomy", ["--networks", "--data", "mnist-validation"], "anatomy-networks"),
        ("networks.__main__", [], "networks"),
        ("goals", [], "goals"),
        ("continual.__main__", [], "streams"),
    ],
)
def test_a_block_is_what_its_records_give(name: str, asked: list[str], block: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    reads = ["--from-records"] if name != "goals" else []
    import_module(f"experiments.{name}").main([*asked, *reads, "--table", str(page)])
    start, end = f"<!-- {block} -->", f"<!-- /{block} -->"
    shown = (ROOT / "docs" / "results.md").read_text().partition(start)[2].partition(end)[0]
    assert page.read_text().partition(start)[2].partition(end)[0] == shown
