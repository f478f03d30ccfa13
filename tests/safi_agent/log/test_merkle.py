"""The tree against published vectors and against the recursive definition of RFC 6962."""

import base64
import hashlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safi_agent.log.merkle import (
    EMPTY_ROOT,
    append,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    leaf_hash,
    node_count,
    node_position,
    read_peaks,
    root_from_inclusion,
    root_of,
)

# The leaves, roots and proofs of the tests of certificate-transparency, which transparency-dev/merkle has as well.
LEAVES = [
    bytes.fromhex(data)
    for data in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
INCLUSION = {  # leaf from 1, size
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (3, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (2, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {  # both sizes
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 7): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
# The last entry of a log of 76,959 entries that another implementation wrote, from the tests of Project Oak.
TESSERA_PROOF = [
    "fGRlLyuz+L9Jb8+uTSut/2aVc4z7fKFW+clvsb6xjEM=",
    "F6LautOHD5eppkWC0xn/lz00X5g2yLlZAkl2jCI/wdE=",
    "qH7OJxFNup+TDvJuohd2HphKVngfMeMzUK8QChEDcas=",
    "+Y3g758yXtPCRh/eqhLTA3bdcx+cCV1Uah0JdgB0YEs=",
    "vq8cJSjj8dPVmFBRUqDLlaMqW6aAYR2GKugVhgudXLs=",
    "J0z3X5qTb9WFC1gABhVFx0bW1rVZRL+DAoBL2e2h4G4=",
    "NmSbYg25xNFzTRerIsF3HbEMyTIDqW87AQd9ekzopE8=",
    "L8BZipjURnkctkjJtGJs+YyTXMssvNKA7+a8nV2JT/s=",
    "pva4RFzCejMkVMVmYc93As2lbk7WAyrw58TvrzEOjNc=",
]
TESSERA_ROOT = "QYfrD7XAd4qUHbRBs4dDyDZwpZN4M/cccXr2G56pxkY="
MOST = 40  # leaves of the trees that are compared with the slow twin


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def plain_split(n: int) -> int:
    k = 1
    while k * 2 < n:
        k *= 2
    return k


def plain_root(data: list[bytes]) -> bytes:
    """MTH of RFC 6962, section 2.1, as it is written there: the slow twin."""
    if not data:
        return sha(b"")
    if len(data) == 1:
        return sha(b"\x00" + data[0])
    k = plain_split(len(data))
    return sha(b"\x01" + plain_root(data[:k]) + plain_root(data[k:]))


def plain_path(m: int, data: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, section 2.1.1."""
    if len(data) == 1:
        return []
    k = plain_split(len(data))
    if m < k:
        return [*plain_path(m, data[:k]), plain_root(data[k:])]
    return [*plain_path(m - k, data[k:]), plain_root(data[:k])]


def plain_subproof(m: int, data: list[bytes], whole: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, section 2.1.2."""
    if m == len(data):
        return [] if whole else [plain_root(data)]
    k = plain_split(len(data))
    if m <= k:
        return [*plain_subproof(m, data[:k], whole), plain_root(data[k:])]
    return [*plain_subproof(m - k, data[k:], False), plain_root(data[:k])]


class Grown:
    """A tree that grew leaf by leaf, with its nodes in post-order."""

    def __init__(self, data: list[bytes]) -> None:
        self.nodes: list[bytes] = []
        self.peaks: list[bytes] = []
        for size, leaf in enumerate(data):
            assert len(self.nodes) == node_count(size)
            self.nodes += append(self.peaks, size, leaf_hash(leaf))

    def read(self, level: int, index: int) -> bytes:
        return self.nodes[node_position(level, index)]


def texts(count: int) -> list[bytes]:
    return [f"line {i}".encode() for i in range(count)]


TREES = [Grown(texts(n)) for n in range(MOST + 1)]


def decoded(hashes: list[str]) -> list[bytes]:
    return [bytes.fromhex(text) for text in hashes]


def test_published_roots() -> None:
    assert bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855") == EMPTY_ROOT
    for size, root in enumerate(ROOTS, 1):
        assert root_of(Grown(LEAVES[:size]).peaks).hex() == root


@pytest.mark.parametrize(("leaf", "size"), INCLUSION)
def test_published_inclusion_proofs(leaf: int, size: int) -> None:
    path = decoded(INCLUSION[leaf, size])
    assert inclusion_proof(leaf - 1, size, Grown(LEAVES[:size]).read) == path
    assert root_from_inclusion(leaf - 1, size, leaf_hash(LEAVES[leaf - 1]), path).hex() == ROOTS[size - 1]


@pytest.mark.parametrize(("old", "size"), CONSISTENCY)
def test_published_consistency_proofs(old: int, size: int) -> None:
    path = decoded(CONSISTENCY[old, size])
    assert consistency_proof(old, size, Grown(LEAVES[:size]).read) == path
    assert is_consistent(old, size, bytes.fromhex(ROOTS[old - 1]), bytes.fromhex(ROOTS[size - 1]), path)


def test_a_proof_by_another_implementation() -> None:
    path = [base64.b64decode(node) for node in TESSERA_PROOF]
    root = root_from_inclusion(76_958, 76_959, leaf_hash(b"hello tesseroak\n"), path)
    assert root == base64.b64decode(TESSERA_ROOT)


@pytest.mark.parametrize("size", range(MOST + 1))
def test_a_tree_is_what_the_slow_twin_computes(size: int) -> None:
    data, tree = texts(size), TREES[size]
    root = plain_root(data)
    assert root_of(tree.peaks) == root
    assert len(tree.nodes) == node_count(size)
    assert read_peaks(size, tree.read) == tree.peaks
    for index in range(size):
        path = inclusion_proof(index, size, tree.read)
        assert path == plain_path(index, data)
        assert root_from_inclusion(index, size, leaf_hash(data[index]), path) == root
    for old in range(1, size + 1):
        path = consistency_proof(old, size, tree.read)
        assert path == plain_subproof(old, data, True)
        assert is_consistent(old, size, plain_root(data[:old]), root, path)


def test_nodes_of_a_larger_tree_serve_every_smaller_one() -> None:
    large = TREES[MOST]
    for size in range(1, MOST):
        assert root_of(read_peaks(size, large.read)) == root_of(TREES[size].peaks)
        assert inclusion_proof(size // 2, size, large.read) == inclusion_proof(size // 2, size, TREES[size].read)


@given(st.integers(1, MOST), st.data())
def test_an_inclusion_proof_fits_no_other_leaf_index_size_or_root(size: int, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, size - 1))
    tree, leaf = TREES[size], leaf_hash(texts(size)[index])
    path, root = inclusion_proof(index, size, tree.read), root_of(tree.peaks)
    rng = random.Random(data.draw(st.integers(0, 99)))
    other = rng.randbytes(32)
    wrong = [(i, size, leaf, path) for i in range(-1, size + 2) if i != index]
    wrong += [(index, size, other, path), (index, size, leaf, [*path, other]), (index, size, leaf, [other, *path])]
    wrong += [(index, size, leaf, path[:i] + path[i + 1 :]) for i in range(len(path))]
    wrong += [(index, size, leaf, [*path[:i], other, *path[i + 1 :]]) for i in range(len(path))]
    for claim in wrong:
        try:
            assert root_from_inclusion(*claim) != root
        except ValueError:
            continue


@given(st.integers(2, MOST), st.data())
def test_a_consistency_proof_fits_no_other_sizes_or_roots(size: int, data: st.DataObject) -> None:
    old = data.draw(st.integers(1, size - 1))
    path = consistency_proof(old, size, TREES[size].read)
    roots = root_of(TREES[old].peaks), root_of(TREES[size].peaks)
    other = random.Random(data.draw(st.integers(0, 99))).randbytes(32)
    assert is_consistent(old, size, *roots, path)
    assert not is_consistent(old, size, other, roots[1], path)
    assert not is_consistent(old, size, roots[0], other, path)
    assert not is_consistent(old, size, roots[1], roots[0], path)
    assert not is_consistent(old, size, *roots, [*path, other])
    assert not is_consistent(old, size, *roots, [other, *path])
    for i in range(len(path)):
        assert not is_consistent(old, size, *roots, path[:i] + path[i + 1 :])
        assert not is_consistent(old, size, *roots, [*path[:i], other, *path[i + 1 :]])
    for number in (old - 1, old + 1):
        assert not is_consistent(number, size, *roots, path)


def test_equal_and_empty_trees() -> None:
    root, other = root_of(TREES[3].peaks), root_of(TREES[4].peaks)
    assert is_consistent(3, 3, root, root, [])
    assert not is_consistent(3, 3, root, other, [])
    assert not is_consistent(3, 3, root, root, [other])
    assert is_consistent(0, 3, EMPTY_ROOT, root, [])
    assert not is_consistent(0, 3, root, root, [])
    assert not is_consistent(4, 3, other, root, [])


@pytest.mark.parametrize("size", range(5))
def test_what_is_not_in_the_tree_has_no_proof(size: int) -> None:
    for index in (-1, size):
        with pytest.raises(ValueError, match="index: expected a leaf from 0 to"):
            inclusion_proof(index, size, TREES[size].read)
        with pytest.raises(ValueError, match="index: expected a leaf from 0 to"):
            root_from_inclusion(index, size, EMPTY_ROOT, [])
    for old in (-1, size + 1):
        with pytest.raises(ValueError, match="old: expected a size from 0 to"):
            consistency_proof(old, size, TREES[size].read)
