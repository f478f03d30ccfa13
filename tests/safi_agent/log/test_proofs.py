"""Proofs of turns and of extensions: what a reader without the log can check."""

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safi_agent.errors import LogError
from safi_agent.log.checkpoint import checkpoint_file
from safi_agent.log.proofs import ProvenTurn, check_extension, check_turn, prove_extension, prove_turn
from safi_agent.log.signing_keys import SigningKey, UnknownKeyError
from safi_agent.log.tree_files import index_file, tree_file
from tests.safi_agent.log.attacks import LOG, OTHER
from tests.safi_agent.log.chains import plain_form, write
from tests.safi_agent.log.signed_logs import SIGNER, sign_all
from tests.safi_agent.log.test_merkle import plain_path, plain_root, plain_subproof

PUBLIC = [SIGNER.public]
STRANGER = SigningKey("example.com/safi", b"x" * 32)
DATA = [line.rstrip(b"\n") for line in LOG]
LEAVES = [plain_form(line).rstrip(b"\n") for line in LOG]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 40 lines in three files. Tests do not change it."""
    log = write(tmp_path_factory.mktemp("proofs") / "log.json", LOG[:10], LOG[10:25], LOG[25:])
    sign_all(log)
    return log


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """The same, to be changed."""
    log = write(tmp_path / "log.json", LOG[:10], LOG[10:25], LOG[25:])
    sign_all(log)
    return log


def lines_of(hashes: list[bytes]) -> list[str]:
    return [base64.b64encode(node).decode() for node in hashes]


@pytest.mark.parametrize("index", [0, 1, 9, 10, 24, 25, 31, 32, 39])
def test_a_proof_is_what_the_specification_says(index: int, log: Path) -> None:
    note = checkpoint_file(log).read_text()
    expected = [
        "c2sp.org/tlog-proof@v1",
        f"extra {base64.b64encode(DATA[index]).decode()}",
        f"index {index}",
        *lines_of(plain_path(index, LEAVES)),
        "",
        note,
    ]
    proof = prove_turn(log, f"t{index + 1}")
    assert proof.decode() == "\n".join(expected)
    assert note.split("\n")[1:3] == ["40", base64.b64encode(plain_root(LEAVES)).decode()]


def test_every_turn_is_proven(log: Path) -> None:
    for number in range(1, 41):
        proven = check_turn(prove_turn(log, f"t{number}"), PUBLIC)
        assert proven[:2] == (DATA[number - 1], number)
        assert (proven.checkpoint.size, proven.key) == (40, SIGNER.public)


@pytest.mark.parametrize("damage", ["missing", "empty", "changed", "torn"])
@pytest.mark.parametrize("file", [tree_file, index_file])
def test_a_proof_needs_no_files_but_the_log_and_its_checkpoint(file: object, damage: str, own: Path) -> None:
    expected = [prove_turn(own, f"t{number}") for number in (1, 18, 40)]
    damaged: Path = file(own)  # type: ignore[operator]
    content = damaged.read_bytes()
    if damage == "missing":
        damaged.unlink()
    else:
        changed = {"empty": b"", "changed": bytes(b ^ 1 for b in content), "torn": content[:50]}
        damaged.write_bytes(changed[damage])
    assert [prove_turn(own, f"t{number}") for number in (1, 18, 40)] == expected


def test_only_signed_turns_are_proven(own: Path) -> None:
    sign_all(own, 30)
    assert check_turn(prove_turn(own, "t30"), PUBLIC).number == 30
    for turn in ("t31", "nowhere", ""):
        with pytest.raises(LogError, match="expected a turn in the 30 signed lines"):
            prove_turn(own, turn)
    checkpoint_file(own).unlink()
    with pytest.raises(LogError, match=r"expected a checkpoint in .*found none; 'safi checkpoint'"):
        prove_turn(own, "t1")
    checkpoint_file(own).write_bytes(b"nonsense")
    with pytest.raises(LogError, match="expected a text, an empty line and signatures"):
        prove_turn(own, "t1")


def test_a_line_that_was_changed_is_not_proven_and_others_are(own: Path) -> None:
    changed = [line.replace(b"Question 18", b"Question 81") for line in LOG]
    write(own, changed[:10], changed[10:25], changed[25:])
    with pytest.raises(LogError, match="its lines are not as they were signed"):
        prove_turn(own, "t18")
    assert check_turn(prove_turn(own, "t19"), PUBLIC).number == 19


PROOF: list[bytes] = []


@given(st.data())
def test_no_change_of_a_proof_proves_something_else(data: st.DataObject) -> None:
    proof = PROOF[0]
    at, flip = data.draw(st.integers(0, len(proof) - 1)), data.draw(st.integers(1, 255))
    changed = proof[:at] + bytes([proof[at] ^ flip]) + proof[at + 1 :]
    with pytest.raises((ValueError, UnknownKeyError)):
        check_turn(changed, PUBLIC)


@pytest.fixture(autouse=True)
def proof(log: Path) -> None:
    PROOF[:] = [prove_turn(log, "t18")]


def test_a_proof_needs_the_key_that_signed(log: Path) -> None:
    with pytest.raises(UnknownKeyError, match="expected a signature by"):
        check_turn(PROOF[0], [STRANGER.public])
    assert isinstance(check_turn(PROOF[0], [STRANGER.public, SIGNER.public]), ProvenTurn)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"c2sp.org/tlog-proof@v1\n", b"c2sp.org/tlog-proof@v2\n"),
        (b"c2sp.org/tlog-proof@v1\n", b""),
        (b"extra ", b"extra  "),
        (b"index 17", b"index 017"),
        (b"index 17", b"index -17"),
        (b"index 17", b"index 18"),
        (b"index 17\n", b""),
        (b"\n\n", b"\n"),
        (b"\n\n", b"\nAAAA\n\n"),
        (b"index 17\n", b"index 17\n" + b"A" * 43 + b"=\n"),
    ],
)
def test_a_proof_of_another_form_is_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        check_turn(PROOF[0].replace(old, new, 1), PUBLIC)


def test_a_proof_of_another_log_of_the_same_key_names_its_origin(log: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.json", OTHER)
    sign_all(other)
    origins = {check_turn(prove_turn(path, "t18"), PUBLIC).checkpoint.origin for path in (log, other)}
    assert len(origins) == 2


def exported(log: Path, count: int) -> bytes:
    now = checkpoint_file(log).read_bytes()
    sign_all(log, count)
    note = checkpoint_file(log).read_bytes()
    checkpoint_file(log).write_bytes(now)
    return note


@pytest.mark.parametrize("count", [1, 6, 32, 33, 39, 40])
def test_an_extension_is_proven_as_a_witness_asks_for_it(count: int, own: Path) -> None:
    old = exported(own, count)
    proof = prove_extension(own, old)
    path = lines_of(plain_subproof(count, LEAVES, True))
    assert proof.decode() == "\n".join([f"old {count}", *path, "", checkpoint_file(own).read_text()])
    assert check_extension(proof, PUBLIC, old)[:2] == (count, check_turn(PROOF[0], PUBLIC).checkpoint)
    tree_file(own).unlink()
    assert prove_extension(own, old) == proof


def test_what_does_not_extend_a_checkpoint_is_not_proven(own: Path, tmp_path: Path) -> None:
    old, proof = exported(own, 20), prove_extension(own, exported(own, 20))
    changed = [line.replace(b"Question 8?", b"Question 9?") for line in LOG]
    rewritten = tmp_path / "rewritten.json"
    sign_all(write(rewritten, changed))
    with pytest.raises(LogError, match="does not extend the checkpoint of 20 lines"):
        prove_extension(rewritten, old)
    with pytest.raises(ValueError, match="does not extend the earlier one"):
        check_extension(proof, PUBLIC, exported(rewritten, 20))
    with pytest.raises(ValueError, match="with 20 lines to compare, got one of"):
        check_extension(proof, PUBLIC, exported(own, 21))
    with pytest.raises(ValueError, match="expected a first line with 'old'"):
        check_extension(PROOF[0], PUBLIC, old)
    with pytest.raises(ValueError, match="expected the lines"):
        check_turn(proof, PUBLIC)
    with pytest.raises(UnknownKeyError):
        check_extension(proof, [STRANGER.public], old)
    other = tmp_path / "other.json"
    sign_all(write(other, OTHER))
    with pytest.raises(LogError, match="expected a checkpoint of example"):
        prove_extension(other, old)
    sign_all(own, 10)
    with pytest.raises(LogError, match="of at most 10 lines"):
        prove_extension(own, old)
