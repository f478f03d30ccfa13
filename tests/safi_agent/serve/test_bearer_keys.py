"""Bearer keys: the file, the environment, and which header is one."""

import stat
from hashlib import sha256
from pathlib import Path

import pytest

from safi_agent.serve.bearer_keys import BearerKey, add_bearer_key, find_memory_key, load_bearer_keys

DIGEST = sha256(b"safi-key").hexdigest()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAFI_SERVE_KEYS", raising=False)


def keys_in(tmp_path: Path, text: str, mode: int = 0o600) -> Path:
    file = tmp_path / "keys"
    file.touch(mode)
    file.write_text(text)
    file.chmod(mode)
    return file


def test_a_key_is_appended_as_a_line_of_its_own(tmp_path: Path) -> None:
    file = keys_in(tmp_path, f"{DIGEST} anna")  # without a newline at the end
    add_bearer_key(file, "bert")
    assert [key.memory_key for key in load_bearer_keys(file)] == ["anna", "bert"]


def test_a_new_key_is_stored_as_a_hash_in_a_file_for_its_owner(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first, second = add_bearer_key(file, "anna"), add_bearer_key(file, "two words")
    assert first != second
    assert len(first) == len("safi-") + 43  # 32 bytes in Base64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    assert first not in text
    assert first.removeprefix("safi-") not in text
    keys = load_bearer_keys(file)
    assert [key.memory_key for key in keys] == ["anna", "two words"]
    assert keys[0] == BearerKey(sha256(first.encode()).digest(), "anna")
    assert find_memory_key(keys, f"Bearer {first}") == "anna"
    assert find_memory_key(keys, f"bearer  {second} ") == "two words"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "safi-key", "Basic safi-key", "Bearer safi-kex", "Bearer \udcff"]
)
def test_another_header_is_no_key(header: str) -> None:
    assert find_memory_key([BearerKey(bytes.fromhex(DIGEST), "anna")], header) is None


def test_keys_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_bearer_keys() == ()
    monkeypatch.setenv("SAFI_SERVE_KEYS", f"# of anna\n\n{DIGEST} anna\n")
    assert load_bearer_keys() == (BearerKey(bytes.fromhex(DIGEST), "anna"),)
    with pytest.raises(ValueError, match="expected either a file or SAFI_SERVE_KEYS, got both"):
        load_bearer_keys(keys_in(tmp_path, f"{DIGEST} anna"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    file = keys_in(tmp_path, f"{DIGEST} anna\n", mode)
    before = file.read_text()
    for use in (load_bearer_keys, lambda file: add_bearer_key(file, "bert")):
        with pytest.raises(ValueError, match=f"accessible only to its owner, got mode {mode:o}"):
            use(file)
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected at least one key"),
        ("# nothing\n", "expected at least one key"),
        ("safi-key anna\n", "line 1: expected the SHA-256"),
        (f"{DIGEST[:-2]} anna\n", "line 1: expected the SHA-256"),
        (f"\n{DIGEST}\n", "line 2: expected a memory key"),
        (f"{DIGEST} an\x00na\n", "line 1: expected a memory key"),
        (f"{DIGEST} anna\n{DIGEST.upper()} bert\n", "line 2: expected each key once"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    file = keys_in(tmp_path, text)
    with pytest.raises(ValueError, match=reason):
        load_bearer_keys(file)
    with pytest.raises(ValueError, match=reason):
        add_bearer_key(file, "bert")
    assert file.read_text() == text


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a readable text file, got .* \(FileNotFoundError\)"):
        load_bearer_keys(tmp_path / "none")
    file = keys_in(tmp_path, "")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a readable text file"):
        load_bearer_keys(file)


def test_a_name_that_is_none_is_refused_before_a_file_is_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="memory_key: expected a memory key of 1 to 200 printable characters"):
        add_bearer_key(tmp_path / "keys", "an\nna")
    assert not list(tmp_path.iterdir())
