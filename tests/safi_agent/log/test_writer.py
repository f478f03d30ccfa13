"""The log: whole lines, once each; what cannot be written waits."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from safi_agent.log import flush, log_path
from safi_agent.log.rotation import log_files
from safi_agent.store import open_store
from safi_agent.store.log_state import read_anchor
from tests.safi_agent.fakes import Fake
from tests.safi_agent.log.filled_store import fill, ids, verdict
from tests.safi_agent.log_lines import lines


def test_lines_are_ascii_end_with_a_newline_and_come_once(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    assert flush(store, path) == ["a", "b"]
    assert flush(store, path) == []
    content = Path(path).read_bytes()
    assert content.isascii()
    assert content.endswith(b"\n")
    assert ids(path) == ["a", "b"]
    assert json.loads(content.splitlines()[0])["text"] == "\u2028\ud800 ü"


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
def test_a_new_log_and_its_key_are_for_their_owner_alone(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a")
    assert flush(store, path)
    assert {Path(file).stat().st_mode & 0o777 for file in (path, f"{path}.key")} == {0o600}


def test_a_log_that_cannot_be_written_waits(path: str, caplog: pytest.LogCaptureFixture) -> None:
    store = open_store(None)
    fill(store, path, "a")
    Path(path).mkdir()
    assert not flush(store, path)
    assert "could not be written" in caplog.text
    Path(path).rmdir()
    assert flush(store, path)
    assert ids(path) == ["a"]


def test_a_log_that_cannot_be_written_does_not_hold_up_answers(make: Any, tmp_path: Path) -> None:
    safi = make()
    (tmp_path / "log.json").mkdir()
    assert safi.invoke("a").content == "An answer."
    assert safi.drain() == 1
    (tmp_path / "log.json").rmdir()
    safi.invoke("b")
    safi.drain()
    assert [json.loads(line)["userPrompt"] for line in (tmp_path / "log.json").read_text().splitlines()] == ["a", "b"]


def test_many_threads_write_whole_lines(path: str) -> None:
    stores = [open_store(None) for _ in range(4)]
    for n, store in enumerate(stores):
        fill(store, path, *(f"{n}-{i}" for i in range(25)))
    threads = [threading.Thread(target=flush, args=(store, path)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ids(path)) == sorted(f"{n}-{i}" for n in range(4) for i in range(25))
    assert verdict(stores[0], path)[1:3] == (0, 100)


@pytest.mark.slow
def test_a_database_elsewhere_remembers_the_end_of_the_log_too(path: str, database: str) -> None:
    stores = [open_store(database), open_store(None)]
    for store in (*stores, *stores):
        fill(store, path, f"{id(store)}-{read_anchor(store, path)}")
        assert flush(store, path)
    assert read_anchor(stores[0], path) != read_anchor(stores[1], path)
    assert verdict(stores[0], path)[1:3] == verdict(stores[1], path)[1:3] == (0, 4)
    lines = Path(path).read_bytes().splitlines(True)
    Path(path).write_bytes(b"".join(lines[:2]))
    assert [fault.at for fault in verdict(stores[0], path).faults] == [3]
    stores[0].database.engine.dispose()


def test_a_full_log_is_set_aside_and_the_chain_goes_on(path: str) -> None:
    store = open_store(None)
    for i in range(12):
        fill(store, path, f"a{i}", f"b{i}")
        assert flush(store, path, 1000)
    files = log_files(path)
    assert [file.name for file in files] == ["log.json.1", "log.json.2", "log.json.3", "log.json"]
    assert [turn for file in files for turn in ids(str(file))] == [f"{a}{i}" for i in range(12) for a in "ab"]
    assert all(file.stat().st_size >= 1000 for file in files[:-1])
    assert verdict(store, path)[1:3] == (0, 24)


@pytest.mark.parametrize(
    "words", ["was begun is missing", "expected the key with id", "readable only by its owner", "at least 32"]
)
def test_with_another_key_or_none_lines_wait(
    path: str, words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = open_store(None), Path(path + ".key")
    fill(store, path, "a")
    flush(store, path)
    assert file.stat().st_mode & 0o777 == 0o600
    key = file.read_bytes()
    if words == "was begun is missing":
        file.unlink()
    elif words == "readable only by its owner":
        file.chmod(0o644)
    elif words == "at least 32":
        file.write_bytes(b"short")
    else:
        monkeypatch.setenv("SAFI_LOG_KEY", "x" * 32)
    fill(store, path, "b")
    assert not flush(store, path)
    assert words in caplog.text
    assert ids(path) == ["a"]
    monkeypatch.delenv("SAFI_LOG_KEY", raising=False)
    file.write_bytes(key)
    file.chmod(0o600)
    assert flush(store, path)
    assert verdict(store, path)[1:3] == (0, 2)


def test_a_new_store_makes_no_key_for_a_log_that_has_one(path: str) -> None:
    store, other, file = open_store(None), open_store(None), Path(path + ".key")
    fill(store, path, "a")
    flush(store, path)
    file.unlink()
    fill(other, path, "b")
    assert not flush(other, path)
    assert not file.exists()


def test_a_database_is_not_taken_for_a_log(tmp_path: Path) -> None:
    open_store(f"sqlite:///{tmp_path}/safi.db")
    before = (tmp_path / "safi.db").read_bytes()
    with pytest.raises(ValueError, match=r"log: expected a log or a new file, got the database .*safi\.db"):
        log_path(tmp_path / "safi.db")
    assert (tmp_path / "safi.db").read_bytes() == before


@pytest.mark.parametrize(
    "odd",
    ["\ud800", "a\x00b", "\u202egnp.exe", 'x", "mac": "0"}\n{"turnId": "y', "a\u2028b\r\nc", "\U0001f600" * 50_000],
    ids=["half a letter", "nul", "right to left", "a line of its own", "line breaks", "long"],
)
def test_odd_texts_come_to_the_log_as_they_were_on_one_line(make: Any, tmp_path: Path, odd: str) -> None:
    safi = make(Fake(intellect=f"So: {odd[:1000]}."))
    assert safi.invoke(f"Why {odd}?").text == f"So: {odd[:1000]}."
    safi.drain()
    (record,) = lines(tmp_path / "log.json")
    assert (record["userPrompt"], record["auditStatus"]) == (f"Why {odd}?", "complete")
