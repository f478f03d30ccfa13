"""Which files a log may be, and that any other is refused before anything is changed."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from safi_agent import create_safi_chain
from safi_agent.cli import app
from safi_agent.log import flush, log_path
from safi_agent.store import open_store
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.log.chains import chain
from tests.safi_agent.log.filled_store import fill, ids
from tests.safi_agent.report.records import record


def snapshot(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


OTHERS: dict[str, bytes] = {
    "key": b"0123456789abcdef" * 4 + b"\n",
    "half a key": b"0123",
    "value set": b"name: mine\nvalues:\n- {name: Truth, weight: 1}\n",
    "value set in JSON": json.dumps(THREE.model_dump()).encode(),
    "lines of JSON": b'{"a": 1}\n{"b": 2}\n',
    "a list": b'[{"turnId": "x"}]\n',
    "a text": b'"turnId"\n',
    "deep": b"[" * 100_000,
    "database": b"SQLite format 3\0" + b"\0" * 84,
    "write-ahead log": bytes.fromhex("377f0682002de21800001000"),
    "picture": b"\x89PNG\r\n\x1a\n\0\0",
    "page": b"<!doctype html>\n<html>\n",
    "blank": b"\n",
    "spaces": b"   ",
    "only looks like a record": b'{"timestamp": "2026"}\n',
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_file_in_which_something_else_is_stays_as_it_is(what: str, tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    file.write_bytes(OTHERS[what])
    with pytest.raises(
        ValueError, match=r"log: expected a log or a new file, got (another file|the database) '.*log\.json'"
    ):
        create_safi_chain(Fake(), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=file)
    assert snapshot(tmp_path) == {"log.json": OTHERS[what]}


@pytest.mark.parametrize("what", OTHERS)
def test_it_is_not_written_either_where_it_came_after_the_chain_was_opened(
    what: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(None)
    fill(store, path, "a")
    Path(path).write_bytes(OTHERS[what])
    assert flush(store, path) == []
    assert Path(path).read_bytes() == OTHERS[what]
    assert "expected a log or a new file" in caplog.text
    Path(path).unlink()
    assert flush(store, path) == ["a"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"".join(chain(3)),
        json.dumps(record(1)).encode() + b"\n",
        json.dumps(record(1)).encode(),
        json.dumps(record(1)).encode()[:40],
        json.dumps(record(1, userPrompt="x" * 2**21)).encode(),
        b'{"timest',
        b'{"turnId": "a"}\n',
        b"\n" + b"".join(chain(3)),
        b"{}\nnothing\n" + b"".join(chain(3)),
    ],
    ids=["empty", "chained", "old", "one line", "torn", "long", "torn early", "bare", "line put in", "lines put in"],
)
def test_a_log_is_taken_also_torn_or_changed(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "log.json"
    file.write_bytes(content)
    assert log_path(file) == str(file.resolve())
    assert snapshot(tmp_path) == {"log.json": content}


@pytest.mark.parametrize("end", [".key", ".key.new", ".lock", ".1", ".27"])
@pytest.mark.parametrize("there", [False, True])
def test_a_file_beside_a_log_is_no_log(end: str, there: bool, tmp_path: Path) -> None:
    log = tmp_path / "saf-spirit-log.json"
    if there:
        with create_safi_chain(Fake(), THREE, store=None, log=log) as safi:
            safi.invoke("a")
        Path(f"{log}.1").write_bytes(log.read_bytes())
        Path(f"{log}.lock").touch()
    before = snapshot(tmp_path)
    with pytest.raises(ValueError, match=r"log: expected a name that does not end in .* got '.*saf-spirit-log\.json"):
        create_safi_chain(Fake(), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=f"{log}{end}")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("end", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("there", [False, True])
def test_the_files_of_the_store_are_no_log(
    end: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        with closing(sqlite3.connect("safi.db")) as c:
            c.execute("PRAGMA journal_mode=WAL")
    before = snapshot(tmp_path)
    for log in (f"safi.db{end}", tmp_path / f"safi.db{end}", f"./nowhere/../safi.db{end}"):
        with pytest.raises(ValueError, match="log: expected"):
            create_safi_chain(Fake(), THREE, store="sqlite:///safi.db", log=log)
        with pytest.raises(ValueError, match="log: expected"):
            create_safi_chain(Fake(), THREE, store=f"sqlite:///{tmp_path}/safi.db", log=log)
    if there and end:  # whoever's store it is
        with pytest.raises(ValueError, match="got a file of the database"):
            create_safi_chain(Fake(), THREE, store=None, log=f"safi.db{end}")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("end", [".key", ".lock"])
def test_a_store_is_not_put_where_the_log_has_its_key_or_lock(end: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="log: expected a file that does not belong to the store"):
        create_safi_chain(Fake(), THREE, store=f"sqlite:///{tmp_path}/log.json{end}", log=tmp_path / "log.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_no_log_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.json")
    with pytest.raises(ValueError, match="got the device"):
        log_path(tmp_path / "log.json")


@pytest.mark.parametrize("path", ["a\0b", "x/log.json", "."])
def test_what_is_no_path_of_a_file_is_told(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="log: expected a"):
        log_path(path)


def test_links_that_go_round_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="log: expected a"):
        log_path(tmp_path / "a")


def test_a_command_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_bytes(OTHERS["value set"])
    done = CliRunner().invoke(app, ["drain", "--model", "offline", "--log", "mine.yaml"])
    assert (done.exit_code, "safi drain: log: expected a log or a new file, got another file" in done.output) == (
        2,
        True,
    )
    assert snapshot(tmp_path) == {"mine.yaml": OTHERS["value set"]}


def test_by_a_link_and_by_its_name_it_is_one_log(make: Any, tmp_path: Path) -> None:
    """One lock, one key, one anchor; and what is set aside is the file, not the link."""
    (tmp_path / "real").mkdir()
    (tmp_path / "log.json").symlink_to(tmp_path / "real" / "log.json")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    for log in ("log.json", "real/log.json", "folder/log.json", "real/../log.json"):
        with make(log=tmp_path / log) as safi:
            safi.invoke(log)
    assert len(ids(str(tmp_path / "real" / "log.json"))) == 4
    assert sorted(file.name for file in tmp_path.iterdir() if "log.json" in file.name) == ["log.json"]
    for log in ("log.json", "real/log.json", "folder/log.json"):
        done = CliRunner().invoke(app, ["verify", str(tmp_path / log), "--store", f"sqlite:///{tmp_path}/safi.db"])
        assert (done.exit_code, done.output) == (0, f"{tmp_path / log}: 4 lines, as they were written.\n")
