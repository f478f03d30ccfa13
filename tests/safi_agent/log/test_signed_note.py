"""Signed notes against those of Go's checksum database and of its tests."""

import base64
import threading
from pathlib import Path

import pytest

from safi_agent.log.checkpoint import open_checkpoint, read_note, write_note
from safi_agent.log.signed_note import MOST_SIGNATURES, Signature, decode_base64, format_note, parse_note
from safi_agent.log.signing_keys import UnknownKeyError, open_note, parse_public_key, parse_signing_key

# From the tests of golang.org/x/mod/sumdb/note.
PETER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PETERS_SECRET = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"
ENOCH = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"
TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
BY_PETER = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
BY_ENOCH = "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
PETERS_NOTE = f"{TEXT}\n{BY_PETER}".encode()
# Tree heads that sum.golang.org has signed.
GO = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
HEADS = [
    (
        31700353,
        "qINS1GRFhWHwdkUeqLEoP4yEMkTBBzxBkGwGQlVlVcs=",
        "Az3grnmrIUEDFqHzAElIQCPNoRFRAAdFo47fooyWKMHb89k11GJh5zHIfNCOBmwn/C3YI8oW9/C8DJ87F61QqspBYwM=",
    ),
    (
        65209736,
        "5+uGFjx6xBZG8ip1+wi77v+grwbhhukIrxEUS8PXvRo=",
        "Az3grnbssgK7ubgFX36gVETtNv0U23qxyAhAMai2QUfeGa3nB/akvkMdlUErfcZz7l/R3cVtYspg3dxXABkGZZKdsQ8=",
    ),
    (
        20852163,
        "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=",
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=",
    ),
]


def head(size: int, root: str, signature: str) -> bytes:
    return f"go.sum database tree\n{size}\n{root}\n\n— sum.golang.org {signature}\n".encode()


@pytest.mark.parametrize("published", HEADS)
def test_checkpoints_of_the_go_checksum_database_are_verified(published: tuple[int, str, str]) -> None:
    size, root, _ = published
    key = parse_public_key(GO)
    assert open_checkpoint(head(*published), [key]) == (
        ("go.sum database tree", size, base64.b64decode(root)),
        key,
    )
    with pytest.raises(ValueError, match="does not fit the text"):
        open_checkpoint(head(size + 1, root, published[2]), [key])


def test_a_signature_is_that_of_go() -> None:
    key = parse_signing_key(PETERS_SECRET)
    assert str(key.public) == PETER
    assert format_note(TEXT, key.sign(TEXT)).encode() == PETERS_NOTE


def test_what_is_parsed_is_formatted_again() -> None:
    note = parse_note(f"{TEXT}\n{BY_PETER}{BY_ENOCH}".encode())
    assert note.text == TEXT
    assert [s.name for s in note.signatures] == ["PeterNeumann", "EnochRoot"]
    assert format_note(*(note.text, *note.signatures)) == f"{TEXT}\n{BY_PETER}{BY_ENOCH}"


def test_one_known_key_is_enough_and_others_are_ignored() -> None:
    both = f"{TEXT}\n{BY_PETER}{BY_ENOCH}".encode()
    peter, enoch = parse_public_key(PETER), parse_public_key(ENOCH)
    assert open_note(both, [peter]) == (TEXT, peter)
    assert open_note(both, [enoch]) == (TEXT, enoch)
    assert open_note(f"{TEXT}\n{BY_ENOCH.replace('rwz+', 'rwz/')}{BY_PETER}".encode(), [peter, enoch]) == (TEXT, peter)
    with pytest.raises(UnknownKeyError, match=r"expected a signature by EnochRoot\+af0cfe78, got one by PeterNeumann"):
        open_note(PETERS_NOTE, [enoch])


@pytest.mark.parametrize("other", [0, 1])
def test_a_signature_of_a_known_key_that_does_not_fit_spoils_the_note(other: int) -> None:
    peter, enoch = parse_public_key(PETER), parse_public_key(ENOCH)
    wrong = BY_ENOCH[:60] + ("A" if BY_ENOCH[60] != "A" else "B") + BY_ENOCH[61:]
    for note in (f"{TEXT}\n{wrong}", f"{TEXT}\n{BY_PETER}{wrong}", f"{TEXT}\n{wrong}{BY_PETER}"):
        with pytest.raises(ValueError, match=r"EnochRoot\+af0cfe78 does not fit"):
            open_note(note.encode(), [peter, enoch] if other else [enoch, peter])
    with pytest.raises(ValueError, match="does not fit"):
        open_note(f"Not {TEXT}\n{BY_PETER}".encode(), [peter])


@pytest.mark.parametrize(
    "note",
    [
        TEXT.encode(),
        f"{TEXT}\n".encode(),
        f"{TEXT}\n{BY_PETER[:-1]}".encode(),
        f"\x01{TEXT}\n{BY_PETER}".encode(),
        f"{TEXT}\n{BY_PETER}".replace("\n", "\r\n").encode(),
        b"\xff" + PETERS_NOTE,
        f"{TEXT}\n{BY_PETER.replace('PeterNeumann', 'Bad Name')}".encode(),
        f"{TEXT}\n{BY_PETER.replace('PeterNeumann', 'Bad+Name')}".encode(),
        f"{TEXT}\n{BY_PETER.replace('PeterNeumann ', ' ')}".encode(),
        f"{TEXT}\n{BY_PETER}Unexpected line.\n".encode(),
        f"{TEXT}\n{BY_PETER.replace('—', '-')}".encode(),
        f"{TEXT}\n— PeterNeumann x08gow==\n".encode(),
        f"{TEXT}\n{BY_PETER.replace('x08g', 'x08*')}".encode(),
        f"{TEXT}\n{BY_PETER * (MOST_SIGNATURES + 1)}".encode(),
        PETERS_NOTE + b"\n" * 1_000_000,
        b"",
    ],
)
def test_what_is_not_a_note_is_refused(note: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        open_note(note, [parse_public_key(PETER)])


@pytest.mark.parametrize("text", ["no line break", "a\tb\n", "a\x00b\n", ""])
def test_a_text_that_cannot_be_signed(text: str) -> None:
    with pytest.raises(ValueError, match="text: expected lines without control characters"):
        format_note(text, Signature("n", b"1234", b"x"))


@pytest.mark.parametrize("text", ["", "A", "AB==", "QUI", "QUJD\n", "QUJD=", "-_-_", "QU JD"])
def test_only_canonical_base64_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="expected base64"):
        decode_base64(text)


def test_a_checkpoint_is_replaced_by_longer_and_shorter_ones(tmp_path: Path) -> None:
    file = tmp_path / "log.json.checkpoint"
    assert read_note(file) is None
    for note in (b"abc", b"xyz", b"longer", b"short", b"", b"a" * 5000, b"b" * 5001):
        write_note(file, note)
        assert read_note(file) == note
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


def test_a_reader_never_sees_half_a_checkpoint(tmp_path: Path) -> None:
    file, notes = tmp_path / "log.json.checkpoint", [bytes([65 + n]) * (150 + n) for n in range(20)]
    write_note(file, notes[0])
    done = threading.Event()

    def write() -> None:
        for _ in range(200):
            for note in notes:
                write_note(file, note)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        assert read_note(file) in notes
    writer.join()
