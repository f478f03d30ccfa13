"""The reader of offline files, on files made here and one that wandb wrote."""

import struct
import zlib

import pytest

from sal_lightning.report.wandb_file import BLOCK, FILE_HEADER, HEADER, history, records

START = b":W&B" + bytes(FILE_HEADER - 4)


def written(texts):
    """As LevelDB's log format says: no piece crosses a block, a block's last bytes are empty where no header fits."""
    data = bytearray(START)
    for text in texts:
        first = True
        while True:
            room = BLOCK - len(data) % BLOCK
            if room < HEADER:
                data += bytes(room)
                continue
            piece, text = text[: room - HEADER], text[room - HEADER :]
            kind = (1 if first else 4) if not text else (2 if first else 3)
            data += struct.pack("<IHB", zlib.crc32(bytes([kind]) + piece), len(piece), kind) + piece
            first = False
            if not text:
                break
    return bytes(data)


# Records that fill a block to each of the last bytes in which no header fits, and one over several blocks.
@pytest.mark.parametrize("short_of", [*range(HEADER + 3), 100])
def test_records_of_any_size_come_back(short_of):
    texts = [b"a" * (BLOCK - FILE_HEADER - HEADER - short_of), b"b" * 10, b"c" * (3 * BLOCK), b"", b"d"]
    assert list(records(written(texts))) == texts


def test_an_incomplete_last_record_is_left_out():
    data = written([b"one", b"two" * 20])
    for cut in range(1, 60 + HEADER):
        assert list(records(data[:-cut])) == [b"one"]


def test_damage_and_other_files_are_named():
    data = bytearray(written([b"one", b"two"]))
    data[-1] ^= 1
    with pytest.raises(ValueError, match="checksum mismatch in the record at byte 17"):
        list(records(bytes(data)))
    with pytest.raises(ValueError, match=r"begins with ':W&B', got notes.txt"):
        list(records(b"step,loss", "notes.txt"))


@pytest.mark.slow
def test_a_file_that_wandb_wrote(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    run = wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True, console="off"))
    for step in range(50):
        run.log({"sal/a": step / 7, "text": "x" * 1000})
    run.finish()
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert [row["sal/a"] for row in history(file)] == [step / 7 for step in range(50)]
