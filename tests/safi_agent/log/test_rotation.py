"""The files of a log, in the order of their lines."""

from pathlib import Path

from safi_agent.log.rotation import log_files, rotate


def test_full_files_come_by_number_and_nothing_else_is_one(tmp_path: Path) -> None:
    log = tmp_path / "[log]*.json"
    for end in ("", ".1", ".2", ".10", ".key", ".lock", ".02", ".x", ".1.gz", "3", ".²"):
        Path(f"{log}{end}").touch()
    assert [file.name.removeprefix(log.name) for file in log_files(log)] == [".1", ".2", ".10", ""]


def test_what_is_set_aside_gets_the_next_number(tmp_path: Path) -> None:
    log = tmp_path / "log.json"
    (tmp_path / "log.json.9").touch()
    log.write_text("x")
    rotate(log)
    assert [file.name for file in log_files(log)] == ["log.json.9", "log.json.10"]
    assert (tmp_path / "log.json.10").read_text() == "x"
