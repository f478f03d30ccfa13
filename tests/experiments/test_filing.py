"""What is filed can be read again, and says how it was made."""

from pathlib import Path

import pytest

from experiments import filing

MADE = {
    "command": "python -m it",
    "commit": "0123456789abcdef-dirty",
    "hardware": {"cpu": "chip", "cores": 2},
    "versions": {"torch": "2"},
}


def test_records_are_read_as_they_were_saved_by_name(tmp_path: Path) -> None:
    for name in ("b", "a"):
        filing.save({"name": name}, tmp_path / "new" / f"{name}.json")
    assert filing.read_all(tmp_path / "new") == [{"name": "a"}, {"name": "b"}]
    assert filing.read(tmp_path / "new" / "b.json") == {"name": "b"}


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    filing.save({"loss": 1.0}, tmp_path / "a.json")
    with pytest.raises(ValueError, match="JSON"):
        filing.save({"loss": float("nan")}, tmp_path / "a.json")
    with pytest.raises(TypeError):
        filing.write_whole(tmp_path / "a.json", "no bytes")  # type: ignore[arg-type]
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert filing.read(tmp_path / "a.json") == {"loss": 1.0}


def test_a_source_names_the_gpu_where_there_was_one_and_changes_that_are_in_no_commit() -> None:
    assert filing.source(MADE) == "`python -m it`\n\nCommit 01234567-dirty; chip, 2 cores; torch 2.\n"
    graphics = MADE | {"commit": "0123456789abcdef", "hardware": {"cpu": "chip", "gpu": "card", "cores": 2}}
    assert "Commit 01234567; card, 2 cores;" in filing.source(graphics)


def test_the_origin_of_a_number_is_enough_for_its_source() -> None:
    made = filing.origin("python -m it", 3, "cpu")
    assert made["seed"] == 3
    assert made["versions"]["torch"] in filing.source(made)
