"""What can be done to a log, and the line at which each is found."""

import hashlib
import random
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safi_agent.errors import LogError
from safi_agent.log.hash_chain import Tip, beginning, read_seal
from safi_agent.log.verify import MOST_FAULTS, verify
from tests.safi_agent.log.attacks import ATTACKS, LOG, OTHER, STRANGER
from tests.safi_agent.log.chains import KEY, anchor, chain, record, write

WHOLE = b"".join(LOG)
PAGE = Path(__file__).parents[3] / "docs" / "log.md"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safi_agent.log.verify.PAUSE", 0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "log.json"


def place(changed: list[bytes], original: list[bytes]) -> int:
    """The first line that is not what was written there, from 1: the oracle."""
    pairs = zip(changed, original, strict=False)
    return next((i for i, (a, b) in enumerate(pairs, 1) if a != b), min(len(changed), len(original)) + 1)


@pytest.mark.parametrize("name", ATTACKS)
def test_each_attack_is_found_at_the_first_line_that_is_not_as_it_was(name: str, tmp_path: Path) -> None:
    for seed in range(40):
        changed = ATTACKS[name](random.Random(seed), list(LOG))
        if changed == LOG:
            continue
        verdict = verify(write(tmp_path / "log.json", changed), KEY, anchor(LOG))
        assert verdict.faulty, (name, seed)
        assert verdict.faults[0].at == place(changed, LOG), (name, seed, verdict.faults)


@pytest.mark.parametrize("name", ATTACKS)
def test_and_in_the_right_file_where_there_are_several(name: str, tmp_path: Path) -> None:
    for seed in range(40):
        changed = ATTACKS[name](random.Random(seed), list(LOG))
        files = (changed[:10], changed[10:20], changed[20:])
        at = place(changed, LOG)
        if changed == LOG or at > len(changed):
            continue
        file, line = ("log.json.1", at) if at <= 10 else ("log.json.2", at - 10) if at <= 20 else ("log.json", at - 20)
        verdict = verify(write(tmp_path / "log.json", *files), KEY, anchor(LOG))
        assert (Path(verdict.faults[0].file).name, verdict.faults[0].at) == (file, line), (name, seed)


def test_the_page_lists_these_attacks() -> None:
    table = PAGE.read_text().partition("| attack |")[2].partition("\n\n")[0]
    listed = [row.split("|")[1].strip() for row in table.splitlines()[2:]]
    assert listed == list(ATTACKS)


def test_a_log_that_is_as_it_was_written_has_no_fault(tmp_path: Path) -> None:
    for files in ((LOG,), (LOG[:7], LOG[7:]), (LOG[:1], LOG[1:2], LOG[2:], [])):
        verdict = verify(write(tmp_path / "log.json", *files), KEY, anchor(LOG))
        last = read_seal(LOG[-1])
        assert verdict == ((), 0, 40, 0, Tip(40, last.mac if last else ""), 0)


def test_another_log_of_the_same_key_is_found_at_the_line_that_the_store_remembers(tmp_path: Path) -> None:
    faults = verify(write(tmp_path / "log.json", OTHER), KEY, anchor(LOG[:30])).faults
    assert [fault[1:] for fault in faults] == [(30, "differs from line 30 in the store's anchor")]


def test_lines_that_the_store_was_not_told_of_yet_are_no_fault(tmp_path: Path) -> None:
    verdict = verify(write(tmp_path / "log.json", LOG), KEY, anchor(LOG[:30]))
    assert (verdict.faulty, verdict.lines) == (0, 40)


@pytest.mark.parametrize(
    "name", ["lines at the end are deleted", "the `mac` of every line is removed", "the log is emptied"]
)
def test_three_things_are_not_seen_without_the_store(name: str, tmp_path: Path) -> None:
    changed = ATTACKS[name](random.Random(1), list(LOG))
    assert verify(write(tmp_path / "log.json", changed), KEY).faulty == 0


class Bytes(NamedTuple):
    start: int
    end: int
    new: bytes


@st.composite
def edits(draw: st.DrawFn) -> Bytes:
    start = draw(st.integers(0, len(WHOLE)))
    end = min(len(WHOLE), start + draw(st.integers(0, 300)))
    return Bytes(start, end, draw(st.binary(max_size=300)))


@pytest.mark.slow
@given(edits())
@settings(max_examples=200, deadline=None)
def test_any_change_of_any_bytes_is_found_in_the_line_where_it_begins(path: Path, edit: Bytes) -> None:
    assert_found(path, WHOLE[: edit.start] + edit.new + WHOLE[edit.end :])


@pytest.mark.slow
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_any_change_of_one_byte(path: Path, at: int, flip: int) -> None:
    assert_found(path, WHOLE[:at] + bytes([WHOLE[at] ^ flip]) + WHOLE[at + 1 :])


@given(st.integers(0, len(WHOLE) - 1))
@settings(max_examples=100, deadline=None)
def test_any_truncation(path: Path, size: int) -> None:
    assert_found(path, WHOLE[:size])


@pytest.mark.slow
@given(st.permutations(LOG))
@settings(max_examples=100, deadline=None)
def test_any_permutation(path: Path, changed: list[bytes]) -> None:
    assert_found(path, b"".join(changed))


def assert_found(path: Path, changed: bytes) -> None:
    path.write_bytes(changed)
    verdict = verify(path, KEY, anchor(LOG))
    *ended, last = changed.split(b"\n")
    now = [*(line + b"\n" for line in ended), *([last] if last else [])]
    assert [fault.at for fault in verdict.faults[:1]] == ([place(now, LOG)] if changed != WHOLE else [])


def test_lines_of_a_log_that_was_not_chained_are_bound_by_the_first_that_is(tmp_path: Path) -> None:
    old = [record(i).encode() + b"\n" for i in range(1, 6)]
    new = chain(5, tip=beginning(5, hashlib.sha256(b"".join(old)).hexdigest()))
    path = tmp_path / "log.json"
    verdict = verify(write(path, old + new), KEY)
    assert (verdict.faulty, verdict.lines, verdict.unsealed) == (0, 10, 5)
    for changed in (old[1:] + new, [*old, old[0], *new], [old[0].replace(b"Q", b"q"), *old[1:], *new], new):
        verdict = verify(write(path, changed), KEY)
        assert verdict.faults[0].at == 1
    assert verify(write(path, old), KEY)[1:] == (0, 5, 5, None, 0)


def test_earlier_files_may_be_kept_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "log.json", LOG[9:])
    assert verify(path, KEY, anchor(LOG)).faults[0][1:] == (1, "is line 10 of the chain; expected line 1 first")
    assert verify(path, KEY, anchor(LOG), first=10).faulty == 0
    assert verify(path, KEY, anchor(LOG), first=9).faults[0].at == 1


def test_the_store_may_know_another_key(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="expected the key with id"):
        verify(write(tmp_path / "log.json", LOG), STRANGER, anchor(LOG))


def test_a_log_of_which_nothing_is_known_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        verify(tmp_path / "nowhere.json", KEY)
    assert verify(tmp_path / "nowhere.json", KEY, anchor(LOG)).faults[0].what == "lines 1 to 40 are missing at the end"


def test_only_the_first_faults_are_told_and_all_are_counted(tmp_path: Path) -> None:
    verdict = verify(write(tmp_path / "log.json", chain(100, STRANGER)), KEY)
    assert (len(verdict.faults), verdict.faulty) == (MOST_FAULTS, 100)


@pytest.mark.parametrize("name", [name for name in ATTACKS if " line " in name])
def test_what_was_done_to_one_line_is_told_at_most_twice(name: str, tmp_path: Path) -> None:
    for seed in range(20):
        changed = ATTACKS[name](random.Random(seed), list(LOG))
        assert verify(write(tmp_path / "log.json", changed), KEY, anchor(LOG)).faulty <= 2, (name, seed)


def test_a_line_that_is_being_written_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "log.json", [WHOLE[:-30]])

    def finish(seconds: float) -> None:
        path.write_bytes(WHOLE)

    monkeypatch.setattr("safi_agent.log.verify.time.sleep", finish)
    assert verify(path, KEY, anchor(LOG)).faulty == 0
