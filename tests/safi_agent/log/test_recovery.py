"""Where a log goes on, whatever a process that died, another one or a hand left behind."""

import json
from pathlib import Path

import pytest

from safi_agent.log import flush
from safi_agent.log.hash_chain import Tip, seal
from safi_agent.log.key import find_key
from safi_agent.store import open_store
from safi_agent.store.log_state import read_unlogged
from tests.safi_agent.log.chains import plain_faults
from tests.safi_agent.log.filled_store import fill, ids, verdict


@pytest.mark.parametrize("cut", [0, 1, 17, -1])
def test_what_was_written_before_a_death_is_not_written_again_and_a_torn_line_is_cut(path: str, cut: int) -> None:
    store = open_store(None)
    fill(store, path, "a")
    flush(store, path)
    fill(store, path, "b", "c")
    anchor, waiting = read_unlogged(store, path)
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
