"""The log: whole lines, once each, whatever a process that died left behind."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from safi_agent.log import flush
from safi_agent.store import Commit, Store, open_store


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log.json")


def fill(store: Store, path: str, *ids: str) -> None:
    store.keep_values("v", "{}")
    for i in ids:
        body = {"id": i, "key": "k", "valueSet": "s", "text": "\u2028\ud800 ü"}
        store.add(body, "v", path, audit=False)
    store.commit_ready("k", lambda row, before: Commit({"turnId": row.id, "text": row.body["text"]}, None))


def ids(path: str) -> list[str]:
    return [json.loads(line)["turnId"] for line in Path(path).read_bytes().splitlines()]


def test_lines_are_ascii_end_with_a_newline_and_come_once(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    assert flush(store, path)
    assert flush(store, path)
    content = Path(path).read_bytes()
    assert content.isascii()
    assert content.endswith(b"\n")
    assert ids(path) == ["a", "b"]
    assert json.loads(content.splitlines()[0])["text"] == "\u2028\ud800 ü"


@pytest.mark.parametrize("cut", [0, 1, 17, -1])
def test_what_was_written_before_a_death_is_not_written_again_and_a_torn_line_is_cut(path: str, cut: int) -> None:
    store = open_store(None)
    fill(store, path, "a")
    flush(store, path)
    fill(store, path, "b", "c")
    _, waiting = store.unlogged(path)
    whole = "".join(record + "\n" for _, record in waiting).encode()
    first = len(waiting[0][1]) + 1
    with Path(path).open("ab") as file:  # b is there, c only in part, and the store was not told
        file.write(whole[: first + cut] if cut >= 0 else whole[:-1])
    assert flush(store, path)
    assert ids(path) == ["a", "b", "c"]


def test_lines_of_others_are_left_alone(path: str) -> None:
    store, other = open_store(None), open_store(None)
    fill(store, path, "a")
    flush(store, path)
    fill(other, path, "x")
    flush(other, path)
    fill(store, path, "b")
    flush(store, path)
    assert ids(path) == ["a", "x", "b"]


def test_a_log_that_was_taken_away_is_begun_anew(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    Path(path).rename(path + ".1")
    fill(store, path, "c")
    flush(store, path)
    assert ids(path) == ["c"]


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
