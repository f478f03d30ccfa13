"""Keys to sign with: their text form, their files, and the environment."""

import os
from pathlib import Path

import pytest

from safi_agent import create_safi_chain
from safi_agent.errors import LogError
from safi_agent.log.signing_keys import (
    generate_key,
    given_signing_key,
    parse_public_key,
    parse_signing_key,
    read_public_keys,
    write_key_files,
)
from tests.safi_agent.fakes import THREE, Fake
from tests.safi_agent.log.test_signed_note import ENOCH, GO, PETER, PETERS_SECRET


@pytest.mark.parametrize("text", [PETER, ENOCH, GO])
def test_published_public_keys_are_read_and_written(text: str) -> None:
    assert str(parse_public_key(text)) == text


def test_no_part_and_no_change_of_a_public_key_is_one() -> None:
    for start in range(len(PETER)):
        for end in range(start + 1, len(PETER) + 1):
            if (start, end) != (0, len(PETER)):
                with pytest.raises(ValueError, match="expected"):
                    parse_public_key(PETER[start:end])
    for at, letter in enumerate(PETER):
        with pytest.raises(ValueError, match="expected"):
            parse_public_key(PETER[:at] + chr(ord(letter) + 1) + PETER[at + 1 :])


@pytest.mark.parametrize(
    "text",
    [
        "PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==",  # a longer key
        "PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",  # another algorithm
    ],
)
def test_other_keys_with_a_right_id_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected base64 of an Ed25519 key"):
        parse_public_key(text)


def test_no_part_and_no_change_of_a_private_key_is_one_and_no_message_tells_it() -> None:
    secret = PETERS_SECRET.rpartition("+")[2]
    changed = [PETERS_SECRET[:at] + chr(ord(c) + 1) + PETERS_SECRET[at + 1 :] for at, c in enumerate(PETERS_SECRET)]
    parts = [PETERS_SECRET[start:] for start in range(1, len(PETERS_SECRET))]
    parts += [PETERS_SECRET[:end] for end in range(len(PETERS_SECRET))]
    for text in changed + parts:
        with pytest.raises(ValueError, match="expected") as caught:
            parse_signing_key(text)
        assert secret[10:20] not in str(caught.value)
    assert parse_signing_key(PETERS_SECRET).encode() == PETERS_SECRET


def test_earlier_keys_stand_below_the_private_key() -> None:
    key = parse_signing_key(f"{PETERS_SECRET}\n{ENOCH}\n\n{GO}\n")
    assert [*map(str, key.accepted)] == [PETER, ENOCH, GO]
    with pytest.raises(ValueError, match="expected") as caught:
        parse_signing_key(f"{PETERS_SECRET}\n{PETERS_SECRET}")
    assert "AYEKFALV" not in str(caught.value)


def test_new_keys_differ_and_their_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = generate_key("example.com/a"), generate_key("example.com/a")
    assert one.public.raw != other.public.raw
    public = write_key_files(one, tmp_path / "key")
    assert public == tmp_path / "key.pub"
    assert read_public_keys(public) == [one.public]
    monkeypatch.setenv("SAFI_SIGNING_KEY_FILE", str(tmp_path / "key"))
    given = given_signing_key()
    assert given
    assert given.public == one.public
    assert one.public.verifies("a\n", given.sign("a\n").value)
    assert not other.public.verifies("a\n", given.sign("a\n").value)


@pytest.mark.skipif(os.name != "posix", reason="other systems have other rights")
def test_a_private_key_is_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_key_files(generate_key("a"), tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "key").chmod(0o640)
    monkeypatch.setenv("SAFI_SIGNING_KEY_FILE", str(tmp_path / "key"))
    with pytest.raises(LogError, match="readable only by its owner, got mode 640; try 'chmod 600"):
        given_signing_key()


@pytest.mark.parametrize("existing", ["key", "key.pub"])
def test_no_file_is_overwritten_by_new_keys(existing: str, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("mine")
    with pytest.raises(FileExistsError, match=existing):
        write_key_files(generate_key("a"), tmp_path / "key")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(existing, "mine")]


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\u2028b", "a\nb"])
def test_names_that_a_note_cannot_have(name: str) -> None:
    with pytest.raises(ValueError, match="name: expected a name without spaces"):
        generate_key(name)


@pytest.mark.parametrize("content", ["", "\n", "nonsense", f"{PETER}\nnonsense", PETERS_SECRET])
def test_a_file_with_something_else_than_public_keys(content: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(content)
    with pytest.raises(ValueError, match="keys: expected public keys, one on each line") as caught:
        read_public_keys(tmp_path / "keys")
    assert "AYEKFALV" not in str(caught.value)


def test_the_environment_is_read_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert given_signing_key() is None
    file = tmp_path / "key"
    monkeypatch.setenv("SAFI_SIGNING_KEY_FILE", str(file))
    names = []
    for name in ("first", "second"):
        file.unlink(missing_ok=True)
        write_key_files(generate_key(name), file)
        (tmp_path / "key.pub").unlink()
        key = given_signing_key()
        assert key is not None
        assert given_signing_key() is key
        names.append(key.public.name)
    monkeypatch.setenv("SAFI_SIGNING_KEY", PETERS_SECRET)
    key = given_signing_key()
    assert key is not None
    assert [*names, key.public.name] == ["first", "second", "PeterNeumann"]


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("SAFI_SIGNING_KEY", "short", "SAFI_SIGNING_KEY: expected a first line that begins with PRIVATE"),
        ("SAFI_SIGNING_KEY", "", "SAFI_SIGNING_KEY: expected a first line"),
        ("SAFI_SIGNING_KEY", PETER, "SAFI_SIGNING_KEY: expected a first line"),
        ("SAFI_SIGNING_KEY_FILE", "nowhere", "SAFI_SIGNING_KEY_FILE: expected a readable file, got 'nowhere'"),
    ],
)
def test_a_key_that_is_none_is_refused_before_anything_is_made(
    variable: str, value: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=words):
        create_safi_chain(Fake(), THREE)
    assert list(tmp_path.iterdir()) == []
