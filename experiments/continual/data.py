"""Data sets: MNIST and Fashion-MNIST from their four original files, and scikit-learn's 8x8 digits."""

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.filing import write_whole

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data" / "mnist"
OWN = ROOT / "data" / "mnist"
FASHION = "fashion-mnist"  # its folder, beside MNIST's
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
FASHION_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)
FASHION_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
HELD_OUT = 10_000


class DataError(ValueError):
    """A data file is missing, damaged, or has another content than expected."""

    def __init__(self, file: str | Path, expected: str, got: str) -> None:
        self.file, self.expected, self.got = str(file), expected, got
        super().__init__(f"{file}: expected {expected}, got {got}.")


class Arrays(NamedTuple):
    """Flat inputs in [0, 1] and labels 0..9, split for training and testing."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def md5(content: bytes) -> str:
    """The checksum as a hexadecimal string.

    >>> md5(b"")
    'd41d8cd98f00b204e9800998ecf8427e'
    """
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def unpack(content: bytes, file: str | Path) -> bytes:
    """Decompress the content if it is gzipped."""
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(file, "a whole gzip file", f"a damaged one ({error})") from error


def checked(content: bytes, expected: str, file: str | Path) -> bytes:
    """The unpacked content, after a check of its checksum."""
    unpacked = unpack(content, file)
    if (got := md5(unpacked)) != expected:
        raise DataError(file, f"md5 {expected} when unpacked", f"md5 {got}")
    return unpacked


def read_file(folder: Path, name: str, expected: str) -> bytes:
    """Read ``name`` or ``name.gz`` from the folder, and check it."""
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return checked(file.read_bytes(), expected, file)
    raise DataError(folder / name, "this file, or the same with .gz", "nothing")


def download(folder: Path, name: str, expected: str, mirrors: Sequence[str] = MIRRORS, timeout: float = 30) -> None:
    """Download ``name.gz`` from the first mirror whose file has the right checksum; other files are discarded."""
    failures = []
    for mirror in mirrors:
        url = f"{mirror}{name}.gz"
        try:
            with urlopen(url, timeout=timeout) as response:
                content = response.read()
            checked(content, expected, url)
        except DataError as error:
            failures.append(str(error))
        except (OSError, HTTPException) as error:
            failures.append(f"{url}: {error}")
        else:
            return write_whole(folder / f"{name}.gz", content)
    raise DataError(folder / f"{name}.gz", f"a mirror with md5 {expected} when unpacked", "; ".join(failures))


def fetch(folder: Path, files: Mapping[str, str] = MNIST_MD5, mirrors: Sequence[str] = MIRRORS) -> Path:
    """Download missing files into the folder; returns the folder."""
    for name, expected in files.items():
        if not ((folder / name).is_file() or (folder / f"{name}.gz").is_file()):
            download(folder, name, expected, mirrors)
    return folder


def parse_idx(content: bytes, file: str | Path = "idx") -> NDArray[np.uint8]:
    """Parse an idx file of bytes: two zeros, type 8, rank, sizes, values.

    >>> parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9]))
    array([[7, 8, 9]], dtype=uint8)
    """
    if content[:3] != b"\x00\x00\x08" or len(content) < 4:
        raise DataError(file, "an idx file of bytes (first bytes 0 0 8)", f"first bytes {list(content[:3])}")
    start = 4 + 4 * content[3]
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], ">u4"))
    values = np.frombuffer(content, np.uint8, offset=start)
    if values.size != np.prod(shape):
        raise DataError(file, f"{np.prod(shape)} values for shape {shape}", f"{values.size}")
    return values.reshape(shape)


def mnist_folder(folder: Path | None = None) -> Path:
    """The given folder; else the shared one if it exists; else the project's own, with files downloaded as needed."""
    if folder is not None:
        return folder
    return SHARED if SHARED.is_dir() else fetch(OWN)


def mnist(folder: Path | None = None, files: Mapping[str, str] = MNIST_MD5) -> Arrays:
    """Images as rows of pixels in [0, 1], labels as integers."""
    where = mnist_folder(folder)
    train_x, train_y, test_x, test_y = (
        torch.tensor(parse_idx(read_file(where, name, expected), where / name)) for name, expected in files.items()
    )
    return Arrays(train_x.flatten(1) / 255, train_y.long(), test_x.flatten(1) / 255, test_y.long())


def fashion() -> Arrays:
    """Fashion-MNIST, in the format of MNIST: ten kinds of clothes."""
    shared, own = (folder.with_name(FASHION) for folder in (SHARED, OWN))
    return mnist(shared if shared.is_dir() else fetch(own, FASHION_MD5, FASHION_MIRRORS), FASHION_MD5)


def digits() -> Arrays:
    """The digits of scikit-learn, 80 % for training; the split does not depend on the seed.

    >>> [tuple(part.shape) for part in digits()]
    [(1437, 64), (1437,), (360, 64), (360,)]
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x, y = torch.tensor(bunch.data, dtype=torch.float32) / 16, torch.tensor(bunch.target).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
    return Arrays(x[train], y[train], x[test], y[test])


def validation() -> Arrays:
    """MNIST with the last 10 000 training images in place of the test set, for tuning."""
    x, y, *_ = mnist()
    return Arrays(x[:-HELD_OUT], y[:-HELD_OUT], x[-HELD_OUT:], y[-HELD_OUT:])


NAMED: dict[str, Callable[[], Arrays]] = {
    "mnist": mnist,
    "mnist-validation": validation,
    FASHION: fashion,
    "digits": digits,
}


@lru_cache(maxsize=1)
def load(source: str) -> Arrays:
    """One of ``NAMED``, or a folder with the four MNIST files."""
    if source in NAMED:
        return NAMED[source]()
    if not Path(source).is_dir():
        raise ValueError(f"Expected data to be one of {tuple(NAMED)} or a folder, got {source!r}.")
    return mnist(Path(source))
