"""Verification with the public key alone detects every change of a log."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safi_agent.errors import LogError
from safi_agent.log.checkpoint import checkpoint_file
from safi_agent.log.hash_chain import Tip, beginning, read_seal
from safi_agent.log.rotation import rotate
from safi_agent.log.signing_keys import SigningKey
from safi_agent.log.tree_files import index_file, tree_file
from safi_agent.log.verify import MOST_FAULTS
from safi_agent.log.verify_signed import SignedVerdict, verify_signed
from tests.safi_agent.log.attacks import ATTACKS, LOG, OTHER, resealed
from tests.safi_agent.log.chains import KEY, chain, write
from tests.safi_agent.log.signed_logs import SIGNER, sign_all
from tests.safi_agent.log.test_verify import PAGE, WHOLE, Bytes, edits, place

PUBLIC = [SIGNER.public]
SEEDS = 40
FORGERIES: dict[str, Callable[[random.Random, list[bytes]], list[bytes]]] = {}


def forgery(name: str) -> Callable[[Callable[..., list[bytes]]], Callable[..., list[bytes]]]:
    def keep(work: Callable[..., list[bytes]]) -> Callable[..., list[bytes]]:
        FORGERIES[name] = work
        return work

    return keep


def rechained(lines: list[bytes], tip: Tip) -> list[bytes]:
    """These lines, chained again from here with the log's own key."""
    made = []
    for line in lines:
        sealed, tip = resealed(line, tip, KEY)
        made.append(sealed)
    return made


def tip_before(log: list[bytes], at: int) -> Tip:
    return Tip(at, read_seal(log[at]).prev) if at < len(log) else Tip(at, read_seal(log[-1]).mac)  # type: ignore[union-attr]


@forgery("a line is edited, and the rest is chained again")
def edit(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    return [*log[:i], *rechained([log[i].replace(b"Question", b"Answer"), *log[i + 1 :]], tip_before(log, i))]


@forgery("lines are deleted, and the rest is chained again")
def delete(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i, j = sorted(rng.sample(range(len(log)), 2))
    return [*log[:i], *rechained(log[j:], tip_before(log, i))]


@forgery("a line is inserted, and the rest is chained again")
def insert(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i = rng.randrange(len(log))
    return [*log[:i], *rechained([rng.choice(OTHER), *log[i:]], tip_before(log, i))]


@forgery("two lines are swapped, and the rest is chained again")
def swap(rng: random.Random, log: list[bytes]) -> list[bytes]:
    i, j = sorted(rng.sample(range(len(log)), 2))
    rest = [log[j], *log[i + 1 : j], log[i], *log[j + 1 :]]
    return [*log[:i], *rechained(rest, tip_before(log, i))]


@forgery("lines are added at the end")
def extend(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return [*log, *rechained(OTHER[: rng.randrange(1, 5)], tip_before(log, len(log)))]


@forgery("a line is repeated at the end")
def repeat(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return [*log, *rechained([rng.choice(log)], tip_before(log, len(log)))]


@forgery("the whole log is written anew")
def replace(rng: random.Random, log: list[bytes]) -> list[bytes]:
    return chain(len(log), KEY, beginning(), f"Forged {rng.random()}.")


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safi_agent.log.verify.PAUSE", 0)
    monkeypatch.setattr("safi_agent.log.verify_signed.PAUSE", 0)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(tmp_path_factory.mktemp("log") / "log.json", LOG)
    sign_all(path)
    return path


def signed(folder: Path, *files: list[bytes]) -> Path:
    path = write(folder / "log.json", *(files or (LOG,)))
    sign_all(path)
    return path


def verify(path: Path, *exported: Path, first: int = 1) -> SignedVerdict:
    return verify_signed(path, PUBLIC, exported, first)


def faults(path: Path, *exported: Path) -> list[tuple[int, str]]:
    return [fault[1:] for fault in verify(path, *exported).verdict.faults]


def test_a_log_that_is_as_it_was_signed_has_no_fault(tmp_path: Path) -> None:
    for count, files in enumerate(((LOG,), (LOG[:7], LOG[7:]), (LOG[:1], LOG[1:2], LOG[2:], []))):
        folder = tmp_path / str(count)
        folder.mkdir()
        log = signed(folder, *files)
        verdict, checkpoint, key = verify(log)
        assert verdict[:4] == ((), 0, 40, 0)
        assert checkpoint
        assert (checkpoint.size, key) == (40, SIGNER.public)
        tree_file(log).unlink()
        index_file(log).unlink()
        assert verify(log).verdict == verdict


@pytest.mark.parametrize("name", [*ATTACKS, *FORGERIES])
def test_each_attack_is_found_at_the_first_line_that_is_not_as_it_was(name: str, tmp_path: Path) -> None:
    log = signed(tmp_path)
    for seed in range(SEEDS):
        changed = (ATTACKS | FORGERIES)[name](random.Random(seed), list(LOG))
        if changed == LOG:
            continue
        verdict = verify(write(log, changed)).verdict
        assert verdict.faulty, (name, seed)
        assert verdict.faults[0].at == place(changed, LOG), (name, seed, verdict.faults)


@pytest.mark.parametrize("name", [*ATTACKS, *FORGERIES])
@pytest.mark.parametrize("tree", ["missing", "forged"])
def test_each_attack_is_found_if_the_tree_is_missing_or_forged_too(name: str, tree: str, tmp_path: Path) -> None:
    log = signed(tmp_path)
    note = checkpoint_file(log).read_bytes()
    tree_file(log).unlink()
    for seed in range(SEEDS // 4):
        changed = (ATTACKS | FORGERIES)[name](random.Random(seed), list(LOG))
        if changed == LOG:
            continue
        write(log, changed)
        if tree == "forged" and changed:
            sign_all(log)
            checkpoint_file(log).write_bytes(note)
        assert verify(log).verdict.faulty, (name, seed)


@pytest.mark.parametrize("damage", ["forged", "torn", "changed"])
def test_a_log_that_is_as_it_was_signed_has_no_fault_whatever_its_tree_is(damage: str, tmp_path: Path) -> None:
    log = signed(tmp_path)
    note = checkpoint_file(log).read_bytes()
    nodes = tree_file(log).read_bytes()
    if damage == "forged":
        sign_all(write(log, replace(random.Random(0), list(LOG))))
        checkpoint_file(log).write_bytes(note)
        write(log, LOG)
    else:
        tree_file(log).write_bytes(nodes[:-1] if damage == "torn" else bytes([nodes[0] ^ 1]) + nodes[1:])
    assert faults(log) == []


@pytest.mark.slow
def test_a_process_without_store_and_secrets_finds_each_attack(tmp_path: Path) -> None:
    expected: dict[str, object] = {}
    (tmp_path / "key.pub").write_text(f"{SIGNER.public}\n")
    for number, (name, attack) in enumerate((ATTACKS | FORGERIES).items()):
        for seed in range(3):
            changed = attack(random.Random(seed), list(LOG))
            folder = tmp_path / f"{number}-{seed}"
            folder.mkdir()
            log = signed(folder, LOG[:10], LOG[10:20], LOG[20:])
            write(log, changed[:10], changed[10:20], changed[20:])
            at = place(changed, LOG) if changed != LOG else 0
            file = "log.json.1" if at <= 10 else "log.json.2" if at <= 20 else "log.json"
            line = at - 10 * min((at - 1) // 10, 2)
            expected[folder.name] = [file, line] if at and at <= len(changed) else at and name
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SAFI_")}
    command = [sys.executable, str(Path(__file__).with_name("verifier.py")), str(tmp_path)]
    done = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for folder, where in expected.items():
        if isinstance(where, list):
            assert found[folder][:2] == where, (folder, found[folder])
        else:
            assert bool(found[folder]) == bool(where), (folder, where)


@pytest.mark.parametrize("name", FORGERIES)
def test_the_chain_alone_does_not_show_what_is_done_with_its_key(name: str, tmp_path: Path) -> None:
    from safi_agent.log.verify import verify as verify_chain

    changed = FORGERIES[name](random.Random(1), list(LOG))
    assert verify_chain(write(tmp_path / "log.json", changed), KEY).faulty == 0


def test_the_page_lists_what_is_done_with_the_key_of_the_chain() -> None:
    table = PAGE.read_text().partition("| forgery |")[2].partition("\n\n")[0]
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:]] == list(FORGERIES)


@pytest.mark.slow
@given(edits())
@settings(max_examples=200, deadline=None)
def test_any_change_of_any_bytes_is_found_in_the_line_where_it_begins(path: Path, edit: Bytes) -> None:
    assert_found(path, WHOLE[: edit.start] + edit.new + WHOLE[edit.end :])


@pytest.mark.slow
@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
@settings(max_examples=400, deadline=None)
def test_any_change_of_one_byte(path: Path, at: int, flip: int) -> None:
    assert_found(path, WHOLE[:at] + bytes([WHOLE[at] ^ flip]) + WHOLE[at + 1 :])


@pytest.mark.slow
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
    *ended, last = changed.split(b"\n")
    now = [*(line + b"\n" for line in ended), *([last] if last else [])]
    assert [at for at, _ in faults(path)[:1]] == ([place(now, LOG)] if changed != WHOLE else [])


def test_any_change_of_one_byte_of_the_checkpoint_is_found(tmp_path: Path) -> None:
    log = signed(tmp_path)
    file = checkpoint_file(log)
    note = file.read_bytes()
    for at in range(len(note)):
        file.write_bytes(note[:at] + bytes([note[at] ^ 1]) + note[at + 1 :])
        try:
            assert verify(log).verdict.faulty, at
        except LogError as error:  # the name or the id of the key is another one
            assert "expected a signature by" in str(error)  # noqa: PT017


def test_a_checkpoint_by_another_key_of_the_same_name_is_not_accepted(tmp_path: Path) -> None:
    log = signed(tmp_path)
    stranger = SigningKey(SIGNER.public.name, b"x" * 32)
    with pytest.raises(LogError, match=r"log\.json\.checkpoint: expected a signature by example\.com/safi\+"):
        verify_signed(log, [stranger.public])
    assert not verify_signed(log, [stranger.public, SIGNER.public]).verdict.faulty


def test_a_log_whose_checkpoint_was_removed_cannot_be_verified(tmp_path: Path) -> None:
    log = signed(tmp_path)
    checkpoint_file(log).unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint in .*log\.json\.checkpoint"):
        verify(log)


def export(log: Path, count: int) -> Path:
    """The checkpoint of the first lines, as it was when there were no more."""
    now = checkpoint_file(log).read_bytes()
    sign_all(log, count)
    exported = log.with_name(f"exported-{count}")
    exported.write_bytes(checkpoint_file(log).read_bytes())
    checkpoint_file(log).write_bytes(now)
    return exported


@pytest.mark.parametrize("tree", ["there", "missing"])
@pytest.mark.parametrize("count", [1, 7, 32, 39, 40])
def test_a_log_extends_each_of_its_checkpoints(count: int, tree: str, tmp_path: Path) -> None:
    log = signed(tmp_path)
    exported = export(log, count)
    if tree == "missing":
        tree_file(log).unlink()
    assert faults(log, exported) == []


@pytest.mark.parametrize("tree", ["there", "missing"])
def test_a_log_that_its_signer_writes_anew_does_not_extend_an_exported_checkpoint(tree: str, tmp_path: Path) -> None:
    """With both keys everything can be forged but what was exported."""
    log = signed(tmp_path)
    exported = export(log, 20)
    changed = [LOG[10].replace(b"Question", b"Answer"), *LOG[11:]]
    write(log, [*LOG[:10], *rechained(changed, tip_before(LOG, 10))])
    sign_all(log)
    if tree == "missing":
        tree_file(log).unlink()
    assert faults(log) == []
    (fault,) = verify(log, exported).verdict.faults
    assert "does not extend the checkpoint of 20 lines in" in fault.what


def test_a_log_that_is_set_back_with_its_checkpoint_needs_an_exported_one(tmp_path: Path) -> None:
    log = signed(tmp_path)
    exported = export(log, 40)
    write(log, LOG[:30])
    checkpoint_file(log).write_bytes(export(log, 30).read_bytes())
    assert faults(log) == []
    assert faults(log, exported) == [(31, "lines 31 to 40 are missing at the end")]


def test_a_checkpoint_of_another_log_of_the_same_key_is_told(tmp_path: Path) -> None:
    log = signed(tmp_path)
    exported = export(log, 40)
    write(log, OTHER)
    sign_all(log)
    assert faults(log) == []
    assert "is of another log: expected the origin example.com/safi/" in verify(log, exported).verdict.faults[-1].what


def test_an_exported_checkpoint_alone_covers_its_lines(tmp_path: Path) -> None:
    log = signed(tmp_path)
    exported = export(log, 40)
    checkpoint_file(log).unlink()
    assert faults(log, exported) == []
    write(log, extend(random.Random(0), list(LOG)))
    assert faults(log, exported)[0] == (41, "was changed, or is not signed")


def test_earlier_files_may_be_kept_elsewhere(tmp_path: Path) -> None:
    log = signed(tmp_path)
    early, late = export(log, 5), export(log, 20)
    write(log, LOG[9:])
    assert faults(log)[0][0] == 1
    assert verify(log, early, late, first=10).verdict[:3] == ((), 0, 31)
    assert verify(log, first=9).verdict.faulty
    write(log, edit(random.Random(3), LOG[9:]))
    assert verify(log, first=10).verdict.faulty
    write(log, LOG[9:])
    tree_file(log).unlink()
    with pytest.raises(LogError, match="expected the hashes of earlier lines"):
        verify(log, first=10)


def test_lines_that_are_added_while_the_log_is_read_are_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(tmp_path / "log.json", LOG)
    sign_all(log, 30)
    assert [at for at, _ in faults(log)[:1]] == [31]  # there before the log was read, and never signed
    monkeypatch.setattr("safi_agent.log.verify_signed.time.sleep", lambda seconds: sign_all(log))
    assert faults(log) == []  # signed a moment later
    write(log, LOG[:30])
    sign_all(log)
    appended = iter(LOG[30:])
    read = iter(range(1000))

    def is_read(*_: object) -> bytes:
        if next(read) == 3:
            with log.open("ab") as file:
                file.writelines(appended)
        return b""

    from safi_agent.log import verify_signed as module

    original = module.line_hash
    monkeypatch.setattr(module, "line_hash", lambda line: is_read() + original(line))
    assert verify(log).verdict[:3] == ((), 0, 30)


def test_a_log_that_is_rotated_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write(tmp_path / "log.json", LOG[:30])
    sign_all(log)
    from safi_agent.log import verify_signed as module

    original, turns = module.open_files, iter(range(1000))

    def opened(*arguments: object) -> object:
        files = original(*arguments)  # type: ignore[arg-type]
        if next(turns) == 0:
            rotate(log)
            write(log, LOG[30:])
            sign_all(log)
        return files

    monkeypatch.setattr(module, "open_files", opened)
    assert verify(log).verdict[:3] == ((), 0, 40)


def test_a_log_that_is_gone_is_told_by_its_checkpoint(tmp_path: Path) -> None:
    log = signed(tmp_path)
    log.unlink()
    assert faults(log) == [(1, "lines 1 to 40 are missing at the end")]


def test_only_the_first_faults_are_told_and_all_are_counted(tmp_path: Path) -> None:
    log = signed(tmp_path)
    verdict = verify(write(log, chain(100, text="x"))).verdict
    assert (len(verdict.faults), verdict.faulty) == (MOST_FAULTS, 100)
