"""Reading, checking and fetching of the data files."""

import gzip
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.continual.data import (
    FASHION,
    MNIST_MD5,
    SHARED,
    Arrays,
    DataError,
    digits,
    download,
    fashion,
    fetch,
    load,
    md5,
    mnist,
    parse_idx,
    read_file,
)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def four_files(folder: Path) -> dict[str, str]:
    random = np.random.default_rng(0)
    contents = {
        name: idx(random.integers(0, 10, 12) if "labels" in name else random.integers(0, 256, (12, 28, 28)))
        for name in MNIST_MD5
    }
    for i, (name, content) in enumerate(contents.items()):
        packed = i % 2 == 0
        (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    return {name: md5(content) for name, content in contents.items()}


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A real server on the loopback; what it serves is put into the dictionary."""
    served: dict[str, bytes] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = served.get(self.path.lstrip("/"))
            self.send_response(404 if content is None else 200)
            if self.path.startswith("/cut/"):
                self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, format: str, *args: object) -> None: ...

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/", served
    running.shutdown()
    running.server_close()
    thread.join()


def dead_mirror() -> str:
    """An address where nobody answers any more."""
    closed = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    closed.server_close()
    return f"http://127.0.0.1:{closed.server_port}/"


class TestFiles:
    def test_packed_and_unpacked_files_give_flat_pixels_and_labels(self, tmp_path: Path) -> None:
        arrays = mnist(tmp_path, four_files(tmp_path))
        assert arrays.train_x.shape == (12, 784)
        assert arrays.test_y.dtype == torch.int64
        assert 0 <= arrays.train_x.min() < arrays.train_x.max() <= 1

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"train-images-idx3-ubyte: expected this file.*got nothing"):
            mnist(tmp_path)

    def test_a_wrong_file_is_named_with_both_checksums(self, tmp_path: Path) -> None:
        (tmp_path / "labels").write_bytes(b"other")
        with pytest.raises(DataError) as caught:
            read_file(tmp_path, "labels", md5(b"right"))
        assert caught.value.file == str(tmp_path / "labels")
        assert md5(b"right") in caught.value.expected
        assert md5(b"other") in caught.value.got

    @pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: c[:12] + b"\xff\xff" + c[14:]])
    def test_a_damaged_gzip_is_named(self, tmp_path: Path, damage: object) -> None:
        content = bytes(range(256)) * 8
        (tmp_path / "labels.gz").write_bytes(damage(gzip.compress(content)))  # type: ignore[operator]
        with pytest.raises(DataError, match=r"labels\.gz: expected a whole gzip file, got a damaged one"):
            read_file(tmp_path, "labels", md5(content))

    @pytest.mark.parametrize("content", [b"", b"\x00\x00\x08", b"GIF89a"])
    def test_other_formats_are_refused(self, content: bytes) -> None:
        with pytest.raises(DataError, match="expected an idx file"):
            parse_idx(content)

    def test_a_short_idx_file_is_refused(self) -> None:
        with pytest.raises(DataError, match=r"expected 6 values for shape \(2, 3\), got 5"):
            parse_idx(idx(np.zeros((2, 3)))[:-1])

    def test_load_names_what_it_takes(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"Expected data to be one of .*'digits'.* or a folder, got .*nowhere"):
            load(str(tmp_path / "nowhere"))


class TestDownload:
    def test_the_right_file_is_kept(self, tmp_path: Path, server: tuple[str, dict[str, bytes]]) -> None:
        url, served = server
        served["labels.gz"] = gzip.compress(b"right")
        fetch(tmp_path / "new", {"labels": md5(b"right")}, [url])
        assert read_file(tmp_path / "new", "labels", md5(b"right")) == b"right"

    def test_a_wrong_file_leaves_nothing_behind(self, tmp_path: Path, server: tuple[str, dict[str, bytes]]) -> None:
        url, served = server
        served["labels.gz"] = gzip.compress(b"wrong")
        with pytest.raises(DataError, match=md5(b"wrong")):
            download(tmp_path, "labels", md5(b"right"), [url])
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("first", ["dead", "empty", "wrong", "damaged", "cut"])
    def test_the_next_mirror_is_used(self, tmp_path: Path, server: tuple[str, dict[str, bytes]], first: str) -> None:
        url, served = server
        right = gzip.compress(b"right")
        served |= {"wrong/labels.gz": gzip.compress(b"wrong"), "damaged/labels.gz": right[:-9]}
        served |= {"cut/labels.gz": right, "good/labels.gz": right}
        mirrors = [dead_mirror() if first == "dead" else f"{url}{first}/", f"{url}good/"]
        download(tmp_path, "labels", md5(b"right"), mirrors)
        assert [file.name for file in tmp_path.iterdir()] == ["labels.gz"]

    def test_every_failure_is_told(self, tmp_path: Path, server: tuple[str, dict[str, bytes]]) -> None:
        url, _ = server
        dead = dead_mirror()
        with pytest.raises(DataError) as caught:
            download(tmp_path, "labels", md5(b"right"), [dead, url])
        assert dead in caught.value.got
        assert "404" in caught.value.got

    def test_what_is_there_is_not_fetched_again(self, tmp_path: Path) -> None:
        (tmp_path / "labels").write_bytes(b"right")
        assert fetch(tmp_path, {"labels": md5(b"right")}, [dead_mirror()]) == tmp_path


def test_digits_are_split_the_same_way_each_time() -> None:
    first, second = digits(), digits()
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert first.train_x.min() == 0
    assert first.train_x.max() == 1
    assert sorted(first.test_y.unique().tolist()) == list(range(10))


@pytest.fixture(scope="module")
def whole() -> Arrays:
    if not SHARED.is_dir():
        pytest.skip("the MNIST files are not here")
    return mnist()


@pytest.mark.slow
def test_mnist_has_its_published_size(whole: Arrays) -> None:
    assert (len(whole.train_x), len(whole.test_x)) == (60000, 10000)
    assert whole.train_y[:5].tolist() == [5, 0, 4, 1, 9]


@pytest.mark.slow
def test_validation_never_sees_the_test_set(whole: Arrays) -> None:
    held = load("mnist-validation")
    assert torch.equal(torch.cat([held.train_x, held.test_x]), whole.train_x)
    assert torch.equal(torch.cat([held.train_y, held.test_y]), whole.train_y)
    assert len(held.test_x) == 10_000


@pytest.mark.slow
def test_fashion_mnist_has_its_published_size_mean_and_deviation() -> None:
    if not SHARED.with_name(FASHION).is_dir():
        pytest.skip("the Fashion-MNIST files are not here")
    clothes = fashion()
    assert clothes.train_y.bincount().tolist() == [6000] * 10
    assert clothes.test_y.bincount().tolist() == [1000] * 10
    assert round(float(clothes.train_x.mean()), 4) == 0.2860
    assert round(float(clothes.train_x.std()), 4) == 0.3530
