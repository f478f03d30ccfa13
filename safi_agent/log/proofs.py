"""Proofs that anyone can check with a public key and without the log.

A proof of a turn is C2SP's ``tlog-proof``: it contains the line in base64 as ``extra``, its index, the hashes up to the
root, and the signed checkpoint. A proof that a log extends an earlier checkpoint is the body of an ``add-checkpoint``
request of C2SP's ``tlog-witness``: the size of the earlier checkpoint, the hashes of the consistency proof, and the new
checkpoint.
"""

import base64
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from safi_agent.contents import is_erased
from safi_agent.errors import LogError
from safi_agent.log.checkpoint import (
    Checkpoint,
    checkpoint_file,
    line_hash,
    open_checkpoint,
    parse_checkpoint,
    read_note,
)
from safi_agent.log.hash_chain import record_of, sealed_form
from safi_agent.log.merkle import (
    HASH_BYTES,
    consistency_proof,
    inclusion_proof,
    is_consistent,
    root_from_inclusion,
    root_of,
)
from safi_agent.log.signed_note import decode_base64, parse_note
from safi_agent.log.signing_keys import PublicKey
from safi_agent.log.tree_files import Tree, read_line_at, read_tree, read_turn_id, rebuild_tree

HEADER = "c2sp.org/tlog-proof@v1"
MOST_BYTES = 2**27
MOST_HASHES = 63
_INDEX = re.compile(r"index (0|[1-9]\d{0,17})")
_OLD = re.compile(r"old (0|[1-9]\d{0,17})")


class ProvenTurn(NamedTuple):
    """A line of a log, its number from 1, the checkpoint that covers it, and the key that signed the checkpoint."""

    line: bytes
    number: int
    checkpoint: Checkpoint
    key: PublicKey


class ProvenExtension(NamedTuple):
    """The size of an earlier checkpoint, the checkpoint that extends it, and the key that signed the latter."""

    old_size: int
    checkpoint: Checkpoint
    key: PublicKey


def prove_turn(log: str | Path, turn_id: str) -> bytes:
    """The proof that a turn is in a log.

    Raises:
        LogError: the log has no checkpoint, or none that covers the turn; or the log is not as it was signed.
    """
    note, checkpoint = _newest(log)
    for tree in _trees(log, checkpoint):
        for index, start in tree.find(turn_id, checkpoint.size):
            line = read_line_at(log, index + 1, start).removesuffix(b"\n")
            if read_turn_id(line) != turn_id:
                continue
            if is_erased(record_of(line + b"\n")):
                line = sealed_form(line + b"\n")[:-1]  # without the spaces in place of the contents
            try:
                path = inclusion_proof(index, checkpoint.size, tree.read)
            except LookupError:
                continue
            if root_from_inclusion(index, checkpoint.size, line_hash(line), path) == checkpoint.root:
                extra = f"extra {base64.b64encode(line).decode('ascii')}\n"
                return f"{HEADER}\n{extra}index {index}\n{_format(path)}\n".encode() + note
    raise LogError(f"expected a turn in the {checkpoint.size:,} signed lines of {log}, found no turn {turn_id!r}")


def prove_extension(log: str | Path, old: bytes) -> bytes:
    """The proof that a log's checkpoint extends an earlier one.

    Args:
        log: its path.
        old: the note of the earlier checkpoint.

    Raises:
        LogError: the log has no checkpoint; or it does not extend the earlier one.
        ValueError: ``old`` is not a checkpoint.
    """
    note, checkpoint = _newest(log)
    earlier = parse_checkpoint(parse_note(old).text)
    if earlier.origin != checkpoint.origin or earlier.size > checkpoint.size:
        raise LogError(
            f"expected a checkpoint of {checkpoint.origin} of at most {checkpoint.size:,} lines, got one of "
            f"{earlier.origin} of {earlier.size:,} lines"
        )
    for tree in _trees(log, checkpoint):
        try:
            path = consistency_proof(earlier.size, checkpoint.size, tree.read)
        except LookupError:
            continue
        if is_consistent(earlier.size, checkpoint.size, earlier.root, checkpoint.root, path):
            return f"old {earlier.size}\n{_format(path)}\n".encode() + note
    raise LogError(f"the log does not extend the checkpoint of {earlier.size:,} lines: lines were changed since")


def check_turn(proof: bytes, keys: Sequence[PublicKey]) -> ProvenTurn:
    """Check the proof of a turn.

    Raises:
        ValueError: it is not a proof, or it proves nothing.
        UnknownKeyError: its checkpoint is not signed by any of the keys.
    """
    head, path, note = _parse(proof)
    if len(head) != 3 or head[0] != HEADER or not head[1].startswith("extra ") or not (at := _INDEX.fullmatch(head[2])):
        raise ValueError(f"expected the lines {HEADER}, 'extra' with a line of the log, and 'index'")
    line, index = decode_base64(head[1].removeprefix("extra ")), int(at[1])
    checkpoint, key = open_checkpoint(note, keys)
    if root_from_inclusion(index, checkpoint.size, line_hash(line), path) != checkpoint.root:
        raise ValueError("the line is not in the log of the checkpoint")
    return ProvenTurn(line, index + 1, checkpoint, key)


def check_extension(proof: bytes, keys: Sequence[PublicKey], old: bytes) -> ProvenExtension:
    """Check the proof that a checkpoint extends an earlier one.

    Args:
        proof: its content.
        keys: the public keys, one of which must have signed each of the two checkpoints.
        old: the note of the earlier checkpoint.

    Raises:
        ValueError: it is not a proof, or it proves nothing about this earlier checkpoint.
        UnknownKeyError: a checkpoint is not signed by any of the keys.
    """
    head, path, note = _parse(proof)
    if len(head) != 1 or not (size := _OLD.fullmatch(head[0])):
        raise ValueError("expected a first line with 'old' and a size")
    checkpoint, key = open_checkpoint(note, keys)
    earlier, _ = open_checkpoint(old, keys)
    if (earlier.origin, earlier.size) != (checkpoint.origin, int(size[1])):
        raise ValueError(
            f"expected a checkpoint of {checkpoint.origin} with {size[1]} lines to compare, got one of "
            f"{earlier.origin} with {earlier.size}"
        )
    if not is_consistent(earlier.size, checkpoint.size, earlier.root, checkpoint.root, path):
        raise ValueError("the checkpoint does not extend the earlier one")
    return ProvenExtension(earlier.size, checkpoint, key)


def is_turn_proof(proof: bytes) -> bool:
    """Whether this is meant as a proof of a turn."""
    return proof.startswith(HEADER.encode())


def _newest(log: str | Path) -> tuple[bytes, Checkpoint]:
    if (note := read_note(checkpoint_file(log))) is None:
        raise LogError(f"expected a checkpoint in {checkpoint_file(log)}, found none; 'safi checkpoint' signs the log")
    try:
        return note, parse_checkpoint(parse_note(note).text)
    except ValueError as error:
        raise LogError(f"{checkpoint_file(log)}: {error}") from None


def _trees(log: str | Path, checkpoint: Checkpoint) -> Iterator[Tree]:
    """The tree of the files; then one computed from the log, if its root is the signed one."""
    yield read_tree(log)
    tree, peaks = rebuild_tree(log, checkpoint.size)
    if root_of(peaks) != checkpoint.root:
        raise LogError(f"{log}: its lines are not as they were signed; 'safi verify --public-key' shows where")
    yield tree


def _format(path: Sequence[bytes]) -> str:
    return "".join(f"{base64.b64encode(node).decode('ascii')}\n" for node in path)


def _parse(proof: bytes) -> tuple[list[str], list[bytes], bytes]:
    """The first lines of a proof, its hashes, and its checkpoint."""
    if len(proof) > MOST_BYTES:
        raise ValueError(f"expected a proof of at most {MOST_BYTES:,} bytes, got {len(proof):,}")
    text, separator, note = proof.partition(b"\n\n")
    if not separator:
        raise ValueError("expected an empty line and a checkpoint")
    all_lines = text.decode("ascii", "strict").split("\n")
    head = [line for line in all_lines if " " in line or line == HEADER]
    path = [decode_base64(line) for line in all_lines[len(head) :]]
    if any(len(node) != HASH_BYTES for node in path) or len(path) > MOST_HASHES:
        raise ValueError(f"expected at most {MOST_HASHES} hashes of {HASH_BYTES} bytes")
    return head, path, note
