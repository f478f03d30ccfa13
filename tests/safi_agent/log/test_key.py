"""Where the key of a log comes from, and which are refused."""

from pathlib import Path

import pytest

from safi_agent import create_safi_chain
from safi_agent.log.key import find_key, key_file, key_id, new_key, write_key_file
from tests.safi_agent.fakes import THREE, Fake


def test_the_environment_comes_before_the_file_beside_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.json"
    assert find_key(log) is None
    write_key_file(log, beside := new_key())
    assert find_key(log) == beside
    (tmp_path / "elsewhere").write_text("f" * 40 + "\n")
    monkeypatch.setenv("SAFI_LOG_KEY_FILE", str(tmp_path / "elsewhere"))
    assert find_key(log) == b"f" * 40
    monkeypatch.setenv("SAFI_LOG_KEY", "e" * 32)
    assert find_key(log) == b"e" * 32


def test_new_keys_differ_and_are_known_by_an_id_that_does_not_tell_them() -> None:
    one, other = new_key(), new_key()
    assert one != other
    assert len(one) == 64
    assert key_id(one) != key_id(other)
    assert key_id(one) not in one.decode()


def test_a_key_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    write_key_file(tmp_path / "log.json", new_key())
    assert [file.name for file in tmp_path.iterdir()] == ["log.json.key"]
    assert key_file(tmp_path / "log.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("SAFI_LOG_KEY", "short", "SAFI_LOG_KEY: expected at least 32 characters, got 5"),
        ("SAFI_LOG_KEY", "", "SAFI_LOG_KEY: expected at least 32 characters, got 0"),
        ("SAFI_LOG_KEY_FILE", "nowhere", "SAFI_LOG_KEY_FILE: expected a readable text file, got 'nowhere'"),
    ],
)
def test_a_key_that_is_none_is_refused_before_anything_is_made(
    name: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        create_safi_chain(Fake(), THREE)
    assert list(tmp_path.iterdir()) == []
