"""The Merkle tree of RFC 6962: hashes, proofs and their verification.

A tree of n leaves is split at the largest power of two below n. A *complete* subtree has 2**level leaves and begins at
a multiple of that; ``(level, index)`` names it: it has the leaves from ``index << level`` up to, without,
``(index + 1) << level``. Complete subtrees never change when leaves are added. The *peaks* of a tree are the roots of
its largest complete subtrees, from left to right, one for each 1 in the binary form of n: they are all that is needed
to add a leaf or to compute the root.

Hashes are SHA-256, 32 bytes. Leaves are counted from 0.
"""

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256().digest()
ReadNode = Callable[[int, int], bytes]  # the root of the complete subtree (level, index)


def leaf_hash(data: bytes) -> bytes:
    """The hash of a leaf: SHA-256(0x00 ‖ data). RFC 6962, section 2.1."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node: SHA-256(0x01 ‖ left ‖ right). RFC 6962, section 2.1."""
    return sha256(b"\x01" + left + right).digest()


def append(peaks: list[bytes], size: int, leaf: bytes) -> list[bytes]:
    """Add a leaf to a tree, in place; returns the roots of the complete subtrees that end with it, smallest first.

    Args:
        peaks: the peaks of the tree, replaced by the new ones.
        size: its number of leaves before.
        leaf: the hash of the leaf.
    """
    completed = [leaf]
    while size & 1:  # one complete subtree ends here for each trailing 1
        completed.append(node_hash(peaks.pop(), completed[-1]))
        size >>= 1
    peaks.append(completed[-1])
    return completed


def root_of(peaks: Sequence[bytes]) -> bytes:
    """The root of a tree with these peaks."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def node_count(size: int) -> int:
    """The number of complete subtrees of a tree, leaves included: also the position of leaf ``size`` in post-order."""
    return 2 * size - size.bit_count()


def node_position(level: int, index: int) -> int:
    """The position of a complete subtree in post-order: in the order in which ``append`` completes them."""
    end = (index + 1) << level
    largest = (end & -end).bit_length() - 1  # the level of the largest complete subtree that ends there
    return node_count(end) - 1 - (largest - level)


def read_peaks(size: int, read: ReadNode) -> list[bytes]:
    """The peaks of a tree of ``size`` leaves."""
    return [read(level, index) for level, index in _cover(0, size)]


def inclusion_proof(index: int, size: int, read: ReadNode) -> list[bytes]:
    """The audit path of a leaf, from its sibling to the child of the root. RFC 6962, section 2.1.1.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"index: expected a leaf from 0 to {size - 1}, got {index}.")
    path, begin, end = [], 0, size
    while end - begin > 1:
        middle = begin + _split(end - begin)
        if index < middle:
            path.append(_root_between(middle, end, read))
            end = middle
        else:
            path.append(_root_between(begin, middle, read))
            begin = middle
    return path[::-1]


def consistency_proof(old: int, size: int, read: ReadNode) -> list[bytes]:
    """The proof that the tree of ``size`` leaves extends its first ``old`` leaves. RFC 6962, section 2.1.2.

    Raises:
        ValueError: ``old`` is not from 0 to ``size``.
    """
    if not 0 <= old <= size:
        raise ValueError(f"old: expected a size from 0 to {size}, got {old}.")
    if old in (0, size):
        return []
    path, begin, end = [], 0, size
    while end != old:
        middle = begin + _split(end - begin)
        if old <= middle:
            path.append(_root_between(middle, end, read))
            end = middle
        else:
            path.append(_root_between(begin, middle, read))
            begin = middle
    if begin:  # otherwise the remaining subtree is the old tree, whose root the verifier has
        path.append(_root_between(begin, end, read))
    return path[::-1]


def root_from_inclusion(index: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to. RFC 9162, section 2.1.3.2.

    Raises:
        ValueError: the path cannot be one of this leaf in a tree of this size.
    """
    if not 0 <= index < size:
        raise ValueError(f"index: expected a leaf from 0 to {size - 1}, got {index}.")
    node, last, root, rest = index, size - 1, leaf, list(path)
    while last:
        if node & 1 or node == last:
            root = node_hash(_next(rest), root)
            while not node & 1:  # levels at which the subtree has no sibling
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, _next(rest))
        node, last = node >> 1, last >> 1
    if rest:
        raise ValueError(f"path: expected {len(path) - len(rest)} hashes, got {len(path)}.")
    return root


def is_consistent(old: int, size: int, old_root: bytes, root: bytes, path: Sequence[bytes]) -> bool:
    """Whether a consistency proof shows that one tree extends the other. RFC 9162, section 2.1.4.2."""
    if not 0 <= old <= size:
        return False
    if old in (0, size):
        return not path and old_root == (root if old else EMPTY_ROOT)
    rest = list(path) if old & (old - 1) else [old_root, *path]
    node, last = old - 1, size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    try:
        old_side = new_side = _next(rest)
        while last:
            if node & 1 or node == last:
                sibling = _next(rest)
                old_side, new_side = node_hash(sibling, old_side), node_hash(sibling, new_side)
                while node and not node & 1:
                    node, last = node >> 1, last >> 1
            else:
                new_side = node_hash(new_side, _next(rest))
            node, last = node >> 1, last >> 1
    except ValueError:
        return False
    return not rest and (old_side, new_side) == (old_root, root)


def _next(rest: list[bytes]) -> bytes:
    if not rest:
        raise ValueError("path: expected more hashes.")
    return rest.pop(0)


def _split(size: int) -> int:
    """The largest power of two below ``size``."""
    return 1 << ((size - 1).bit_length() - 1)


def _cover(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The largest complete subtrees between two leaves, from left to right; ``begin`` is where a subtree begins."""
    while begin < end:
        level = (end - begin).bit_length() - 1
        yield level, begin >> level
        begin += 1 << level


def _root_between(begin: int, end: int, read: ReadNode) -> bytes:
    """The root of the subtree with the leaves from ``begin`` up to, without, ``end``."""
    return root_of([read(level, index) for level, index in _cover(begin, end)])
