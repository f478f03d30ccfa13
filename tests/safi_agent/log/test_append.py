"""The log: whole lines, once each, whatever a process that died left behind."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from safi_agent.log import flush, log_path
from safi_agent.log.files import log_files
from safi_agent.log.key import find_key
from safi_agent.log.seal import Tip, seal
from safi_agent.log.verify import Verdict, verify
from safi_agent.store import Commit, Store, open_store
from tests.safi_agent.log.chains import plain_faults


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


def verdict(store: Store | None, path: str) -> Verdict:
    key = find_key(path)
    assert key
    return verify(path, key, store and store.anchor(path))


@pytest.mark.parametrize("cut", [0, 1, 17, -1])
def test_what_was_written_before_a_death_is_not_written_again_and_a_torn_line_is_cut(path: str, cut: int) -> None:
    store = open_store(None)
    fill(store, path, "a")
    flush(store, path)
    fill(store, path, "b", "c")
    anchor, waiting = store.unlogged(path)
    key = find_key(path)
    assert anchor
    assert key
    first, tip = seal(waiting[0][1], Tip(anchor.lines, anchor.mac), key)
    second, _ = seal(waiting[1][1], tip, key)
    with Path(path).open("ab") as file:  # b is there, c only in part, and the store was not told
        file.write(first + (second[:cut] if cut >= 0 else second[:-1]))
    assert flush(store, path)
    assert ids(path) == ["a", "b", "c"]
    assert verdict(store, path).faulty == 0


def test_a_line_that_only_looks_like_one_of_ours_keeps_no_turn_out_of_the_log(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a")
    flush(store, path)
    fill(store, path, "b")
    with Path(path).open("ab") as file:
        file.write(b'{"turnId": "b"}\n')
    flush(store, path)
    assert ids(path) == ["a", "b", "b"]
    assert [fault.at for fault in verdict(store, path).faults] == [2]


@pytest.mark.parametrize("old", [["a", "b"], ["a", "b", "c"]])
def test_a_log_that_was_not_chained_goes_on_chained(path: str, old: list[str]) -> None:
    """The old lines are kept, each turn that is in them is written no more, and they are bound by what comes."""
    before = b"".join(json.dumps({"turnId": i}).encode() + b"\n" for i in old)
    Path(path).write_bytes(before + b'{"turnId": "c", "torn')
    store = open_store(None)
    fill(store, path, "b", "c")
    assert flush(store, path)
    fill(store, path, "d")
    assert flush(store, path)
    assert ids(path) == ["a", "b", "c", "d"]
    chained = Path(path).read_bytes().splitlines(True)[len(old) :]
    key = find_key(path)
    assert key
    assert plain_faults(chained, key, before) == []
    assert verdict(store, path)[1:4] == (0, 4, len(old))


def test_lines_of_others_are_left_alone(path: str) -> None:
    store, other = open_store(None), open_store(None)
    fill(store, path, "a")
    flush(store, path)
    fill(other, path, "x")
    flush(other, path)
    fill(store, path, "b")
    flush(store, path)
    assert ids(path) == ["a", "x", "b"]
    assert verdict(store, path).faulty == verdict(other, path).faulty == 0


def test_a_log_that_was_taken_away_is_begun_anew(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    Path(path).rename(path + ".1")
    fill(store, path, "c")
    flush(store, path)
    assert ids(path) == ["c"]
    assert verdict(store, path)[1:3] == (0, 3)


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


def test_a_database_elsewhere_remembers_the_end_of_the_log_too(path: str, database: str) -> None:
    stores = [open_store(database), open_store(None)]
    for store in (*stores, *stores):
        fill(store, path, f"{id(store)}-{store.anchor(path)}")
        assert flush(store, path)
    assert stores[0].anchor(path) != stores[1].anchor(path)
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


def test_set_aside_and_killed_before_the_next_line_the_chain_goes_on(path: str) -> None:
    store = open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    Path(path).rename(path + ".1")
    assert verdict(store, path).faulty == 0
    fill(store, path, "c")
    flush(store, path)
    assert verdict(store, path)[1:3] == (0, 3)
    assert ids(path) == ["c"]


def test_another_store_goes_on_behind_full_files(path: str) -> None:
    store, other = open_store(None), open_store(None)
    fill(store, path, "a", "b")
    flush(store, path)
    Path(path).rename(path + ".1")
    fill(other, path, "x")
    flush(other, path)
    assert verdict(other, path)[1:3] == (0, 3)


def test_after_tampering_the_chain_goes_on_from_what_the_store_remembers(path: str) -> None:
    """A log that was cut or changed is not mended by what is written after it."""
    store = open_store(None)
    fill(store, path, "a", "b", "c")
    flush(store, path)
    whole = Path(path).read_bytes()
    for changed, at in ((whole[: whole.index(b"\n") + 1], 2), (whole.replace(b'"b"', b'"B"'), 2), (b"", 1)):
        Path(path).write_bytes(changed)
        fill(store, path, f"d{at}{len(changed)}")
        flush(store, path)
        assert verdict(store, path).faults[0].at == at


@pytest.mark.parametrize("words", ["is not there", "expected the key with id", "owner alone", "at least 32"])
def test_with_another_key_or_none_lines_wait(
    path: str, words: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, file = open_store(None), Path(path + ".key")
    fill(store, path, "a")
    flush(store, path)
    assert file.stat().st_mode & 0o777 == 0o600
    key = file.read_bytes()
    if words == "is not there":
        file.unlink()
    elif words == "owner alone":
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
